export interface MintOptions {
  /** How long a session lives before it is renewed; 900 if not given. */
  ttlSeconds?: number;
  /** The endpoints that the session may call; all of your plan if not given. */
  endpoints?: string[];
}

/**
 * Answer a request of your user with a session of fal-proxy. Without a user the answer is 401. It reads FAL_PROXY_URL
 * and FAL_PROXY_TENANT_KEY from the environment.
 */
export function respondWithSession(user: string | number | null | undefined, options?: MintOptions): Promise<Response>;
