import { Ask, type Mode } from "./ask";
import { Account } from "./account";
import { Code } from "./code";
import { Connection, TokenNeeded } from "./connection";
import { element } from "./dom";
import { Cancelled, describe } from "./failure";
import { History } from "./history";
import { Latest, Overtaken } from "./latest";
import { Parameters } from "./parameters";
import { Picture } from "./picture";
import { Requests } from "./requests";
import { Result } from "./result";
import { PictureUpload } from "./upload";

/** From so many bytes on a picture does not travel inside the question, but is uploaded as soon as it is chosen. */
const LARGE = 1024 * 1024;

const form = element("ask-form", HTMLFormElement);
const askButton = element("ask", HTMLButtonElement);
const cancelButton = element("cancel", HTMLButtonElement);

const result = new Result();
const requests = new Requests();
const connection = new Connection(reconnect, (input, init) => requests.fetch(input, init));
const proxy = () => connection.proxy();
const upload = new PictureUpload(proxy);
const picture = new Picture(prepare, fail);
const parameters = new Parameters();
const account = new Account();
const history = new History(proxy, (answer) => result.show(answer), fail);
const code = new Code(call);
const endpoint = element("endpoint", HTMLSelectElement);
/** In front of the sandbox only. */
const fault = document.querySelector<HTMLSelectElement>("#fault");
const schemas = new Latest();
const standings = new Latest();
/** The proxy that a question waits for. */
const awaited = new Latest();
let current: Ask | undefined;

/** Show what went wrong, unless something newer took its place. */
function fail(error: unknown): void {
  if (!(error instanceof Overtaken)) {
    result.complain(describe(error));
  }
}

/** Connect, and show what the caller may do and did. */
async function begin(): Promise<void> {
  result.clearFailure();
  account.clear();
  history.clear();
  parameters.show({});
  try {
    await connection.connect();
  } catch (error) {
    if (error instanceof TokenNeeded) {
      return; // The panel says so.
    }
    throw error;
  }
  // Another endpoint may be chosen meanwhile: its parameters take their place, but not that of the jobs.
  await showParameters().catch(fail);
  await refresh();
}

/** What an ask changes: the limits and the jobs. */
async function refresh(): Promise<void> {
  account.show(await standings.of(proxy().then((one) => one.standing())));
  await history.refresh();
}

/** Those of the chosen endpoint; until they are known, none, as what was typed for another must not be sent. */
async function showParameters(): Promise<void> {
  schemas.drop();
  parameters.show({});
  code.update();
  if (endpoint.value) {
    parameters.show(await schemas.of(proxy().then((one) => one.inputSchema(endpoint.value))));
    code.update();
  }
}

/** Another proxy, or another account there: what was uploaded before may not be read by it. */
function reconnect(): void {
  void begin().catch(fail);
  upload.forget();
  prepare(picture.chosen);
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
    const asked = question();
    const { client } = await awaited.of(proxy());
    current = new Ask(client, asked, result);
    await current.run();
    result.succeed();
  } catch (error) {
    if (error instanceof Cancelled || error instanceof Overtaken) {
      result.cancel();
    } else {
      result.fail(describe(error));
    }
  } finally {
    current = undefined;
    setBusy(false);
  }
  // If the question failed, that says more than that the jobs cannot be listed either.
  await refresh().catch((error) => result.hasFailed || fail(error));
}

function cancel(): void {
  if (current) {
    void current.cancel().catch(fail);
  } else {
    awaited.drop();
  }
}

function question() {
  const fields = new FormData(form);
  return {
    endpoint: endpoint.value,
    prompt: prompt(),
    parameters: parameters.values(),
    picture: picture.file,
    uploadFirst: fields.has("upload"),
    upload: isLarge(picture.file) ? upload : undefined,
    mode: fields.get("mode") as Mode,
  };
}

/** The question, with what the sandbox is to do wrong. */
function prompt(): string {
  return [String(new FormData(form).get("question")), fault?.value].filter(Boolean).join(" ");
}

/** The call as an app would make it; a file of this page becomes an address. */
function call() {
  const input = { image_url: "https://example.com/picture.jpg", prompt: prompt(), ...parameters.values() };
  return { origin: connection.origin, endpoint: endpoint.value, input };
}

function setBusy(busy: boolean): void {
  askButton.disabled = busy;
  cancelButton.disabled = !busy;
  history.lock(busy);
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  void ask();
});
form.addEventListener("input", () => code.update());
endpoint.addEventListener("change", () => void showParameters().catch(fail));
cancelButton.addEventListener("click", cancel);
element("page", HTMLElement).inert = false;
void begin().catch(fail);
