import { Ask, type Mode } from "./ask";
import { Connection } from "./connection";
import { element } from "./dom";
import { Cancelled, describe } from "./failure";
import { Picture } from "./picture";
import type { Proxy } from "./proxy";
import { Result } from "./result";
import { PictureUpload } from "./upload";

/** From so many bytes on a picture does not travel inside the question, but is uploaded as soon as it is chosen. */
const LARGE = 1024 * 1024;

const form = element("ask-form", HTMLFormElement);
const askButton = element("ask", HTMLButtonElement);
const cancelButton = element("cancel", HTMLButtonElement);

const result = new Result();
const upload = new PictureUpload(proxy);
const picture = new Picture(prepare, fail);
const connection = new Connection(reconnect);
let connected: Promise<void>;
let current: Ask | undefined;

function fail(error: unknown): void {
  result.fail(describe(error));
}

async function connect(): Promise<void> {
  result.clearFailure();
  try {
    connection.check();
  } catch (error) {
    fail(error);
    return;
  }
  if (connection.needsToken) {
    connection.askForToken();
    return;
  }
  await connection.connect().catch(fail);
}

/** Another proxy, or another account there: what was uploaded before may not be read by it. */
function reconnect(): void {
  connected = connect();
  upload.forget();
  prepare(picture.chosen);
}

/** The proxy that the page is connected to; a session that has run out is renewed. */
async function proxy(): Promise<Proxy> {
  await connected;
  if (connection.needsToken) {
    connection.askForToken();
    throw new Error("A session token is needed: paste it above, under Connection.");
  }
  return connection.proxy();
}

function prepare(file?: File): void {
  if (file && isLarge(file)) {
    upload.begin(file);
  } else {
    upload.forget();
  }
}

function isLarge(file: File): boolean {
  return file.size > LARGE;
}

async function ask(): Promise<void> {
  result.start();
  setBusy(true);
  try {
    const { client } = await proxy();
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
    upload: isLarge(picture.file) ? upload : undefined,
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
connected = connect();
