import { element } from "./dom";
import { Latest, Overtaken } from "./latest";
import type { JobPage, ListedJob, Proxy } from "./proxy";

/** The caller's jobs, newest first: one can be read again, or cancelled while it runs. */
export class History {
  readonly #rows = element("jobs", HTMLTableSectionElement);
  readonly #more = element("jobs-more", HTMLButtonElement);
  readonly #proxy: () => Promise<Proxy>;
  readonly #open: (answer: string) => void;
  readonly #fail: (error: unknown) => void;
  readonly #listing = new Latest();
  readonly #opened = new Latest();
  /** The state of each job in the list that runs. */
  readonly #running = new Map<string, HTMLTableCellElement>();
  readonly #cancelled = new Set<string>();
  #cursor: string | null = null;
  #isLocked = false;

  constructor(proxy: () => Promise<Proxy>, open: (answer: string) => void, fail: (error: unknown) => void) {
    this.#proxy = proxy;
    this.#open = open;
    this.#fail = fail;
    this.#more.addEventListener("click", () => void this.#showMore().catch(fail));
  }

  /** List the newest jobs. */
  async refresh(): Promise<void> {
    const page = await this.#list(null);
    this.#rows.replaceChildren();
    this.#running.clear();
    this.#append(page);
  }

  /** Forget the jobs, which are another caller's. */
  clear(): void {
    this.#listing.drop();
    this.#opened.drop();
    this.#rows.replaceChildren();
    this.#more.hidden = true;
  }

  /** Keep earlier answers closed, as the place for answers is taken. */
  lock(isLocked: boolean): void {
    this.#isLocked = isLocked;
    this.#opened.drop();
    for (const show of this.#rows.querySelectorAll<HTMLButtonElement>(".show")) {
      show.disabled = isLocked;
    }
  }

  async #showMore(): Promise<void> {
    this.#append(await this.#list(this.#cursor));
    if (document.activeElement === document.body) {
      // Where it was before it was disabled.
      this.#more.focus();
    }
  }

  /** Get a page. Until it is there, no other can be asked for from the same place. */
  async #list(cursor: string | null): Promise<JobPage> {
    this.#more.disabled = true;
    try {
      const page = await this.#listing.of(this.#proxy().then((proxy) => proxy.jobs(cursor)));
      this.#more.disabled = false;
      return page;
    } catch (error) {
      this.#more.disabled = error instanceof Overtaken;
      throw error;
    }
  }

  #append({ jobs, next_cursor }: JobPage): void {
    this.#rows.append(...jobs.map((job) => this.#row(job)));
    this.#cursor = next_cursor;
    this.#more.hidden = next_cursor === null;
  }

  #row(job: ListedJob): HTMLTableRowElement {
    const state = cell(job.is_over ? "done" : this.#cancelled.has(job.id) ? "cancelling" : "running");
    const action = button(job.is_over ? "Show" : "Cancel", () => (job.is_over ? this.#show(job) : this.#cancel(job)).catch(this.#fail));
    if (job.is_over) {
      action.className = "show";
      action.disabled = this.#isLocked;
    } else {
      this.#running.set(job.id, state);
    }
    const row = document.createElement("tr");
    row.append(cell(new Date(job.submitted_at).toLocaleString()), cell(job.endpoint), state, cell(action));
    return row;
  }

  async #show(job: ListedJob): Promise<void> {
    const { output } = await this.#opened.of(this.#proxy().then((proxy) => proxy.result(job.id)));
    this.#open(output ?? "");
  }

  async #cancel(job: ListedJob): Promise<void> {
    await (await this.#proxy()).cancel(job.id);
    this.#cancelled.add(job.id);
    // The list may have been shown again meanwhile.
    this.#running.get(job.id)?.replaceChildren("cancelling");
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
