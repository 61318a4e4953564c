// The official proxy on one of its adapters: node server.mjs <modules> <adapter> <configuration>.
// Prints its port when it listens, and ends when its input does.

import { createRequire } from "node:module";
import path from "node:path";

const [modules, adapter, configuration] = process.argv.slice(2);
const load = createRequire(path.join(modules, "package.json"));

const sessions = new Set(["Bearer session-of-alice", "Bearer session-of-mallory"]);
const endpoints = ["fal-ai/llavav15-13b", "fal-ai/llava-next", "fal-ai/llava-llama3-8b-v11"];
const documented = {
  allowedEndpoints: [...endpoints, ...endpoints.map((endpoint) => `${endpoint}/stream`)],
  allowUnauthorizedRequests: false,
};
const configurations = {
  // What the package does when nothing is set.
  bare: {},
  // The options of fal's documentation for production; everything else as it comes.
  documented,
  // The most that its options can do: real sessions, and the key whatever the caller sent.
  careful: {
    ...documented,
    isAuthenticated: async (behavior) => sessions.has(behavior.getHeader("authorization")),
    resolveFalAuth: async () => `Key ${process.env.FAL_KEY}`,
  },
};
const config = configurations[configuration];

const servers = {
  express() {
    const express = load("express");
    const { createHandler, route } = load("@fal-ai/server-proxy/express");
    const app = express();
    // Its default of 100 kB would refuse the test's picture.
    app.use(express.json({ limit: "12mb" }));
    app.all(route, createHandler(config));
    return (ready) => {
      const server = app.listen(0, "127.0.0.1", () => ready(server.address()));
    };
  },
  hono() {
    const { Hono } = load("hono");
    const { createRouteHandler } = load("@fal-ai/server-proxy/hono");
    const app = new Hono();
    app.all("/api/fal/proxy", createRouteHandler(config));
    return served(app.fetch);
  },
  // The other frameworks hand a standard Request to a route's function and send the Response it returns.
  remix() {
    const { action, loader } = load("@fal-ai/server-proxy/remix").createProxy({ ...config, json: Response.json });
    return served((request) => (request.method === "GET" ? loader : action)({ request }));
  },
  svelte() {
    const handlers = load("@fal-ai/server-proxy/svelte").createRequestHandler(config);
    return served((request) => handlers[request.method]({ request }));
  },
};

function served(fetch) {
  const { serve } = load("@hono/node-server");
  return (ready) => serve({ fetch, port: 0, hostname: "127.0.0.1" }, ready);
}

servers[adapter]()(({ port }) => console.log(JSON.stringify({ port })));
process.stdin.resume().on("end", () => process.exit());
