// Ask LLaVA about a picture, through fal-proxy: node ask.mjs cat.png "What is in this picture?"
import { openAsBlob } from "node:fs";
import { extname } from "node:path";
import { createFalClient } from "@fal-ai/client";

const TYPES = { ".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".webp": "image/webp", ".gif": "image/gif" };
const [picture, prompt = "What is in this picture?"] = process.argv.slice(2);
const { FAL_PROXY_URL, FAL_PROXY_SESSION } = process.env;
if (!picture || !FAL_PROXY_URL || !FAL_PROXY_SESSION) {
  console.error("usage: FAL_PROXY_URL=… FAL_PROXY_SESSION=… node ask.mjs PICTURE [QUESTION]");
  process.exit(2);
}

const fal = createFalClient({
  // Outside a page the client uses proxyUrl only with `when: "always"`.
  proxyUrl: { url: `${FAL_PROXY_URL}/api/fal/proxy`, when: "always" },
  credentials: FAL_PROXY_SESSION,
});

try {
  const image_url = await fal.storage.upload(await openAsBlob(picture, { type: TYPES[extname(picture).toLowerCase()] }));
  const { data } = await fal.subscribe("fal-ai/llava-next", {
    input: { image_url, prompt },
    mode: "streaming",
    logs: true,
    onQueueUpdate: (update) => console.error(update.status, update.queue_position ?? ""),
  });
  console.log(data.output);
} catch (error) {
  // Refusals of the proxy name their kind: session_expired, endpoint_not_allowed, invalid_input, …
  console.error(`${error.message} (${error.body?.error_type ?? error.name})`);
  process.exit(1);
}
