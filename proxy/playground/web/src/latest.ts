/** Something newer took the place of this: its answer and its failure are of no interest any more. */
export class Overtaken extends Error {}

/** The answers of one kind, of which only the latest counts: they may come in another order than they were asked for. */
export class Latest {
  #current = new AbortController();

  /** Drop what is awaited. Returns a signal that is aborted, with `Overtaken`, as soon as this happens again. */
  next(): AbortSignal {
    this.drop();
    this.#current = new AbortController();
    return this.#current.signal;
  }

  /** Await an answer in place of the one before. Throws `Overtaken` as soon as it is dropped itself. */
  of<T>(answer: Promise<T>): Promise<T> {
    const signal = this.next();
    return new Promise((resolve, reject) => {
      signal.addEventListener("abort", () => reject(signal.reason));
      answer.then(resolve, reject);
    });
  }

  drop(): void {
    this.#current.abort(new Overtaken());
  }
}
