export interface Answer {
  status: number;
  /** The JSON of the answer, if that is what it is. */
  body: unknown;
}

/** The file was not taken to its end, and no answer tells why. */
export class BrokenOff extends Error {
  constructor() {
    super("The upload broke off: the proxy cannot be reached any more, or it does not allow this page's origin.");
  }
}

/**
 * POST a file, and tell how many of its bytes went out so far. `fetch` cannot tell that, and so neither can the fal client.
 *
 * Throws `BrokenOff`, or the signal's reason once that is aborted.
 */
export function post(
  address: string,
  file: File,
  headers: Record<string, string>,
  onProgress: (sent: number) => void,
  stop: AbortSignal,
): Promise<Answer> {
  return new Promise((resolve, reject) => {
    stop.throwIfAborted();
    const request = new XMLHttpRequest();
    request.open("POST", address);
    request.responseType = "json";
    for (const [name, value] of Object.entries(headers)) {
      request.setRequestHeader(name, value);
    }
    request.upload.addEventListener("progress", ({ loaded }) => onProgress(loaded));
    request.addEventListener("load", () => resolve({ status: request.status, body: request.response ?? undefined }));
    request.addEventListener("error", () => reject(new BrokenOff()));
    request.addEventListener("abort", () => reject(stop.reason));
    stop.addEventListener("abort", () => request.abort());
    request.send(file);
  });
}
