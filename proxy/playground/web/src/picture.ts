import { element } from "./dom";
import { Latest } from "./latest";

/** Beside the script. */
const SAMPLE = new URL("../samples/chelsea.jpg", import.meta.url);

/**
 * The picture to ask about. It is chosen, photographed, dropped, pasted or the sample; whichever way, it ends up in the file field,
 * which is the only place that knows it.
 */
export class Picture {
  readonly #field = element("picture", HTMLInputElement);
  readonly #zone = element("drop-zone", HTMLDivElement);
  readonly #preview = element("preview", HTMLImageElement);
  readonly #caption = element("picture-caption", HTMLParagraphElement);
  readonly #onChange: (file?: File) => void;
  readonly #sample = new Latest();

  constructor(onChange: (file?: File) => void, onFailure: (error: unknown) => void) {
    this.#onChange = onChange;
    const camera = element("camera", HTMLInputElement);
    camera.addEventListener("change", () => this.#take(camera.files));
    this.#field.addEventListener("change", () => this.#show());
    this.#preview.addEventListener("load", () => this.#describe(this.#size()));
    this.#preview.addEventListener("error", () => this.#showNoPreview());
    element("sample", HTMLButtonElement).addEventListener("click", () => this.#useSample().catch(onFailure));
    document.addEventListener("paste", (event) => this.#paste(event));
    this.#acceptDrops();
  }

  /** The chosen file. The form is not submitted without one. */
  get file(): File {
    if (!this.chosen) {
      throw new Error("Choose a picture first.");
    }
    return this.chosen;
  }

  get chosen(): File | undefined {
    return this.#field.files?.[0];
  }

  /** Anywhere on the page: a browser would leave the page for a file that is dropped beside the zone. */
  #acceptDrops(): void {
    document.addEventListener("dragover", (event) => {
      if (event.dataTransfer?.types.includes("Files")) {
        event.preventDefault();
        this.#zone.classList.add("dragging");
      }
    });
    document.addEventListener("dragleave", ({ relatedTarget }) => {
      // Between two elements of the page, that is the one it goes to.
      this.#zone.classList.toggle("dragging", relatedTarget !== null);
    });
    document.addEventListener("drop", (event) => {
      this.#zone.classList.remove("dragging");
      if (event.dataTransfer?.files.length) {
        event.preventDefault();
        this.#take(event.dataTransfer.files);
      }
    });
  }

  #paste(event: ClipboardEvent): void {
    const { target, clipboardData } = event;
    const isField = target instanceof HTMLInputElement || target instanceof HTMLTextAreaElement;
    // Office programs copy a picture of the words along with them: in a field, the words are meant.
    if (clipboardData?.files.length && !(isField && clipboardData.types.includes("text/plain"))) {
      event.preventDefault();
      this.#take(clipboardData.files);
    }
  }

  async #useSample(): Promise<void> {
    this.#take([await this.#sample.of(fetchSample())]);
  }

  /** Put the first picture of some files into the field; if none is a picture, the first file. */
  #take(files: Iterable<File> | null): void {
    const given = [...(files ?? [])];
    const file = given.find(({ type }) => type.startsWith("image/")) ?? given[0];
    if (file) {
      const transfer = new DataTransfer();
      transfer.items.add(file);
      this.#field.files = transfer.files;
      this.#show();
    }
  }

  #show(): void {
    this.#sample.drop();
    URL.revokeObjectURL(this.#preview.src);
    const file = this.chosen;
    this.#zone.classList.toggle("filled", Boolean(file));
    this.#preview.hidden = !file;
    // It describes the file again once the preview is there.
    this.#caption.textContent = "";
    if (file) {
      this.#preview.src = URL.createObjectURL(file);
    } else {
      this.#preview.removeAttribute("src");
    }
    this.#onChange(file);
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

async function fetchSample(): Promise<File> {
  const response = await fetch(SAMPLE);
  if (!response.ok) {
    throw new Error(`The sample picture is missing (${response.status}).`);
  }
  return new File([await response.blob()], "chelsea.jpg", { type: "image/jpeg" });
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
