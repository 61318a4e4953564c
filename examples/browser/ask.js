import { createFalClient } from "@fal-ai/client";
import { guestSession } from "./guest.js";

const form = document.querySelector("form");
const button = document.querySelector("button");
const status = document.querySelector("[role=status]");
const answer = document.querySelector("output");
const proof = document.querySelector("#proof");

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const { proxy, session, picture, prompt } = Object.fromEntries(new FormData(form));
  answer.textContent = "";
  button.disabled = true;
  try {
    const fal = createFalClient({
      proxyUrl: `${proxy}/api/fal/proxy`,
      credentials: session || (await guestSession(proxy, proof)),
      suppressLocalCredentialsWarning: true, // it is a short-lived session, no key
    });
    const { data } = await fal.subscribe("fal-ai/llava-next", {
      // The client uploads a file by itself, and sends its URL.
      input: { image_url: picture, prompt },
      mode: "streaming",
      onQueueUpdate: (update) => {
        status.textContent = `${update.status} ${update.queue_position ?? ""}`;
      },
    });
    answer.textContent = data.output;
  } catch (error) {
    status.textContent = `${error.message} (${error.body?.error_type ?? error.name})`;
  } finally {
    button.disabled = false;
  }
});
button.disabled = false;
