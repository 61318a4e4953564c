// Uses the kit of examples/client as an app would. Each line in asks for a scenario, each line out answers.
//
//   node client_kit.mjs <the kit's index.js> <folder of @fal-ai/client>

import { Console } from "node:console";
import { createRequire } from "node:module";
import { createInterface } from "node:readline";
import { pathToFileURL } from "node:url";

globalThis.console = new Console(process.stderr, process.stderr);

const [kit, library] = process.argv.slice(2);
const { withSession } = await import(pathToFileURL(kit).href);
const { createFalClient } = createRequire(import.meta.url)(library);

const ENDPOINT = "fal-ai/llava-next";
let fal, minted, sent, now;

const commands = {
  // The backend of this app mints with the tenant's key; `tokens` stands for one that gives these instead.
  // The clock of the device stands still: at `startsAt`, in seconds, until the app waits.
  connect({ proxyUrl, tenantKey, ttl, tokens, failsAfter, earlySeconds, startsAt }) {
    [minted, sent, now] = [0, [], startsAt * 1000];
    const getSession = async () => {
      minted += 1;
      if (minted > (failsAfter ?? Infinity)) throw new Error("you are logged out");
      if (tokens) return { token: tokens[Math.min(minted, tokens.length) - 1], expires_at: "2999-01-01T00:00:00Z" };
      const answer = await fetch(new URL("/v1/sessions", proxyUrl), {
        method: "POST",
        headers: { authorization: `Bearer ${tenantKey}`, "content-type": "application/json" },
        body: JSON.stringify({ subject: "alice", ttl_seconds: ttl }),
      });
      return answer.json();
    };
    const recording = async (url, init) => {
      const answer = await fetch(url, init);
      const { pathname } = new URL(url);
      sent.push({ pathname, method: init.method, headers: init.headers ?? {}, status: answer.status });
      return answer;
    };
    const options = { proxyUrl, earlySeconds, fetch: recording, now: () => now };
    fal = createFalClient(withSession(getSession, options));
  },

  async run({ input, times = 1 }) {
    const runs = Array.from({ length: times }, () => fal.run(ENDPOINT, { input }));
    return (await Promise.all(runs)).map(({ data }) => data.output);
  },

  async subscribe({ input, mode, secondsOnUpdate }) {
    let hasWaited = false;
    const result = await fal.subscribe(ENDPOINT, {
      input,
      ...(mode === "streaming" ? { mode } : { pollInterval: 100 }),
      onQueueUpdate: () => {
        if (!hasWaited) now += secondsOnUpdate * 1000;
        hasWaited = true;
      },
    });
    return result.data.output;
  },

  async upload() {
    return fal.storage.upload(new Blob([Buffer.from("iVBORw0KGgo=", "base64")], { type: "image/png" }));
  },

  wait: ({ seconds }) => void (now += seconds * 1000),

  facts: () => ({ minted, sent }),
};

for await (const line of createInterface({ input: process.stdin })) {
  const { scenario, ...question } = JSON.parse(line);
  let answer;
  try {
    answer = { outcome: (await commands[scenario](question)) ?? null };
  } catch (error) {
    answer = { error: { name: error.name, message: error.message, status: error.status ?? null } };
  }
  process.stdout.write(`${JSON.stringify(answer)}\n`);
}
