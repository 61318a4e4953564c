import { element } from "./dom";

export interface Schema {
  properties?: Record<string, Property>;
}

interface Property {
  type?: string;
  enum?: unknown[];
  description?: string;
  default?: unknown;
  minimum?: number;
  maximum?: number;
}

type Control = HTMLInputElement | HTMLSelectElement;

/** Fields of the page's own: the picture and the question. */
const OWN = ["image_url", "prompt"];

/** The other fields of an endpoint's input, built from its JSON schema. What stays empty is not sent. */
export class Parameters {
  readonly #fields = element("parameters", HTMLDivElement);
  #controls: [string, Property, Control][] = [];

  show(schema: Schema): void {
    const entries = Object.entries(schema.properties ?? {}).filter(([name]) => !OWN.includes(name));
    this.#controls = entries.map(([name, property]) => [name, property, controlFor(name, property)]);
    this.#fields.replaceChildren(...this.#controls.map(([name, , control]) => field(name, control)));
  }

  /** The values that were given, by name. */
  values(): Record<string, unknown> {
    const given: Record<string, unknown> = {};
    for (const [name, property, { value }] of this.#controls) {
      if (value !== "") {
        given[name] = read(value, property);
      }
    }
    return given;
  }
}

function controlFor(name: string, property: Property): Control {
  const control = property.enum || property.type === "boolean" ? select(property) : input(property);
  control.id = `parameter-${name}`;
  control.title = property.description ?? "";
  return control;
}

function field(name: string, control: Control): HTMLElement {
  const label = document.createElement("label");
  label.htmlFor = control.id;
  label.textContent = name;
  const box = document.createElement("div");
  box.className = "field";
  box.append(label, control);
  return box;
}

function select(property: Property): HTMLSelectElement {
  const control = document.createElement("select");
  const values = property.enum ?? [true, false];
  control.append(new Option(placeholder(property), ""), ...values.map((value) => new Option(String(value), JSON.stringify(value))));
  return control;
}

function input(property: Property): HTMLInputElement {
  const control = document.createElement("input");
  control.type = isNumber(property) ? "number" : "text";
  control.placeholder = placeholder(property);
  if (isNumber(property)) {
    control.step = property.type === "integer" ? "1" : "any";
    control.min = String(property.minimum ?? "");
    control.max = String(property.maximum ?? "");
  }
  return control;
}

function placeholder(property: Property): string {
  return property.default === undefined ? "not set" : `${property.default} if not set`;
}

function isNumber(property: Property): boolean {
  return property.type === "number" || property.type === "integer";
}

function read(text: string, property: Property): unknown {
  if (property.enum || property.type === "boolean") {
    return JSON.parse(text);
  }
  return isNumber(property) ? Number(text) : text;
}
