import { element } from "./dom";
import { ProofOfWork } from "./proof";
import { NoGuests, Proxy, type Session } from "./proxy";

/** A link may name any proxy, and a token pasted here would go there. */
export class ForeignProxy extends Error {
  constructor(origin: string) {
    super(`This page sends no session to ${origin}. Who runs the page names the proxies it may use, in "proxy-origins".`);
  }
}

/** What only a tenant's backend may hold. */
const TENANT_KEY = /^fpk_/;

/** The panel that says which proxy the page talks to, and as whom. */
export class Connection {
  readonly #panel = element("connection", HTMLDetailsElement);
  readonly #address = element("proxy-address", HTMLInputElement);
  readonly #token = element("session-token", HTMLInputElement);
  readonly #badge = element("session", HTMLParagraphElement);
  readonly #endpoints = element("endpoint", HTMLSelectElement);
  readonly #proof = new ProofOfWork();
  readonly #fetch: typeof globalThis.fetch;
  #proxy?: Proxy;
  #takesGuests = true;
  #expiresAt = 0;

  /** Starts at the proxy named by `?proxy=`, else at the page's own origin. */
  constructor(onConnect: () => void, fetch: typeof globalThis.fetch) {
    this.#fetch = fetch;
    this.#address.value = new URLSearchParams(location.search).get("proxy") ?? location.origin;
    element("connect-form", HTMLFormElement).addEventListener("submit", (event) => {
      event.preventDefault();
      this.#takesGuests = true;
      onConnect();
    });
  }

  /** True while nothing can be asked but with a token that is still to be typed. */
  get needsToken(): boolean {
    return this.#token.value === "" && (this.origin !== location.origin || !this.#takesGuests);
  }

  /** Throws unless the address is this page's own origin, or one that the page names, and the token may be a session. */
  check(): void {
    if (TENANT_KEY.test(this.#token.value.trim())) {
      this.askForToken();
      throw new Error("This is a tenant key, which belongs on a server. Paste a session that was minted with it.");
    }
    const named = document.querySelector<HTMLMetaElement>('meta[name="proxy-origins"]')?.content.split(/\s+/) ?? [];
    if (![location.origin, ...named].includes(this.origin)) {
      this.#panel.open = true;
      this.#say("Not connected", "off");
      throw new ForeignProxy(this.origin);
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
    const proxy = new Proxy(this.origin, this.#token.value.trim(), this.#fetch, (challenge) => this.#proof.solve(challenge));
    try {
      this.#showSession(await proxy.session());
      this.#offer(await proxy.endpoints());
    } catch (error) {
      this.#takesGuests = !(error instanceof NoGuests);
      this.#panel.open = true;
      this.#say("Not connected", "off");
      throw error;
    }
    this.#proxy = proxy;
  }

  get isConnected(): boolean {
    return this.#proxy !== undefined;
  }

  /** The proxy, with a session that has not run out. */
  async proxy(): Promise<Proxy> {
    if (!this.#proxy || Date.now() >= this.#expiresAt) {
      await this.connect();
    }
    return this.#proxy!;
  }

  get origin(): string {
    return new URL(this.#address.value).origin;
  }

  #showSession({ subject, expires_at }: Session): void {
    const expiry = new Date(expires_at);
    this.#expiresAt = expiry.getTime();
    const time = expiry.toLocaleString([], { dateStyle: "medium", timeStyle: "short" });
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
