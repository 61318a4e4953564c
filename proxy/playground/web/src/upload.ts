import { element } from "./dom";
import { Cancelled, describe } from "./failure";
import type { Proxy } from "./proxy";

type State = "idle" | "sending" | "done" | "failed" | "cancelled";

const MEGABYTE = 1_000_000;

/** The upload of the chosen picture, which runs while the question is still being written, and the panel that shows it. */
export class PictureUpload {
  readonly #panel = element("upload-panel", HTMLDivElement);
  // Never hidden, as what is not there is not read out when its words change.
  readonly #text = element("upload-text", HTMLParagraphElement);
  readonly #bar = element("upload-bar", HTMLProgressElement);
  readonly #amount = element("upload-amount", HTMLSpanElement);
  readonly #proxy: () => Promise<Proxy>;
  #file?: File;
  #url?: Promise<string>;
  #stop = new AbortController();

  constructor(proxy: () => Promise<Proxy>) {
    this.#proxy = proxy;
    element("cancel-upload", HTMLButtonElement).addEventListener("click", () => this.cancel());
  }

  /** Begin with a file, unless it is there already. What becomes of it stands in the panel. */
  begin(file: File): void {
    this.url(file).catch(() => undefined);
  }

  /** The file's address at fal, once it is there. What failed or was cancelled before is sent again. */
  url(file: File): Promise<string> {
    if (file !== this.#file || !this.#url) {
      this.forget();
      this.#file = file;
      this.#url = this.#send(file, this.#stop.signal);
    }
    return this.#url;
  }

  /** Stop the upload; its promise rejects with `Cancelled`. */
  cancel(): void {
    this.#stop.abort(new Cancelled("Cancelled."));
  }

  /** Stop what is under way, and know of no file any more. */
  forget(): void {
    this.cancel();
    this.#stop = new AbortController();
    this.#file = this.#url = undefined;
    this.#enter("idle", "");
  }

  async #send(file: File, stop: AbortSignal): Promise<string> {
    this.#enter("sending", "Uploading the picture");
    this.#show(0, file.size);
    try {
      const proxy = await this.#proxy();
      const url = await proxy.upload(file, (sent) => this.#show(sent, file.size), stop);
      this.#enter("done", "The picture is uploaded.");
      return url;
    } catch (error) {
      // Another file may have taken the panel meanwhile.
      if (stop === this.#stop.signal) {
        this.#url = undefined;
        this.#tell(error);
      }
      throw error;
    }
  }

  #tell(error: unknown): void {
    if (error instanceof Cancelled) {
      this.#enter("cancelled", "The upload was cancelled. Asking begins it again.");
    } else {
      const { message, type } = describe(error);
      this.#enter("failed", `The picture was not uploaded: ${message} (${type})`);
    }
  }

  #show(sent: number, size: number): void {
    this.#bar.max = size;
    this.#bar.value = sent;
    this.#amount.textContent = `${(sent / MEGABYTE).toFixed(1)} of ${(size / MEGABYTE).toFixed(1)} MB`;
  }

  #enter(state: State, text: string): void {
    this.#panel.dataset["state"] = state;
    this.#text.textContent = text;
  }
}
