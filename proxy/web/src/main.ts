import { Ask, Cancelled, type Mode } from "./ask";
import { Connection } from "./connection";
import { element } from "./dom";
import { describe } from "./failure";
import { Picture } from "./picture";
import { Result } from "./result";

const form = element("ask-form", HTMLFormElement);
const askButton = element("ask", HTMLButtonElement);
const cancelButton = element("cancel", HTMLButtonElement);

const result = new Result();
const picture = new Picture(fail);
const connection = new Connection(connect);
let current: Ask | undefined;

function fail(error: unknown): void {
  result.fail(describe(error));
}

async function connect(): Promise<void> {
  result.clearFailure();
  if (connection.needsToken) {
    connection.askForToken();
    return;
  }
  await connection.connect().catch(fail);
}

async function ask(): Promise<void> {
  result.start();
  setBusy(true);
  try {
    const { client } = await connection.proxy();
    current = new Ask(client, question(), result);
    await current.run();
    result.succeed();
  } catch (error) {
    if (error instanceof Cancelled) {
      result.cancel();
    } else {
      fail(error);
    }
  } finally {
    current = undefined;
    setBusy(false);
  }
}

function question() {
  const fields = new FormData(form);
  return {
    endpoint: String(fields.get("endpoint")),
    prompt: String(fields.get("question")),
    picture: picture.file,
    uploadFirst: fields.has("upload"),
    mode: fields.get("mode") as Mode,
  };
}

function setBusy(busy: boolean): void {
  askButton.disabled = busy;
  cancelButton.disabled = !busy;
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  void ask();
});
cancelButton.addEventListener("click", () => void current?.cancel().catch(fail));
void connect();
