import { element } from "./dom";

export interface Call {
  /** The proxy's origin. */
  origin: string;
  endpoint: string;
  input: Record<string, unknown>;
}

type Writer = (call: Call) => string;

/** A session never stands in code that is copied: it is read from the environment. */
const WRITERS: Record<string, Writer> = { javascript, python, curl, swift };

/** The call that the form describes, written for a client. */
export class Code {
  readonly #client = element("code-client", HTMLSelectElement);
  readonly #text = element("code-text", HTMLElement);
  readonly #copied = element("code-copied", HTMLSpanElement);
  readonly #call: () => Call;

  constructor(call: () => Call) {
    this.#call = call;
    this.#client.addEventListener("change", () => this.update());
    element("code-copy", HTMLButtonElement).addEventListener("click", () => void this.#copy());
  }

  update(): void {
    this.#text.textContent = WRITERS[this.#client.value]!(this.#call());
    this.#copied.textContent = "";
  }

  async #copy(): Promise<void> {
    try {
      await navigator.clipboard.writeText(this.#text.textContent ?? "");
      this.#copied.textContent = "Copied";
    } catch {
      // Without https there is no clipboard: the text can be selected.
      getSelection()?.selectAllChildren(this.#text);
      this.#copied.textContent = "Selected: copy it with your keyboard";
    }
  }
}

function javascript({ origin, endpoint, input }: Call): string {
  return `import { createFalClient } from "@fal-ai/client";

const fal = createFalClient({
  proxyUrl: { url: ${quote(`${origin}/api/fal/proxy`)}, when: "always" },
  credentials: process.env.FAL_PROXY_SESSION,
});

const { data } = await fal.subscribe(${quote(endpoint)}, {
  input: ${indent(JSON.stringify(input, null, 2), "  ")},
  logs: true,
  onQueueUpdate: (update) => console.error(update.status),
});
console.log(data.output);
`;
}

function python({ origin, endpoint, input }: Call): string {
  return `import os

import httpx

proxy = httpx.Client(
    base_url=${quote(origin)},
    headers={"authorization": f"Bearer {os.environ['FAL_PROXY_SESSION']}"},
    timeout=300,
)
answer = proxy.post(
    ${quote(`/fal/run/${endpoint}`)},
    json=${indent(pythonOf(input), "    ")},
)
answer.raise_for_status()
print(answer.json()["output"])
`;
}

function curl({ origin, endpoint, input }: Call): string {
  return `curl --fail-with-body -sS ${shell(`${origin}/fal/run/${endpoint}`)} \\
  -H "authorization: Bearer $FAL_PROXY_SESSION" \\
  -H 'content-type: application/json' \\
  --data ${shell(JSON.stringify(input, null, 2))}
`;
}

function swift({ origin, endpoint, input }: Call): string {
  const fields = Object.entries(input).map(([name, value]) => `    ${quote(name)}: ${JSON.stringify(value)}`);
  return `import FalClient

let fal = FalClient.withProxy(${quote(`${origin}/s/\\(session)/api/fal/proxy`).replaceAll("\\\\(", "\\(")})

let result = try await fal.subscribe(
  to: ${quote(endpoint)},
  input: [
${fields.join(",\n")}
  ],
  includeLogs: true
)
print(result["output"].stringValue ?? "")
`;
}

function quote(text: string): string {
  return JSON.stringify(text);
}

/** A literal of Python: JSON, but for three words. */
function pythonOf(input: Record<string, unknown>): string {
  const fields = Object.entries(input).map(([name, value]) => `    ${quote(name)}: ${pythonValue(value)},`);
  return `{\n${fields.join("\n")}\n}`;
}

function pythonValue(value: unknown): string {
  return value === true ? "True" : value === false ? "False" : value === null ? "None" : JSON.stringify(value);
}

function shell(text: string): string {
  return `'${text.replaceAll("'", "'\\''")}'`;
}

function indent(text: string, by: string): string {
  return text.replaceAll("\n", `\n${by}`);
}
