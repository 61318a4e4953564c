import { element } from "./dom";

/** So many requests are kept; polls would fill the page otherwise. */
const MOST = 50;
/** Parts of a path that are credentials: a session, and the address of an upload. */
const SECRETS_IN_PATH = /\/(s|uploads)\/[^/]+/;

/** The page's requests to the proxy: what was sent, what came back, and under which id the proxy logged it. */
export class Requests {
  readonly #list = element("requests", HTMLOListElement);

  /** `fetch`, and a line for each request. */
  async fetch(input: RequestInfo | URL, init?: RequestInit): Promise<Response> {
    const started = performance.now();
    const request = new Request(input, init);
    try {
      const response = await fetch(input, init);
      this.#add(request, performance.now() - started, response);
      return response;
    } catch (error) {
      this.#add(request, performance.now() - started);
      throw error;
    }
  }

  #add(request: Request, milliseconds: number, response?: Response): void {
    const target = request.headers.get("x-fal-target-url");
    const path = new URL(target ?? request.url).pathname.replace(SECRETS_IN_PATH, "/$1/…");
    const item = document.createElement("li");
    const details = document.createElement("details");
    const summary = document.createElement("summary");
    summary.textContent = `${request.method} ${path} · ${response?.status ?? "no answer"} · ${milliseconds.toFixed(0)} ms`;
    const text = document.createElement("pre");
    text.tabIndex = 0;
    text.textContent = [...sent(request), "", ...(response ? received(response) : [])].join("\n");
    details.append(summary, text);
    item.append(details);
    this.#list.prepend(item);
    this.#list.children[MOST]?.remove();
  }
}

function* sent(request: Request): Generator<string> {
  for (const [name, value] of request.headers) {
    yield `> ${name}: ${name === "authorization" ? "…" : value}`;
  }
}

function* received(response: Response): Generator<string> {
  yield `< ${response.status}`;
  for (const [name, value] of response.headers) {
    yield `< ${name}: ${value}`;
  }
}
