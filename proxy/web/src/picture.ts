import { element } from "./dom";

const SAMPLE = "samples/chelsea.jpg";

/**
 * The picture to ask about. It is chosen, dropped, pasted or the sample; whichever way, it ends up in the file field,
 * which is the only place that knows it.
 */
export class Picture {
  readonly #field = element("picture", HTMLInputElement);
  readonly #zone = element("drop-zone", HTMLDivElement);
  readonly #preview = element("preview", HTMLImageElement);
  readonly #caption = element("picture-caption", HTMLParagraphElement);

  constructor(onFailure: (error: unknown) => void) {
    this.#field.addEventListener("change", () => this.#show());
    this.#preview.addEventListener("load", () => this.#describe(this.#size()));
    this.#preview.addEventListener("error", () => this.#showNoPreview());
    element("sample", HTMLButtonElement).addEventListener("click", () => this.#useSample().catch(onFailure));
    document.addEventListener("paste", (event) => this.#take(event.clipboardData));
    this.#acceptDrops();
  }

  /** The chosen file. The form is not submitted without one. */
  get file(): File {
    const file = this.#field.files?.[0];
    if (!file) {
      throw new Error("Choose a picture first.");
    }
    return file;
  }

  #acceptDrops(): void {
    this.#zone.addEventListener("dragover", (event) => {
      event.preventDefault();
      this.#zone.classList.add("dragging");
    });
    this.#zone.addEventListener("dragleave", () => this.#zone.classList.remove("dragging"));
    this.#zone.addEventListener("drop", (event) => {
      event.preventDefault();
      this.#zone.classList.remove("dragging");
      this.#take(event.dataTransfer);
    });
  }

  async #useSample(): Promise<void> {
    const response = await fetch(SAMPLE);
    if (!response.ok) {
      throw new Error(`The sample picture is missing (${response.status}).`);
    }
    const transfer = new DataTransfer();
    transfer.items.add(new File([await response.blob()], "chelsea.jpg", { type: "image/jpeg" }));
    this.#take(transfer);
  }

  #take(transfer: DataTransfer | null): void {
    if (transfer?.files.length) {
      this.#field.files = transfer.files;
      this.#show();
    }
  }

  #show(): void {
    URL.revokeObjectURL(this.#preview.src);
    const file = this.#field.files?.[0];
    this.#zone.classList.toggle("filled", Boolean(file));
    this.#preview.hidden = !file;
    if (file) {
      this.#preview.src = URL.createObjectURL(file);
    } else {
      this.#caption.textContent = "";
    }
  }

  /** Not a picture, as far as this browser knows; whether the model takes it is not ours to say. */
  #showNoPreview(): void {
    this.#preview.hidden = true;
    this.#describe("no preview");
  }

  #size(): string {
    return `${this.#preview.naturalWidth} × ${this.#preview.naturalHeight}`;
  }

  #describe(look: string): void {
    this.#caption.textContent = `${this.file.name} · ${look} · ${Math.ceil(this.file.size / 1024)} kB`;
  }
}

/** The file as a `data:` address, to travel inside the question. */
export function dataUri(file: File): Promise<string> {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.addEventListener("load", () => resolve(reader.result as string));
    reader.addEventListener("error", () => reject(reader.error));
    reader.readAsDataURL(file);
  });
}
