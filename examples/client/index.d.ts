import type { createFalClient } from "@fal-ai/client";

type Config = NonNullable<Parameters<typeof createFalClient>[0]>;

/** What `POST /v1/sessions` of fal-proxy answers to your backend. */
export interface Session {
  token: string;
  /** ISO 8601. */
  expires_at: string;
}

export interface SessionOptions {
  /** The proxy's route for fal clients, such as `https://ai.example.com/api/fal/proxy`. */
  proxyUrl: string;
  /** How long before its end a session is renewed; at half of its life at the earliest. */
  earlySeconds?: number;
  fetch?: typeof fetch;
  /** Milliseconds since 1970. */
  now?: () => number;
}

/**
 * Configure a fal client to call the proxy with sessions of your backend: `source` is the URL of its route that mints
 * them, or a function.
 */
export function withSession(
  source: string | URL | (() => Session | Promise<Session>),
  options: SessionOptions,
): Pick<Config, "proxyUrl" | "credentials" | "fetch">;

export { SessionError } from "./errors.js";
