// Sessions for the signed-in users of your backend, minted with your tenant key:
//
//   export const POST = async () => respondWithSession(await signedInUser());

const UNAVAILABLE = "Sessions are not available at the moment.";

/** Answer a request of your user with a session of fal-proxy. Without a user the answer is 401. */
export async function respondWithSession(user, { ttlSeconds = 900, endpoints } = {}) {
  if (!user) return respond(401, { error_type: "signed_out", message: "Sign in first." });
  try {
    return await forward(await mint({ subject: String(user), ttl_seconds: ttlSeconds, endpoints }));
  } catch (error) {
    console.error("fal-proxy gave no session:", error.message);
    return respond(503, { error_type: "session_unavailable", message: UNAVAILABLE });
  }
}

function mint(form) {
  const { FAL_PROXY_URL: url, FAL_PROXY_TENANT_KEY: key } = process.env;
  // An error about a header would show the key.
  if (!url || !/^[!-~]+$/.test(key ?? "")) throw new Error("set FAL_PROXY_URL and FAL_PROXY_TENANT_KEY");
  return fetch(new URL("/v1/sessions", url), {
    method: "POST",
    headers: { authorization: `Bearer ${key}`, "content-type": "application/json" },
    body: JSON.stringify(form),
    redirect: "error",
    signal: AbortSignal.timeout(10_000),
  });
}

/** Pass on the session, or when to try again. Any other refusal is a mistake of this backend, not of its user. */
async function forward(answer) {
  const body = await answer.json();
  if (answer.ok) return respond(201, { token: body.token, expires_at: body.expires_at });
  const { error_type, message, retry_after, request_id } = body;
  if (retry_after) return respond(503, { error_type, message, retry_after }, { "retry-after": `${retry_after}` });
  throw new Error(`${answer.status} ${error_type} (request ${request_id}): ${message}`);
}

function respond(status, body, headers) {
  return Response.json(body, { status, headers: { "cache-control": "no-store", ...headers } });
}
