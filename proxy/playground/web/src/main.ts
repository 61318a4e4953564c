import { Ask, type Mode } from "./ask";
import { Account } from "./account";
import { Code } from "./code";
import { Connection } from "./connection";
import { element } from "./dom";
import { Cancelled, describe } from "./failure";
import { History } from "./history";
import { Parameters } from "./parameters";
import { Picture } from "./picture";
import type { Proxy } from "./proxy";
import { Requests } from "./requests";
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
const requests = new Requests();
const connection = new Connection(reconnect, (input, init) => requests.fetch(input, init));
const parameters = new Parameters();
const account = new Account();
const history = new History(proxy, (answer) => result.show(answer), fail);
const code = new Code(call);
const endpoint = element("endpoint", HTMLSelectElement);
/** In front of the sandbox only. */
const fault = document.querySelector<HTMLSelectElement>("#fault");
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
  try {
    await connection.connect();
  } catch (error) {
    connection.needsToken ? connection.askForToken() : fail(error);
  }
}

/** Connect, and show what the caller may do and did. */
function begin(): void {
  connected = connect();
  void connected.then(showCaller).catch(fail);
}

async function showCaller(): Promise<void> {
  if (connection.isConnected) {
    await showParameters();
    await refresh();
  }
}

/** What an ask changes: the limits and the jobs. */
async function refresh(): Promise<void> {
  account.show(await (await connection.proxy()).standing());
  await history.refresh();
}

async function showParameters(): Promise<void> {
  parameters.show(endpoint.value ? await (await connection.proxy()).inputSchema(endpoint.value) : {});
  code.update();
}

/** Another proxy, or another account there: what was uploaded before may not be read by it. */
function reconnect(): void {
  begin();
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
    await refresh().catch(fail);
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
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  void ask();
});
form.addEventListener("input", () => code.update());
endpoint.addEventListener("change", () => void showParameters().catch(fail));
cancelButton.addEventListener("click", () => void current?.cancel().catch(fail));
begin();
