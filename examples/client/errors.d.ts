/** Why a call failed, in plain values. */
export interface CallError {
  /** The code of fal-proxy or fal; `network_error` if no answer came; else the name of what was thrown. */
  error_type: string;
  message: string;
  /** The HTTP status, if an answer came. */
  status?: number;
  /** Seconds until the call can succeed. */
  retry_after?: number;
  /** What is wrong with which field of the input. */
  fields: Record<string, string>;
  /** What was thrown. */
  cause: unknown;
}

/** Describe what a call of a fal client threw, in plain values. */
export function describeError(error: unknown): CallError;

/** The refusal of your backend that gives out sessions; has the fields of the fal client's errors. */
export class SessionError extends Error {
  constructor(message: string, status?: number, body?: unknown);
  readonly status?: number;
  readonly body?: unknown;
}
