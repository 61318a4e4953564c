// A call of a model as React state. Use it with a client that renews its sessions (index.js):
//
//   const fal = createFalClient(withSession("/api/fal/session", { proxyUrl })); // outside of your components
//   const { status, result, error, submit, cancel } = useFalProxy(fal, "fal-ai/llava-next");

import { useCallback, useEffect, useMemo, useRef, useState } from "react";
import { describeError } from "./errors.js";

const IDLE = Object.freeze({ status: "idle", logs: [] });
const BUSY = ["uploading", "queued", "running"];

/** Call an endpoint, and show the state of the newest call. */
export function useFalProxy(fal, endpointId) {
  const [state, setState] = useState(IDLE);
  const newest = useRef(undefined);

  const replace = useCallback((call) => {
    newest.current?.leave();
    newest.current = call;
  }, []);
  useEffect(() => () => replace(undefined), [replace]);

  const actions = useMemo(() => {
    const start = () => {
      const call = new Call(fal, endpointId, (next) => newest.current === call && setState(next));
      replace(call);
      return call;
    };
    return {
      submit: (input) => start().submit(input),
      run: (input) => start().run(input),
      follow: (requestId) => start().follow(requestId),
      cancel: async () => (await newest.current?.cancel()) ?? false,
      reset() {
        replace(undefined);
        setState(IDLE);
      },
    };
  }, [fal, endpointId, replace]);

  return { ...state, busy: BUSY.includes(state.status), ...actions };
}

class Call {
  #state = IDLE;
  #following = new AbortController();
  #job; // the submitted job, or the promise of it
  #cancelled = false;

  constructor(fal, endpointId, show) {
    Object.assign(this, { fal, endpointId, show });
  }

  submit(input) {
    return this.#settle(async () => {
      const ready = await this.#upload(input);
      this.#show({ status: "queued" });
      this.#job = this.fal.queue.submit(this.endpointId, { input: ready, headers: onceOnly() });
      return this.#outcome((await this.#job).request_id);
    });
  }

  follow(requestId) {
    this.#job = { request_id: requestId };
    return this.#settle(() => this.#outcome(requestId));
  }

  run(input) {
    return this.#settle(async () => {
      const ready = await this.#upload(input);
      this.#show({ status: "running" });
      return this.fal.run(this.endpointId, { input: ready, abortSignal: this.#following.signal });
    });
  }

  /** Cancel the job, or stop a call that has none. False if it goes on. */
  async cancel() {
    if (!BUSY.includes(this.#state.status)) return false;
    this.#cancelled = true;
    if (this.#job) return this.#cancelJob();
    this.#show({ status: "cancelled" });
    this.leave();
    return true;
  }

  async #cancelJob() {
    try {
      await this.fal.queue.cancel(this.endpointId, { requestId: (await this.#job).request_id });
    } catch {
      this.#cancelled = false; // The job is finished already, or the proxy did not answer.
    }
    return this.#cancelled;
  }

  /** Follow the call no longer. A job goes on at fal. */
  leave() {
    this.#following.abort();
  }

  async #upload(input) {
    if (hasFile(input)) this.#show({ status: "uploading" });
    const ready = await this.fal.storage.transformInput(input);
    this.#checkFollowed();
    return ready;
  }

  async #outcome(requestId) {
    this.#show({ status: "queued", requestId });
    this.#checkFollowed();
    await this.#watch(requestId);
    return this.fal.queue.result(this.endpointId, { requestId, abortSignal: this.#following.signal });
  }

  async #watch(requestId) {
    const last = await this.#stream(requestId).catch(() => undefined);
    if (last?.status === "COMPLETED") return;
    // The stream broke, or this platform (such as React Native) cannot read one.
    await this.fal.queue.subscribeToStatus(this.endpointId, {
      requestId,
      logs: true,
      abortSignal: this.#following.signal,
      onQueueUpdate: (update) => this.#see(update, update.logs),
    });
  }

  async #stream(requestId) {
    const stream = await this.fal.queue.streamStatus(this.endpointId, { requestId, logs: true });
    this.#following.signal.addEventListener("abort", () => stream.abort());
    // Each event has the logs since the one before.
    stream.on("data", (update) => this.#see(update, this.#state.logs.concat(update.logs ?? [])));
    return stream.done();
  }

  /** React Native has no `throwIfAborted`. */
  #checkFollowed() {
    if (this.#following.signal.aborted) throw new Error("This call is followed no longer.");
  }

  #see(update, logs) {
    if (update.status === "IN_QUEUE") this.#show({ status: "queued", position: update.queue_position });
    else this.#show({ status: "running", logs: logs ?? [] });
  }

  async #settle(work) {
    try {
      const { data, requestId } = await work();
      this.#show({ status: "done", result: data, requestId });
    } catch (error) {
      if (this.#cancelled) this.#show({ status: "cancelled" });
      else if (!this.#following.signal.aborted) this.#show({ status: "failed", error: describeError(error) });
    }
    return this.#state;
  }

  #show(change) {
    this.#state = { ...this.#state, position: undefined, ...change };
    this.show(this.#state);
  }
}

/** Whether the client uploads something of this input. */
function hasFile(value) {
  if (value instanceof Blob) return true;
  return typeof value === "object" && value !== null && Object.values(value).some(hasFile);
}

/** With this key, a submit that the client repeats after a lost answer runs once. */
function onceOnly() {
  const key = globalThis.crypto?.randomUUID?.();
  return key && { "idempotency-key": key };
}
