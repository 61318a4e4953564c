package scenarios;

import ai.fal.client.exception.FalException;
import com.google.gson.annotations.SerializedName;

/** What an app catches. */
record Failure(
        @SerializedName("class") String type,
        String message,
        @SerializedName("request_id") String requestId,
        String cause) {

    static Failure of(Throwable error) {
        final var requestId = error instanceof FalException ? ((FalException) error).getRequestId() : null;
        final var cause = error.getCause() == null ? null : error.getCause().getClass().getSimpleName();
        return new Failure(error.getClass().getSimpleName(), error.getMessage(), requestId, cause);
    }
}
