import { createFalClient } from "@fal-ai/client";
import { withSession } from "@fal-proxy/client";

const backend = process.env.EXPO_PUBLIC_BACKEND_URL;
const proxyUrl = process.env.EXPO_PUBLIC_FAL_PROXY_URL; // such as https://ai.example.com/api/fal/proxy

/** The fal client for a signed-in user; `login()` returns the token with which your app calls your backend. */
export function falFor(login) {
  async function getSession() {
    const headers = { authorization: `Bearer ${await login()}` };
    const answer = await fetch(`${backend}/api/fal/session`, { method: "POST", headers });
    if (!answer.ok) throw new Error(`no session: status ${answer.status}`);
    return answer.json();
  }
  return createFalClient(withSession(getSession, { proxyUrl }));
}
