import express from "express";
import { respondWithSession } from "@fal-proxy/client/server";

// Stand-in for your own login, such as Passport. Replace it with what knows the user of a request.
const users = new Map([["login=login-of-alice", "alice"]]);
const signedInUser = (request) => users.get(request.headers.cookie);

const app = express();

app.post("/api/fal/session", async (request, response) => {
  const answer = await respondWithSession(signedInUser(request));
  response.status(answer.status).set(Object.fromEntries(answer.headers)).send(await answer.text());
});

app.listen(process.env.PORT ?? 3000);
