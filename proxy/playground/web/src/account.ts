import { element } from "./dom";
import type { Quota, Standing } from "./proxy";

const WHOSE: Record<string, string> = { subject: "yours", tenant: "the tenant's", guests: "all guests'", address: "this address's" };

/** What is left for this caller: quotas, and calls in flight. */
export class Account {
  readonly #list = element("quotas", HTMLUListElement);
  readonly #flight = element("in-flight", HTMLParagraphElement);

  /** Forget the limits, which are another caller's. */
  clear(): void {
    this.#list.replaceChildren();
    this.#flight.textContent = "";
  }

  show({ quotas, in_flight }: Standing): void {
    this.#list.replaceChildren(...quotas.map(quotaItem));
    const { used, limit } = in_flight.subject;
    this.#flight.textContent = `In flight: ${used}${limit === null ? "" : ` of ${limit}`}`;
  }
}

function quotaItem(quota: Quota): HTMLLIElement {
  const item = document.createElement("li");
  const text = document.createElement("span");
  const span = quota.resets_at === null ? "in all" : `each ${quota.window}`;
  const amount = `${format(quota.left, quota.unit)} of ${format(quota.limit, quota.unit)} left`;
  text.textContent = `${quota.unit.replaceAll("_", " ")}, ${WHOSE[quota.per] ?? quota.per}, ${span}: ${amount}`;
  const meter = document.createElement("meter");
  meter.max = quota.limit;
  meter.value = Math.max(0, quota.left);
  meter.ariaLabel = text.textContent;
  item.append(text, meter);
  if (quota.resets_at !== null) {
    const until = document.createElement("small");
    until.textContent = `full again ${new Date(quota.resets_at).toLocaleString()}`;
    item.append(until);
  }
  return item;
}

function format(value: number, unit: string): string {
  if (unit === "upload_bytes") {
    return value >= 1e9 ? `${(value / 1e9).toFixed(1)} GB` : `${(value / 1e6).toFixed(1)} MB`;
  }
  return value.toLocaleString(undefined, { maximumFractionDigits: 2 });
}
