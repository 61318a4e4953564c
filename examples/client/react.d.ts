import type { FalClient, OutputType, RequestLog } from "@fal-ai/client";
import type { EndpointTypeMap } from "@fal-ai/client/endpoints";
import type { CallError } from "./errors.js";

type Input<Id extends string> = Id extends keyof EndpointTypeMap
  ? EndpointTypeMap[Id]["input"]
  : Record<string, unknown>;

interface Facts {
  /** The model's log so far. */
  logs: readonly RequestLog[];
  /** The id of the job, once fal has taken it. */
  requestId?: string;
  /** How many jobs are in front of this one; while it is `queued`. */
  position?: number;
  result?: undefined;
  error?: undefined;
}

/** The state of a call. */
export type CallState<Output> =
  | (Facts & { status: "idle" | "uploading" | "queued" | "running" | "cancelled" })
  | (Omit<Facts, "result"> & { status: "done"; result: Output })
  | (Omit<Facts, "error"> & { status: "failed"; error: CallError });

/** The state of the newest call, and what a component can do. The functions never throw. */
export type FalProxyCall<Id extends string> = CallState<OutputType<Id>> & {
  /** Whether the call is `uploading`, `queued` or `running`. */
  busy: boolean;
  /** Submit a job and follow it to its end. An earlier call is followed no longer; its job goes on. */
  submit(input: Input<Id>): Promise<CallState<OutputType<Id>>>;
  /** Call the model directly, without fal's queue. */
  run(input: Input<Id>): Promise<CallState<OutputType<Id>>>;
  /** Follow a job that was submitted before: after a reload of the page, or when the network is back. */
  follow(requestId: string): Promise<CallState<OutputType<Id>>>;
  /** Cancel the call. False if it goes on, for example because it is finished. */
  cancel(): Promise<boolean>;
  /** Forget the call. Its job goes on. */
  reset(): void;
};

/** Call an endpoint, and show the state of the newest call. */
export function useFalProxy<Id extends keyof EndpointTypeMap | (string & {})>(
  fal: FalClient,
  endpointId: Id,
): FalProxyCall<Id>;
