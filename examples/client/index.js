// Sessions of fal-proxy for @fal-ai/client. Copy this folder into your app, or install the package.
//
//   const fal = createFalClient(withSession("/api/fal/session", { proxyUrl: "https://ai.example.com/api/fal/proxy" }));

import { SessionError } from "./errors.js";

export { SessionError };

const HEADER = "x-fal-proxy-session";

/**
 * Configure a fal client to call the proxy with sessions of your backend: `source` is the URL of its route that mints
 * them, or a function.
 */
export function withSession(source, options) {
  const { proxyUrl, earlySeconds = 60, fetch = globalThis.fetch, now = () => Date.now() } = options;
  // A browser's fetch refuses to be called as a method.
  const send = (input, init) => fetch(input, init);
  const url = new URL(proxyUrl, globalThis.location?.href).href;
  const getSession = typeof source === "function" ? source : () => requestSession(send, source);
  const sessions = new Sessions(getSession, new URL("/v1/sessions/renew", url), earlySeconds * 1000, send, now);
  return {
    proxyUrl: { url, when: "always" },
    // Otherwise the client would send the FAL_KEY of a server's environment.
    credentials: undefined,
    fetch: (input, init) => (String(input) === url ? sessions.call(input, init) : send(input, init)),
  };
}

async function requestSession(send, url) {
  const answer = await send(url, { method: "POST" });
  const body = await answer.json().catch(() => undefined);
  if (!answer.ok) throw new SessionError(body?.message ?? `${url} answered ${answer.status}`, answer.status, body);
  return body;
}

class Sessions {
  #current; // {token, renewAt, endsAt}
  #fetching; // the one request for the next session

  constructor(getSession, renewUrl, earlyMs, send, now) {
    Object.assign(this, { getSession, renewUrl, earlyMs, send, now });
  }

  /** Call the proxy. A 401 ran nothing, so the call is repeated once with a new session. */
  async call(url, init) {
    const session = await this.#usable();
    const answer = await this.#call(url, init, session);
    if (answer.status !== 401) return answer;
    await answer.body?.cancel();
    // Others may have met the 401 first, and have a new session already.
    if (this.#current === session) this.#current = undefined;
    return this.#call(url, init, await this.#usable());
  }

  #call(url, init, { token }) {
    return this.send(url, { ...init, headers: { ...init?.headers, [HEADER]: token } });
  }

  /** The session, or the next one. Calls do not wait for a renewal while there is time left. */
  async #usable() {
    const session = this.#current;
    if (!session || this.now() >= session.endsAt) return this.#next(undefined);
    if (this.now() >= session.renewAt) this.#next(session).catch(() => {});
    return session;
  }

  #next(session) {
    this.#fetching ??= this.#fetch(session).finally(() => (this.#fetching = undefined));
    return this.#fetching;
  }

  async #fetch(session) {
    const { token, expires_at } = (session && (await this.#renew(session))) || (await this.getSession()) || {};
    if (typeof token !== "string") throw new SessionError("your backend gave no session: {token, expires_at}");
    const now = this.now();
    const lifetime = Date.parse(expires_at) - now;
    // On a device whose clock is wrong, a session is good until the proxy says 401.
    const knows = lifetime > 0;
    return (this.#current = {
      token,
      renewAt: knows ? now + Math.max(lifetime / 2, lifetime - this.earlyMs) : Infinity,
      endsAt: knows ? now + lifetime : Infinity,
    });
  }

  /** The renewed session; nothing if the proxy does not renew it any more. */
  async #renew({ token }) {
    try {
      const answer = await this.send(this.renewUrl, { method: "POST", headers: { [HEADER]: token } });
      return answer.ok ? await answer.json() : undefined;
    } catch {
      return undefined;
    }
  }
}
