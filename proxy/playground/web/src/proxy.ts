import { ApiError, createFalClient, type FalClient } from "@fal-ai/client";
import type { Schema } from "./parameters";
import { post } from "./transfer";

export interface Session {
  subject: string;
  expires_at: string;
}

export interface Endpoint {
  id: string;
  title: string;
}

export interface Quota {
  per: string;
  unit: string;
  window: string;
  limit: number;
  left: number;
  /** null: never. */
  resets_at: string | null;
}

/** What is left for a caller. */
export interface Standing {
  quotas: Quota[];
  in_flight: { subject: { used: number; limit: number | null } };
}

export interface ListedJob {
  id: string;
  endpoint: string;
  is_over: boolean;
  submitted_at: string;
}

/** A part of the list of jobs, and where the next begins. */
export interface JobPage {
  jobs: ListedJob[];
  next_cursor: string | null;
}

type Fetch = typeof fetch;

/** Gives the proof that a challenge wants of a guest. */
export type Solve = (challenge: unknown) => Promise<string>;

/** Without a token and a cookie, nothing can be asked here. */
export class NoGuests extends Error {}

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
  readonly #reach: Fetch;
  readonly #solve: Solve;
  readonly #left: AbortSignal;

  /** What the page itself asks is given up once `left` is aborted; calls of `client`, and uploads, go on. */
  constructor(address: string, token: string, fetch: Fetch, solve: Solve, left: AbortSignal) {
    this.#address = address;
    this.#token = token;
    this.#reach = reachWith(fetch);
    this.#solve = solve;
    this.#left = left;
    this.client = createFalClient({
      proxyUrl: `${address}/api/fal/proxy`,
      fetch: this.#reach,
      credentials: token || undefined,
      // The credential is a short-lived session of the proxy, not a fal key.
      suppressLocalCredentialsWarning: true,
    });
  }

  /** Who we are to the proxy. Without a token and a cookie, a guest: the answer's token is left alone, the cookie holds it. Throws `NoGuests`. */
  async session(): Promise<Session> {
    try {
      return await this.#call<Session>("/v1/session");
    } catch (error) {
      if (this.#token || !isRefusal(error, 401)) {
        throw error;
      }
      return this.#guest();
    }
  }

  async #guest(): Promise<Session> {
    try {
      return await this.#mint({});
    } catch (error) {
      if (error instanceof ApiError && error.body?.error_type === "proof_required") {
        return this.#mint({ proof: { kind: "pow", value: await this.#prove(error) } });
      }
      throw isRefusal(error, 403) ? new NoGuests(error.message) : error;
    }
  }

  #mint(form: object): Promise<Session> {
    return this.#call<Session>("/v1/sessions/guest", { method: "POST", body: JSON.stringify(form) });
  }

  /** The proof of work that the proxy wants. Throws `NoGuests` if it wants proofs of other kinds only. */
  async #prove(required: ApiError<unknown>): Promise<string> {
    let challenge: unknown;
    try {
      challenge = await this.#call("/v1/sessions/challenge");
    } catch (error) {
      throw isRefusal(error, 404) ? new NoGuests(required.message) : error;
    }
    return this.#solve(challenge);
  }

  /** The endpoints that this session may call. */
  async endpoints(): Promise<Endpoint[]> {
    const { endpoints } = await this.#call<{ endpoints: Endpoint[] }>("/v1/endpoints");
    return endpoints;
  }

  /** The JSON schema of an endpoint's input. */
  async inputSchema(endpoint: string): Promise<Schema> {
    const { input_schema } = await this.#call<{ input_schema: Schema }>(`/v1/endpoints/${endpoint}`);
    return input_schema;
  }

  /** What is left of each limit. */
  async standing(): Promise<Standing> {
    return this.#call<Standing>("/v1/session");
  }

  /** A page of the caller's jobs, newest first. */
  async jobs(cursor: string | null): Promise<JobPage> {
    return this.#call(`/v1/jobs?limit=10${cursor === null ? "" : `&cursor=${encodeURIComponent(cursor)}`}`);
  }

  async result(job: string): Promise<{ output?: string }> {
    return this.#call(`/v1/jobs/${encodeURIComponent(job)}/result`);
  }

  /** Goes on after the page has left the proxy, too. */
  async cancel(job: string): Promise<void> {
    await this.#call(`/v1/jobs/${encodeURIComponent(job)}`, { method: "DELETE", signal: null });
  }

  /** Send a file to fal and return its URL. `onProgress` receives the bytes sent so far; the fal client reports none. */
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
    const request = { signal: this.#left, ...init, headers };
    try {
      const response = await this.#reach(this.#address + path, request);
      return this.#checked<T>(response.status, await jsonOf(response));
    } catch (error) {
      // A browser may give another reason when it stops in the middle of a body.
      request.signal?.throwIfAborted();
      throw error;
    }
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

function isRefusal(error: unknown, status: number): error is ApiError<unknown> {
  return error instanceof ApiError && error.status === status;
}

function reachWith(fetch: Fetch): Fetch {
  return async (input, init) => {
    try {
      return await fetch(input, init);
    } catch (error) {
      throw error instanceof TypeError ? new Unreachable(error) : error;
    }
  };
}

async function jsonOf(response: Response): Promise<unknown> {
  const isJson = response.headers.get("content-type")?.includes("application/json");
  return isJson ? response.json() : undefined;
}
