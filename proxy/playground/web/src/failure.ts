import { ApiError, ValidationError, type ValidationErrorInfo } from "@fal-ai/client";
import { Unreachable } from "./proxy";
import { BrokenOff } from "./transfer";

/** The user cancelled: nothing went wrong. */
export class Cancelled extends Error {}

export interface Failure {
  message: string;
  type: string;
  requestId?: string;
}

interface ErrorBody {
  detail?: unknown;
  message?: string;
  error_type?: string;
  request_id?: string;
}

/** What went wrong, in words for the person at the page. */
export function describe(error: unknown): Failure {
  if (error instanceof ApiError) {
    return describeAnswer(error as ApiError<ErrorBody | undefined>);
  }
  const message = error instanceof Error ? error.message : String(error);
  const isUnreachable = error instanceof Unreachable || error instanceof BrokenOff;
  return { message, type: isUnreachable ? "unreachable" : "page" };
}

function describeAnswer(error: ApiError<ErrorBody | undefined>): Failure {
  const body = error.body ?? {};
  const problems = error instanceof ValidationError ? error.fieldErrors : [];
  return {
    message: wordsFor(problems) || body.message || textOf(body.detail) || error.message,
    type: body.error_type ?? problems[0]?.type ?? `http_${error.status}`,
    requestId: body.request_id ?? (error.requestId || undefined),
  };
}

/** fal lists what is wrong with an input field by field. */
function wordsFor(problems: ValidationErrorInfo[]): string {
  return problems.map(({ loc, msg }) => `${loc.slice(1).join(".") || "input"}: ${msg}`).join("\n");
}

function textOf(detail: unknown): string | undefined {
  return typeof detail === "string" ? detail : undefined;
}
