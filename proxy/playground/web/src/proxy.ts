import { ApiError, createFalClient, type FalClient } from "@fal-ai/client";
import { post } from "./transfer";

export interface Session {
  subject: string;
  expires_at: string;
}

export interface Endpoint {
  id: string;
  title: string;
}

/** No answer at all. A browser does not tell a script whether the server is away or CORS refused. */
export class Unreachable extends Error {
  constructor(cause: unknown) {
    super("The proxy cannot be reached, or it does not allow this page's origin.", { cause });
  }
}

/**
 * One fal-proxy, and how this page is known to it: by a session token, or (same origin) by the HttpOnly cookie.
 *
 * The token lives in this object only, never in storage, an address or a cookie that a script can read.
 */
export class Proxy {
  readonly client: FalClient;
  readonly #address: string;
  readonly #token: string;

  constructor(address: string, token: string) {
    this.#address = address;
    this.#token = token;
    this.client = createFalClient({
      proxyUrl: `${address}/api/fal/proxy`,
      fetch: reach,
      credentials: token || undefined,
      // The credential is a short-lived session of the proxy, not a fal key.
      suppressLocalCredentialsWarning: true,
    });
  }

  /** Who we are to the proxy. Without a token and a cookie, a guest: the answer's token is left alone, the cookie holds it. */
  async session(): Promise<Session> {
    try {
      return await this.#call<Session>("/v1/session");
    } catch (error) {
      if (this.#token || !(error instanceof ApiError && error.status === 401)) {
        throw error;
      }
      return this.#call<Session>("/v1/sessions/guest", { method: "POST", body: "{}" });
    }
  }

  /** The endpoints that this session may call. */
  async endpoints(): Promise<Endpoint[]> {
    const { endpoints } = await this.#call<{ endpoints: Endpoint[] }>("/v1/endpoints");
    return endpoints;
  }

  /** Send a file to fal: its address there. `onProgress` is told how many bytes went out; the fal client tells nothing. */
  async upload(file: File, onProgress: (sent: number) => void, stop: AbortSignal): Promise<string> {
    const address = `${this.#address}/v1/uploads?file_name=${encodeURIComponent(file.name)}`;
    const { status, body } = await post(address, file, this.#headers(), onProgress, stop);
    return this.#checked<{ url: string }>(status, body).url;
  }

  async #call<T>(path: string, init: RequestInit = {}): Promise<T> {
    const headers = this.#headers();
    if (init.body) {
      headers["content-type"] = "application/json";
    }
    const response = await reach(this.#address + path, { ...init, headers });
    return this.#checked<T>(response.status, await jsonOf(response));
  }

  #headers(): Record<string, string> {
    const headers: Record<string, string> = { accept: "application/json" };
    if (this.#token) {
      headers["authorization"] = `Bearer ${this.#token}`;
    }
    return headers;
  }

  #checked<T>(status: number, body: unknown): T {
    if (status >= 200 && status < 300 && body !== undefined) {
      return body as T;
    }
    throw new ApiError({ message: `${this.#address} does not answer like a fal-proxy.`, status, body });
  }
}

const reach: typeof fetch = async (input, init) => {
  try {
    return await fetch(input, init);
  } catch (error) {
    throw error instanceof TypeError ? new Unreachable(error) : error;
  }
};

async function jsonOf(response: Response): Promise<unknown> {
  const isJson = response.headers.get("content-type")?.includes("application/json");
  return isJson ? response.json() : undefined;
}
