import type { RequestLog } from "@fal-ai/client";
import type { Watcher } from "./ask";
import { element, labelledItem } from "./dom";
import type { Failure } from "./failure";

/** Where the time of day lies in an ISO timestamp. */
const TIME_OF_DAY = [11, 19] as const;

type State = "idle" | "busy" | "done" | "failed" | "cancelled";

/** The right-hand side of the page: how the ask goes on, its logs, its answer or its failure. */
export class Result implements Watcher {
  readonly #card = element("result", HTMLElement);
  readonly #answer = element("answer", HTMLOutputElement);
  readonly #steps = element("steps", HTMLOListElement);
  readonly #logs = element("logs", HTMLOListElement);
  readonly #failure = element("failure", HTMLDivElement);
  #startedAt = 0;
  #lastStep = "";

  start(): void {
    this.#startedAt = performance.now();
    this.#lastStep = "";
    this.#answer.textContent = "";
    this.#steps.replaceChildren();
    this.#logs.replaceChildren();
    this.clearFailure();
    this.#enter("busy");
    // On a small screen the result lies below the question.
    this.#card.scrollIntoView({ block: "nearest" });
  }

  /** A line of the timeline; the same thing again (a poll that found nothing new) adds none. */
  step(text: string): void {
    if (text !== this.#lastStep) {
      this.#lastStep = text;
      const seconds = (performance.now() - this.#startedAt) / 1000;
      this.#steps.append(labelledItem(`${seconds.toFixed(1)} s`, text));
    }
  }

  logs(entries: RequestLog[]): void {
    for (const { timestamp, message } of entries.slice(this.#logs.childElementCount)) {
      this.#logs.append(labelledItem(timestamp.slice(...TIME_OF_DAY), message));
    }
  }

  answer(text: string): void {
    this.#answer.textContent = text;
  }

  /** The answer of an earlier job. */
  show(text: string): void {
    this.start();
    this.answer(text);
    this.succeed();
  }

  succeed(): void {
    this.step("Answered");
    this.#enter("done");
  }

  cancel(): void {
    this.step("Cancelled");
    this.#enter("cancelled");
  }

  fail(failure: Failure): void {
    this.#showFailure(failure);
    this.#enter("failed");
  }

  /** A failure of something else, which leaves an ask that is under way as it is. */
  complain(failure: Failure): void {
    this.#showFailure(failure);
    if (!this.isBusy) {
      this.#enter("failed");
    }
  }

  clearFailure(): void {
    this.#failure.hidden = true;
    if (!this.isBusy) {
      this.#enter("idle");
    }
  }

  get isBusy(): boolean {
    return this.#card.dataset["state"] === "busy";
  }

  get hasFailed(): boolean {
    return this.#card.dataset["state"] === "failed";
  }

  #showFailure(failure: Failure): void {
    element("failure-message", HTMLParagraphElement).textContent = failure.message;
    element("failure-type", HTMLElement).textContent = failure.type;
    element("failure-request-id", HTMLElement).textContent = failure.requestId ?? "none";
    this.#failure.hidden = false;
  }

  #enter(state: State): void {
    this.#card.dataset["state"] = state;
    this.#card.ariaBusy = String(state === "busy");
  }
}
