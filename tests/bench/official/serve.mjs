// The official proxy as its documentation sets it up: `node serve.mjs hono|express PORT UPSTREAM`.
// It reaches fal by global fetch and has no setting for another host, so that here, and only here, fetch maps fal's two
// hosts to the static upstream.
import process from "node:process";

const [framework, port, upstream] = process.argv.slice(2);
const hosts = { "https://queue.fal.run": `${upstream}/queue`, "https://fal.run": `${upstream}/run` };
const realFetch = globalThis.fetch;
globalThis.fetch = (url, options) => {
  const host = Object.keys(hosts).find((host) => url.startsWith(`${host}/`));
  if (!host) throw new Error(`not one of fal's hosts: ${url}`);
  return realFetch(hosts[host] + url.slice(host.length), options);
};

const config = { allowedEndpoints: ["fal-ai/**"], isAuthenticated: async () => true };

const servers = {
  async hono() {
    const { Hono } = await import("hono");
    const { serve } = await import("@hono/node-server");
    const { createRouteHandler } = await import("@fal-ai/server-proxy/hono");
    const app = new Hono();
    app.all("/api/fal/proxy", createRouteHandler(config));
    serve({ fetch: app.fetch, hostname: "127.0.0.1", port: Number(port) });
  },
  async express() {
    const { default: express } = await import("express");
    const { createHandler, route } = await import("@fal-ai/server-proxy/express");
    const app = express();
    app.all(route, express.json({ limit: "12mb" }), createHandler(config));
    app.listen(Number(port), "127.0.0.1");
  },
};

await servers[framework]();
