import { serve } from "@hono/node-server";
import { Hono } from "hono";
import { getCookie } from "hono/cookie";
import { respondWithSession } from "@fal-proxy/client/server";

// Stand-in for your own login. Replace it with what knows the user of a request.
const users = new Map([["login-of-alice", "alice"]]);
const signedInUser = (context) => users.get(getCookie(context, "login"));

const app = new Hono();

app.post("/api/fal/session", (context) => respondWithSession(signedInUser(context)));

serve({ fetch: app.fetch, port: Number(process.env.PORT ?? 3000) });
