let current;

/** The session of a guest of this page. `place` shows ALTCHA's widget while it does the work that the proxy may want. */
export async function guestSession(proxy, place) {
  if (current?.proxy !== proxy || Date.parse(current.expires_at) < Date.now() + 60_000) {
    current = { proxy, ...(await mint(proxy, place)) };
  }
  return current.token;
}

async function mint(proxy, place) {
  try {
    return await post(proxy, {});
  } catch (error) {
    if (error.body?.error_type !== "proof_required") throw error;
    return post(proxy, { proof: { kind: "pow", value: await solve(`${proxy}/v1/sessions/challenge`, place) } });
  }
}

async function post(proxy, form) {
  const answer = await fetch(`${proxy}/v1/sessions/guest`, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify(form),
  });
  const body = await answer.json();
  if (!answer.ok) throw Object.assign(new Error(body.message), { body });
  return body;
}

async function solve(challenge, place) {
  await import("./vendor/altcha.js");
  const widget = document.createElement("altcha-widget");
  widget.setAttribute("challenge", challenge);
  widget.setAttribute("auto", "onload");
  // If it fails, the visitor can start it again.
  const verified = new Promise((resolve) => widget.addEventListener("verified", resolve));
  place.replaceChildren(widget);
  const { detail } = await verified;
  place.replaceChildren();
  return detail.payload;
}
