/** The refusal of your backend that gives out sessions; has the fields of the fal client's errors. */
export class SessionError extends Error {
  constructor(message, status, body) {
    super(message);
    Object.assign(this, { name: "SessionError", status, body });
  }
}

/** Describe what a call of a fal client threw, in plain values. */
export function describeError(error) {
  const { body, status } = error;
  const problems = Array.isArray(body?.detail) ? body.detail : [];
  return {
    error_type: body?.error_type ?? problems[0]?.type ?? nameOf(error),
    message: body?.message ?? problems[0]?.msg ?? (typeof body?.detail === "string" ? body.detail : error.message),
    status,
    retry_after: body?.retry_after,
    fields: Object.fromEntries(problems.map(({ loc, msg }) => [loc?.at(-1), msg])),
    cause: error,
  };
}

/** `fetch` throws a TypeError if no answer came. */
function nameOf(error) {
  return error instanceof TypeError ? "network_error" : error.name;
}
