package scenarios;

import ai.fal.client.ClientConfig;
import ai.fal.client.CredentialsResolver;
import ai.fal.client.FalClient;
import ai.fal.client.Output;
import ai.fal.client.RunOptions;
import ai.fal.client.SubscribeOptions;
import ai.fal.client.queue.QueueResultOptions;
import ai.fal.client.queue.QueueStatus;
import ai.fal.client.queue.QueueStatusOptions;
import ai.fal.client.queue.QueueSubmitOptions;
import ai.fal.client.queue.QueueSubscribeOptions;
import ai.fal.client.type.RequestLog;
import com.google.gson.JsonArray;
import com.google.gson.JsonObject;
import java.io.IOException;
import java.util.List;

/** What an app does with the fal client, one method a scenario. */
final class Scenarios {
    private final JsonObject question;
    private final String endpoint;
    private final FalClient fal;

    Scenarios(JsonObject question) {
        this.question = question;
        this.endpoint = question.get("endpoint").getAsString();
        this.fal = FalClient.withConfig(ClientConfig.builder()
                .withCredentials(credentials())
                .withProxyUrl(text("proxyUrl"))
                .build());
    }

    /** The session; or of `sessions`, the next one each time that the client asks. */
    private CredentialsResolver credentials() {
        if (question.has("sessions")) {
            final var sessions = question.getAsJsonArray("sessions").iterator();
            return () -> sessions.next().getAsString();
        }
        return CredentialsResolver.fromApiKey(question.get("session").isJsonNull() ? null : text("session"));
    }

    JsonObject run() throws IOException, InterruptedException {
        return switch (text("scenario")) {
            case "run" -> shown(fal.run(endpoint, RunOptions.withInput(input())));
            case "submitStatusResult" -> submitStatusResult();
            case "subscribe" -> subscribe();
            case "upload" -> upload();
            case "status" -> shown(status(text("requestId")));
            case "result" -> shown(fal.queue().result(endpoint, QueueResultOptions.withRequestId(text("requestId"))));
            case "streamStatus" -> shown(fal.queue()
                    .subscribeToStatus(
                            endpoint,
                            QueueSubscribeOptions.builder()
                                    .requestId(text("requestId"))
                                    .build()));
            default -> throw new IllegalArgumentException(text("scenario"));
        };
    }

    private JsonObject submitStatusResult() throws InterruptedException {
        final var submitted = fal.queue().submit(endpoint, QueueSubmitOptions.withInput(input()));
        final var id = submitted.getRequestId();
        final var seen = new JsonArray();
        QueueStatus.StatusUpdate status;
        do {
            status = status(id);
            seen.add(shown(status));
            Thread.sleep(50);
        } while (status.getStatus() != QueueStatus.Status.COMPLETED);
        final var outcome = new JsonObject();
        outcome.add("submitted", shown(submitted));
        outcome.add("seen", seen);
        outcome.add("result", shown(fal.queue().result(endpoint, QueueResultOptions.withRequestId(id))));
        return outcome;
    }

    private QueueStatus.StatusUpdate status(String requestId) {
        final var options = QueueStatusOptions.builder().requestId(requestId).logs(true);
        return fal.queue().status(endpoint, options.build());
    }

    private JsonObject subscribe() {
        final var updates = new JsonArray();
        final var options = SubscribeOptions.<JsonObject>builder()
                .input(input())
                .resultType(JsonObject.class)
                .logs(question.get("logs").getAsBoolean())
                .onQueueUpdate(update -> updates.add(shown(update)));
        final var outcome = shown(fal.subscribe(endpoint, options.build()));
        outcome.add("updates", updates);
        return outcome;
    }

    /** The client has no uploads; this is the app's own call, with the HTTP library that the client brings. */
    private JsonObject upload() throws IOException {
        final var url = new Upload(text("proxyUrl"), text("session")).send(text("path"), text("type"));
        final var input = input();
        input.addProperty("image_url", url);
        final var outcome = shown(fal.run(endpoint, RunOptions.withInput(input)));
        outcome.addProperty("url", url);
        return outcome;
    }

    private JsonObject input() {
        return question.getAsJsonObject("input");
    }

    private String text(String name) {
        return question.get(name).getAsString();
    }

    private static JsonObject shown(Output<JsonObject> result) {
        final var shown = new JsonObject();
        shown.add("output", result.getData().get("output"));
        shown.addProperty("requestId", result.getRequestId());
        return shown;
    }

    private static JsonObject shown(QueueStatus.StatusUpdate update) {
        final var shown = new JsonObject();
        shown.addProperty("status", update.getStatus().name());
        shown.addProperty("request_id", update.getRequestId());
        shown.addProperty("response_url", update.getResponseUrl());
        if (update instanceof QueueStatus.InQueue queued) {
            shown.addProperty("queue_position", queued.getQueuePosition());
        } else if (update instanceof QueueStatus.InProgress working) {
            shown.add("logs", shown(working.getLogs()));
        } else if (update instanceof QueueStatus.Completed completed) {
            shown.add("logs", shown(completed.getLogs()));
        }
        return shown;
    }

    private static JsonArray shown(List<RequestLog> logs) {
        final var shown = new JsonArray();
        for (final var log : logs == null ? List.<RequestLog>of() : logs) {
            final var entry = new JsonObject();
            entry.addProperty("message", log.getMessage());
            entry.addProperty("level", log.getLevel().name());
            shown.add(entry);
        }
        return shown;
    }
}
