// Uses the types that openapi-typescript generated: the compiler checks each call against /openapi.json.
import createClient from "openapi-fetch";
import type { components, paths } from "./schema.js";

const [url, session] = process.argv.slice(2) as [string, string];
const proxy = createClient<paths>({ baseUrl: url, headers: { authorization: `Bearer ${session}` } });

const input = { image_url: "data:image/png;base64,iVBORw0KGgo=", prompt: "What is this?" };
const created = await proxy.POST("/v1/jobs", { body: { endpoint: "fal-ai/llava-next", input } });
const id = (created.data as components["schemas"]["Job"]).id;
const listed = await proxy.GET("/v1/jobs", { params: { query: { limit: 1 } } });
const refused = await proxy.GET("/v1/jobs/{id}", { params: { path: { id: "never" } } });
const facts = await proxy.GET("/v1/session");

console.log(
  JSON.stringify({
    created: id,
    listed: listed.data?.jobs.map((job) => job.id),
    cursor: listed.data?.next_cursor,
    refused: (refused.error as components["schemas"]["Refusal"]).error_type,
    subject: facts.data?.subject,
  }),
);
