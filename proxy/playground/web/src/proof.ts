import { element } from "./dom";

/** Solves the challenges of a proxy that wants work of its guests, in sight of the person. */
export class ProofOfWork {
  readonly #panel = element("proof", HTMLElement);

  /** Solve a challenge. Returns what the proxy takes as a proof. Throws the signal's reason once that is aborted. */
  async solve(challenge: unknown, stop: AbortSignal): Promise<string> {
    // Loaded here: most visitors need no proof.
    await import("./altcha.js");
    stop.throwIfAborted();
    const widget = document.createElement("altcha-widget");
    widget.setAttribute("challenge", JSON.stringify(challenge));
    widget.setAttribute("auto", "onload");
    this.#panel.append(widget);
    this.#panel.hidden = false;
    try {
      return await payloadOf(widget, stop);
    } finally {
      widget.remove();
      // Another challenge may be under way already.
      this.#panel.hidden = !this.#panel.querySelector("altcha-widget");
    }
  }
}

function payloadOf(widget: HTMLElement, stop: AbortSignal): Promise<string> {
  return new Promise((resolve, reject) => {
    stop.addEventListener("abort", () => reject(stop.reason));
    widget.addEventListener("statechange", (event) => {
      const { state, payload } = (event as CustomEvent<{ state: string; payload: string }>).detail;
      if (state === "verified") {
        resolve(payload);
      } else if (state === "error" || state === "expired") {
        reject(new Error("Your browser did not finish the proof of work. Connect again for another challenge."));
      }
    });
  });
}
