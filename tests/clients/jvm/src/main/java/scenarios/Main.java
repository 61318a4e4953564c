package scenarios;

import com.google.gson.Gson;
import com.google.gson.GsonBuilder;
import com.google.gson.JsonObject;
import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.Executors;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.TimeoutException;

/** Reads a JSON question a line, runs the scenario that it names, writes a JSON answer a line. */
public final class Main {
    private static final Gson GSON = new GsonBuilder().serializeNulls().create();

    public static void main(String[] arguments) throws IOException {
        // Stdout belongs to the answers, whatever a library prints.
        final var answers = new PrintStream(System.out, true, StandardCharsets.UTF_8);
        System.setOut(System.err);
        final var lines = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        for (var line = lines.readLine(); line != null; line = lines.readLine()) {
            answers.println(GSON.toJson(answer(GSON.fromJson(line, JsonObject.class))));
        }
        System.exit(0);
    }

    private static JsonObject answer(JsonObject question) {
        final var answer = new JsonObject();
        try {
            answer.add("outcome", withPatience(question));
        } catch (TimeoutException hung) {
            answer.add("error", GSON.toJsonTree(new Failure("hung", "no answer", null, null)));
        } catch (ExecutionException failed) {
            answer.add("error", GSON.toJsonTree(Failure.of(failed.getCause())));
        } catch (InterruptedException stopped) {
            throw new IllegalStateException(stopped);
        }
        return answer;
    }

    /** The client itself waits for a status stream without end: a scenario that hangs must not stop the others. */
    private static JsonObject withPatience(JsonObject question)
            throws TimeoutException, ExecutionException, InterruptedException {
        final var seconds = question.has("patience") ? question.get("patience").getAsInt() : 60;
        final var worker = Executors.newSingleThreadExecutor(task -> {
            final var thread = new Thread(task);
            thread.setDaemon(true);
            return thread;
        });
        try {
            return worker.submit(() -> new Scenarios(question).run()).get(seconds, TimeUnit.SECONDS);
        } finally {
            worker.shutdownNow();
        }
    }
}
