import { element } from "./dom";
import type { ListedJob, Proxy } from "./proxy";

/** The caller's jobs, newest first: one can be read again, or cancelled while it runs. */
export class History {
  readonly #rows = element("jobs", HTMLTableSectionElement);
  readonly #more = element("jobs-more", HTMLButtonElement);
  readonly #proxy: () => Promise<Proxy>;
  readonly #open: (answer: string) => void;
  readonly #fail: (error: unknown) => void;
  #cursor: string | null = null;

  constructor(proxy: () => Promise<Proxy>, open: (answer: string) => void, fail: (error: unknown) => void) {
    this.#proxy = proxy;
    this.#open = open;
    this.#fail = fail;
    this.#more.addEventListener("click", () => void this.#load(this.#cursor));
  }

  async refresh(): Promise<void> {
    await this.#load(null);
  }

  async #load(cursor: string | null): Promise<void> {
    try {
      const { jobs, next_cursor } = await (await this.#proxy()).jobs(cursor);
      const rows = jobs.map((job) => this.#row(job));
      cursor === null ? this.#rows.replaceChildren(...rows) : this.#rows.append(...rows);
      this.#cursor = next_cursor;
      this.#more.hidden = next_cursor === null;
    } catch (error) {
      this.#fail(error);
    }
  }

  #row(job: ListedJob): HTMLTableRowElement {
    const state = cell(job.is_over ? "done" : "running");
    const act = () => (job.is_over ? this.#show(job) : this.#cancel(job, state)).catch(this.#fail);
    const action = button(job.is_over ? "Show" : "Cancel", act);
    const row = document.createElement("tr");
    row.append(cell(new Date(job.submitted_at).toLocaleString()), cell(job.endpoint), state, cell(action));
    return row;
  }

  async #show(job: ListedJob): Promise<void> {
    const { output } = await (await this.#proxy()).result(job.id);
    this.#open(output ?? "");
  }

  async #cancel(job: ListedJob, state: HTMLTableCellElement): Promise<void> {
    await (await this.#proxy()).cancel(job.id);
    state.textContent = "cancelling";
  }
}

function cell(content: string | Node): HTMLTableCellElement {
  const made = document.createElement("td");
  made.append(content);
  return made;
}

function button(text: string, act: () => Promise<void>): HTMLButtonElement {
  const made = document.createElement("button");
  made.type = "button";
  made.textContent = text;
  made.addEventListener("click", () => void act());
  return made;
}
