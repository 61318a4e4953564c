// Prints the answer of the kit for JavaScript backends: node mint.mjs <the kit's server.js> <user>

import { pathToFileURL } from "node:url";

const [kit, user] = process.argv.slice(2);
const { respondWithSession } = await import(pathToFileURL(kit).href);
const answer = await respondWithSession(user, { ttlSeconds: 60, endpoints: ["fal-ai/llava-next"] });
console.log(JSON.stringify([await answer.text(), answer.status, Object.fromEntries(answer.headers)]));
