// What the page uses of the published client; `npm ci` writes it, as one ES module, to vendor/fal-client.js.
export { createFalClient } from "@fal-ai/client";
