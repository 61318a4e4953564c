import { element } from "./dom";
import { Proxy, type Session } from "./proxy";

/** A link may name any proxy, and a token pasted here would go there. */
export class ForeignProxy extends Error {
  constructor(origin: string) {
    super(`This page sends no session to ${origin}. Who runs the page names the proxies it may use, in "proxy-origins".`);
  }
}

/** The panel that says which proxy the page talks to, and as whom. */
export class Connection {
  readonly #panel = element("connection", HTMLDetailsElement);
  readonly #address = element("proxy-address", HTMLInputElement);
  readonly #token = element("session-token", HTMLInputElement);
  readonly #badge = element("session", HTMLParagraphElement);
  readonly #endpoints = element("endpoint", HTMLSelectElement);
  #proxy?: Proxy;
  #expiresAt = 0;

  /** Starts at the proxy named by `?proxy=`, else at the page's own origin. */
  constructor(onConnect: () => void) {
    this.#address.value = new URLSearchParams(location.search).get("proxy") ?? location.origin;
    element("connect-form", HTMLFormElement).addEventListener("submit", (event) => {
      event.preventDefault();
      onConnect();
    });
  }

  /** True while nothing can be asked but with a token that is still to be typed. */
  get needsToken(): boolean {
    return this.#origin !== location.origin && this.#token.value === "";
  }

  /** Throws unless the address is this page's own origin, or one that the page names. */
  check(): void {
    const named = document.querySelector<HTMLMetaElement>('meta[name="proxy-origins"]')?.content.split(/\s+/) ?? [];
    if (![location.origin, ...named].includes(this.#origin)) {
      this.#panel.open = true;
      this.#say("Not connected", "off");
      throw new ForeignProxy(this.#origin);
    }
  }

  /** Open the panel for the token. */
  askForToken(): void {
    this.#panel.open = true;
    this.#say("Not connected: a session token is needed", "off");
  }

  /** Get a session and its endpoints. Throws what the proxy refuses. */
  async connect(): Promise<void> {
    this.check();
    this.#say("Connecting…", "off");
    const proxy = new Proxy(this.#origin, this.#token.value.trim());
    try {
      this.#showSession(await proxy.session());
      this.#offer(await proxy.endpoints());
    } catch (error) {
      this.#panel.open = true;
      this.#say("Not connected", "off");
      throw error;
    }
    this.#proxy = proxy;
  }

  /** The proxy, with a session that has not run out. */
  async proxy(): Promise<Proxy> {
    if (!this.#proxy || Date.now() >= this.#expiresAt) {
      await this.connect();
    }
    return this.#proxy!;
  }

  get #origin(): string {
    return new URL(this.#address.value).origin;
  }

  #showSession({ subject, expires_at }: Session): void {
    const expiry = new Date(expires_at);
    this.#expiresAt = expiry.getTime();
    const time = expiry.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
    this.#say(`${subject} · until ${time}`, "on");
  }

  #offer(endpoints: { id: string; title: string }[]): void {
    const chosen = this.#endpoints.value;
    this.#endpoints.replaceChildren(...endpoints.map(({ id, title }) => new Option(`${title} (${id})`, id, false, id === chosen)));
  }

  #say(text: string, state: "on" | "off"): void {
    this.#badge.textContent = text;
    this.#badge.dataset["state"] = state;
  }
}
