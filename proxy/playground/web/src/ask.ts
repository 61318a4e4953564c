import { ApiError, type FalClient, type QueueStatus, type RequestLog } from "@fal-ai/client";
import { Cancelled } from "./failure";
import { dataUri } from "./picture";
import type { PictureUpload } from "./upload";

export type Mode = "streaming" | "polling" | "stream";

export interface Question {
  endpoint: string;
  prompt: string;
  /** Further fields of the input, by name. */
  parameters: Record<string, unknown>;
  picture: File;
  uploadFirst: boolean;
  /** Where the picture is uploaded already, or just now, because it is large. */
  upload?: PictureUpload;
  mode: Mode;
}

/** Observes an ask. `logs` receives all log entries so far, `answer` the whole text so far. */
export interface Watcher {
  step(text: string): void;
  logs(entries: RequestLog[]): void;
  answer(text: string): void;
}

interface Input extends Record<string, unknown> {
  image_url: string;
  prompt: string;
}

interface Output {
  output: string;
  partial?: boolean;
}

/** One question on its way, from the picture to the answer. */
export class Ask {
  readonly #client: FalClient;
  readonly #question: Question;
  readonly #watcher: Watcher;
  readonly #stop = new AbortController();
  #requestId?: string;
  #wasCancelled = false;

  constructor(client: FalClient, question: Question, watcher: Watcher) {
    this.#client = client;
    this.#question = question;
    this.#watcher = watcher;
  }

  /** Run to the end. Throws `Cancelled` after `cancel()`, otherwise what the fal client throws. */
  async run(): Promise<void> {
    try {
      const { prompt, parameters } = this.#question;
      const input = { ...parameters, image_url: await this.#pictureUrl(), prompt };
      this.#stop.signal.throwIfAborted();
      const answer = await (this.#question.mode === "stream" ? this.#stream(input) : this.#watch(input, this.#question.mode));
      this.#watcher.answer(answer);
    } catch (error) {
      throw this.#wasCancelled ? new Cancelled("Cancelled.") : error;
    }
  }

  /** Ask fal to give the job up; what is not yet a job just stops. A job that was done already still answers. */
  async cancel(): Promise<void> {
    this.#wasCancelled = true;
    if (this.#requestId === undefined) {
      this.#question.upload?.cancel();
      this.#stop.abort();
      return;
    }
    this.#watcher.step("Cancelling");
    try {
      await this.#client.queue.cancel(this.#question.endpoint, { requestId: this.#requestId });
    } catch (error) {
      this.#wasCancelled = false;
      if (!isTooLate(error)) {
        throw error;
      }
    }
  }

  async #pictureUrl(): Promise<string> {
    const { picture, uploadFirst, upload } = this.#question;
    if (!uploadFirst && !upload) {
      return dataUri(picture);
    }
    this.#watcher.step("Uploading the picture");
    return upload ? upload.url(picture) : this.#client.storage.upload(picture);
  }

  async #watch(input: Input, mode: "streaming" | "polling"): Promise<string> {
    this.#watcher.step("Submitting");
    const { data } = await this.#client.subscribe(this.#question.endpoint, {
      input,
      mode,
      logs: true,
      // Stops the submit only. A job that fal knows is cancelled at fal, not forgotten here.
      abortSignal: this.#stop.signal,
      onEnqueue: (requestId) => this.#enqueued(requestId),
      onQueueUpdate: (status) => this.#updated(status),
    });
    return (data as Output).output;
  }

  #enqueued(requestId: string): void {
    this.#requestId = requestId;
    this.#watcher.step(`Accepted as ${requestId}`);
  }

  #updated(status: QueueStatus): void {
    this.#watcher.step(wordsFor(status));
    if (status.status !== "IN_QUEUE") {
      this.#watcher.logs(status.logs ?? []);
    }
  }

  async #stream(input: Input): Promise<string> {
    this.#watcher.step("Opening the stream");
    const stream = await this.#client.stream(this.#question.endpoint, { input, signal: this.#stop.signal });
    stream.on("data", ({ output }: Output) => {
      this.#watcher.step("Streaming");
      this.#watcher.answer(output);
    });
    const last = (await stream.done()) as Output;
    this.#stop.signal.throwIfAborted();
    if (last.partial) {
      throw new Error("The stream broke off before the answer was complete.");
    }
    return last.output;
  }
}

function wordsFor(status: QueueStatus): string {
  switch (status.status) {
    case "IN_QUEUE":
      return status.queue_position === 0 ? "In the queue, next in line" : `In the queue, ${status.queue_position} ahead`;
    case "IN_PROGRESS":
      return "Running";
    case "COMPLETED":
      return "Completed";
  }
}

function isTooLate(error: unknown): boolean {
  const body = error instanceof ApiError ? (error.body as { status?: string } | undefined) : undefined;
  return body?.status === "ALREADY_COMPLETED";
}
