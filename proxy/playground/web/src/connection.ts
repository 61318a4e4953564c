import { element } from "./dom";
import { Latest, Overtaken } from "./latest";
import { ProofOfWork } from "./proof";
import { NoGuests, Proxy, type Endpoint, type Session } from "./proxy";

/** A link may name any proxy, and a token pasted here would go there. */
export class ForeignProxy extends Error {
  constructor(origin: string) {
    super(`This page sends no session to ${origin}. Who runs the page names the proxies it may use, in "proxy-origins".`);
  }
}

/** Nothing can be asked but with a token that is still to be typed. */
export class TokenNeeded extends Error {
  constructor() {
    super("A session token is needed: paste it above, under Connection.");
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
  readonly #latest = new Latest();
  /** Aborted once the page connects again. */
  #left = this.#latest.next();
  #connected?: Promise<Proxy>;
  #takesGuests = true;
  /** When the connection has to be made again: also after a failure. */
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

  /**
   * Get a session of the proxy that the panel names, and its endpoints. What was asked of the former proxy is dropped.
   *
   * Throws what the proxy refuses, `ForeignProxy`, `TokenNeeded`, and `Overtaken` if this is called again meanwhile.
   */
  connect(): Promise<Proxy> {
    this.#left = this.#latest.next();
    return this.#renew();
  }

  /** The proxy, with a session that has not run out. */
  async proxy(): Promise<Proxy> {
    try {
      return await (Date.now() < this.#expiresAt ? this.#connected! : this.#renew());
    } catch (error) {
      if (error instanceof Overtaken) {
        return this.proxy();
      }
      throw error;
    }
  }

  get origin(): string {
    return new URL(this.#address.value).origin;
  }

  #renew(): Promise<Proxy> {
    // While a session is on its way, all wait for that one.
    this.#expiresAt = Infinity;
    this.#connected = this.#open(this.#left);
    return this.#connected;
  }

  async #open(left: AbortSignal): Promise<Proxy> {
    try {
      this.#check();
      this.#say("Connecting…", "off");
      const solve = (challenge: unknown) => this.#proof.solve(challenge, left);
      const proxy = new Proxy(this.origin, this.#token.value.trim(), this.#fetch, solve, left);
      const session = await proxy.session();
      this.#offer(await proxy.endpoints());
      this.#showSession(session);
      return proxy;
    } catch (error) {
      left.throwIfAborted();
      throw this.#refuse(error);
    }
  }

  /** Throws unless the address is this page's own origin, or one that the page names, and there may be a session. */
  #check(): void {
    if (TENANT_KEY.test(this.#token.value.trim())) {
      throw new Error("This is a tenant key, which belongs on a server. Paste a session that was minted with it.");
    }
    const named = document.querySelector<HTMLMetaElement>('meta[name="proxy-origins"]')?.content.split(/\s+/) ?? [];
    if (![location.origin, ...named].includes(this.origin)) {
      throw new ForeignProxy(this.origin);
    }
    if (this.#token.value === "" && (this.origin !== location.origin || !this.#takesGuests)) {
      throw new TokenNeeded();
    }
  }

  /** Show that there is no connection. Returns the error for the person at the page. */
  #refuse(error: unknown): unknown {
    this.#expiresAt = 0;
    this.#takesGuests &&= !(error instanceof NoGuests);
    const reason = error instanceof NoGuests ? new TokenNeeded() : error;
    this.#panel.open = true;
    this.#say(reason instanceof TokenNeeded ? "Not connected: a session token is needed" : "Not connected", "off");
    return reason;
  }

  #showSession({ subject, expires_at }: Session): void {
    const expiry = new Date(expires_at);
    this.#expiresAt = expiry.getTime();
    const time = expiry.toLocaleString([], { dateStyle: "medium", timeStyle: "short" });
    this.#say(`${subject} · until ${time}`, "on");
  }

  #offer(endpoints: Endpoint[]): void {
    const chosen = this.#endpoints.value;
    this.#endpoints.replaceChildren(...endpoints.map(({ id, title }) => new Option(`${title} (${id})`, id, false, id === chosen)));
  }

  #say(text: string, state: "on" | "off"): void {
    this.#badge.textContent = text;
    this.#badge.dataset["state"] = state;
  }
}
