// Runs one published fal client for JavaScript as an app would. Each line in asks for a scenario, each line out answers.
//
//   node scenarios.mjs <folder with node_modules> <package alias>

import { openAsBlob } from "node:fs";
import { Console } from "node:console";
import { createRequire } from "node:module";
import { createInterface } from "node:readline";
import { setTimeout as pause } from "node:timers/promises";

// The clients log to the console; stdout belongs to the answers.
globalThis.console = new Console(process.stderr, process.stderr);

const [folder, alias] = process.argv.slice(2);
const version = alias.match(/\d+\.\d+\.\d+$/)[0];
const isServerlessClient = alias.startsWith("serverless-client");
const knowsWhen = !isServerlessClient && version === "1.10.1";
// Before `when: "always"`, a client uses its proxyUrl only where it sees a page.
if (!knowsWhen) globalThis.window = { document: {} };

const library = createRequire(`${folder}/`)(alias);

// What `credentials: () => current` gives, which an app replaces by the renewed session.
let current;

function connect({ proxyUrl, session, sessionAs }) {
  current = session;
  const config = {
    proxyUrl: knowsWhen ? { url: proxyUrl, when: "always" } : proxyUrl,
    suppressLocalCredentialsWarning: true,
  };
  if (session && sessionAs === "header") {
    config.requestMiddleware = async (request) => ({
      ...request,
      headers: { ...request.headers, "x-fal-proxy-session": current },
    });
  } else if (session) {
    config.credentials = sessionAs === "function" ? () => current : session;
  }
  if (!isServerlessClient) return library.createFalClient(config);
  library.config(config);
  return library;
}

// The old package hands out the bare answer, the new one wraps it.
const shown = (result) =>
  isServerlessClient
    ? { output: result.output }
    : { output: result.data.output, requestId: result.requestId };

const picture = async (path, type) => new File([await openAsBlob(path)], path.split("/").pop(), { type });

const scenarios = {
  async run(fal, { endpoint, input, options }) {
    return shown(await fal.run(endpoint, { input, ...options }));
  },

  async submitStatusResult(fal, { endpoint, input }) {
    const submitted = await fal.queue.submit(endpoint, { input });
    const requestId = submitted.request_id;
    const seen = [];
    do {
      seen.push(await fal.queue.status(endpoint, { requestId, logs: true }));
      await pause(50);
    } while (seen.at(-1).status !== "COMPLETED");
    return { submitted, seen, result: shown(await fal.queue.result(endpoint, { requestId })) };
  },

  async subscribe(fal, { endpoint, input, mode, logs, options }) {
    const updates = [];
    const queued = [];
    const result = await fal.subscribe(endpoint, {
      input,
      logs,
      ...(mode === "streaming" ? { mode } : { pollInterval: 100 }),
      onEnqueue: (requestId) => queued.push(requestId),
      // A copy: the streaming mode goes on filling the list of logs it has handed out.
      onQueueUpdate: (update) => updates.push(structuredClone(update)),
      ...options,
    });
    return { ...shown(result), queued, updates };
  },

  async subscribeAndRenew(fal, { endpoint, input, proxyUrl }) {
    const ask = async (method, path) =>
      (await fetch(new URL(path, proxyUrl), { method, headers: { authorization: `Bearer ${current}` } })).json();
    const renew = async () => {
      current = (await ask("POST", "/v1/sessions/renew")).token;
      // By this the test sees that the next poll has the renewed session.
      return ask("GET", "/v1/session");
    };
    let renewal;
    const result = await fal.subscribe(endpoint, {
      input,
      pollInterval: 100,
      onQueueUpdate: () => {
        renewal ??= renew();
      },
    });
    await renewal;
    return { ...shown(result), session: current };
  },

  async stream(fal, { endpoint, input, connectionMode }) {
    const stream = await fal.stream(endpoint, { input, connectionMode });
    // All that comes; the loop of an old client leaves out what it is too late for.
    const heard = [];
    stream.on("data", (event) => heard.push(event));
    // Taken up before the loop: a failure would otherwise be an unhandled rejection while the loop still runs.
    const end = stream.done().then((last) => ({ last }), (error) => ({ error }));
    const events = [];
    for await (const event of stream) events.push(event);
    const { last, error } = await end;
    if (error) throw error;
    return { events, heard, last, requestId: stream.requestId };
  },

  async cancel(fal, { endpoint, input }) {
    const { request_id: requestId } = await fal.queue.submit(endpoint, { input });
    await fal.queue.cancel(endpoint, { requestId });
    let status;
    do {
      await pause(50);
      status = await fal.queue.status(endpoint, { requestId });
    } while (status.status !== "COMPLETED");
    const result = await fal.queue.result(endpoint, { requestId }).then(shown, failure);
    return { status, result };
  },

  async cancelCompleted(fal, { endpoint, input }) {
    const updates = [];
    await fal.subscribe(endpoint, { input, onQueueUpdate: (update) => updates.push(update), pollInterval: 100 });
    await fal.queue.cancel(endpoint, { requestId: updates.at(-1).request_id });
  },

  async upload(fal, { endpoint, input, path, type }) {
    const url = await fal.storage.upload(await picture(path, type));
    return { url, ...shown(await fal.run(endpoint, { input: { ...input, image_url: url } })) };
  },

  async uploadWithLifecycle(fal, { path, type, lifecycle }) {
    return { url: await fal.storage.upload(await picture(path, type), { lifecycle }) };
  },

  async blobInInput(fal, { endpoint, input, path, type }) {
    return shown(await fal.subscribe(endpoint, { input: { ...input, image_url: await picture(path, type) } }));
  },

  async status(fal, { endpoint, requestId }) {
    return fal.queue.status(endpoint, { requestId });
  },

  async result(fal, { endpoint, requestId }) {
    return shown(await fal.queue.result(endpoint, { requestId }));
  },

  async streamStatus(fal, { endpoint, requestId }) {
    return (await fal.queue.streamStatus(endpoint, { requestId })).done();
  },
};

function failure(error) {
  return {
    class: error.name,
    isApiError: error instanceof library.ApiError,
    isValidationError: error instanceof library.ValidationError,
    message: error.message,
    status: error.status ?? null,
    request_id: error.requestId ?? null,
    error_type: error.body?.error_type ?? null,
    timeout_type: error.timeoutType ?? null,
    fields: error instanceof library.ValidationError ? error.fieldErrors.map(({ loc }) => loc.at(-1)) : [],
    body: error.body ?? null,
  };
}

for await (const line of createInterface({ input: process.stdin })) {
  const { scenario, ...question } = JSON.parse(line);
  let answer;
  try {
    answer = { outcome: (await scenarios[scenario](connect(question), question)) ?? null };
  } catch (error) {
    answer = { error: failure(error) };
  }
  process.stdout.write(`${JSON.stringify(answer)}\n`);
}
