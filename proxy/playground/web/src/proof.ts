import { element } from "./dom";

/** Solves the challenges of a proxy that wants work of its guests, in sight of the person. */
export class ProofOfWork {
  readonly #panel = element("proof", HTMLElement);

  /** Solve a challenge. Returns what the proxy takes as a proof. */
  async solve(challenge: unknown): Promise<string> {
    // Loaded here: most visitors need no proof.
    await import("./altcha.js");
    const widget = document.createElement("altcha-widget");
    widget.setAttribute("challenge", JSON.stringify(challenge));
    widget.setAttribute("auto", "onload");
    this.#panel.append(widget);
    this.#panel.hidden = false;
    try {
      return await payloadOf(widget);
    } finally {
      widget.remove();
      this.#panel.hidden = true;
    }
  }
}

function payloadOf(widget: HTMLElement): Promise<string> {
  return new Promise((resolve, reject) => {
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
