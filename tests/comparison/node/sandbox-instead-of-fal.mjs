// Preloaded into the official proxy's process: what it fetches from fal's hosts comes from the sandbox instead.
// Everything else about fetch is Node's own, and the package itself is as it was published.

const sandbox = process.env.SANDBOX_URL;
const prefixes = {
  "fal.run": "/run",
  "queue.fal.run": "/queue",
  "rest.fal.ai": "/rest",
  "rest.alpha.fal.ai": "/rest",
};
const nodeFetch = globalThis.fetch;

globalThis.fetch = async (input, init) => {
  const url = new URL(input);
  // `host` has the port, unless it is the scheme's own: https://fal.run:8443 is not fal.
  if (!(url.host in prefixes)) throw new TypeError(`only fal's hosts are reachable here, not ${url.host}`);
  const there = new URL(sandbox + prefixes[url.host] + url.pathname + url.search);
  // Node's fetch is to see these as it would have.
  there.username = url.username;
  there.password = url.password;
  return nodeFetch(there, { ...init, headers: renamed(init.headers) });
};

/** The sandbox answers 400 to `x-fal-target-url`; fal does not mind it, so it travels under another name. */
function renamed(given) {
  const headers = new Headers(given);
  const target = headers.get("x-fal-target-url");
  if (target !== null) {
    headers.delete("x-fal-target-url");
    headers.set("received-x-fal-target-url", target);
  }
  return headers;
}
