package scenarios;

import com.google.gson.Gson;
import com.google.gson.JsonObject;
import java.io.File;
import java.io.IOException;
import okhttp3.MediaType;
import okhttp3.OkHttpClient;
import okhttp3.Request;
import okhttp3.RequestBody;

/** An upload through the proxy, as an Android app writes it: ask for a place, put the file there. */
final class Upload {
    private static final String INITIATE = "https://rest.fal.ai/storage/upload/initiate";
    private final OkHttpClient http = new OkHttpClient();
    private final Gson gson = new Gson();
    private final String proxyUrl;
    private final String session;

    Upload(String proxyUrl, String session) {
        this.proxyUrl = proxyUrl;
        this.session = session;
    }

    /** Returns the URL to use as `image_url`. */
    String send(String path, String type) throws IOException {
        final var file = new File(path);
        final var place = initiate(file.getName(), type);
        final var put = new Request.Builder()
                .url(place.get("upload_url").getAsString())
                .put(RequestBody.create(file, MediaType.parse(type)))
                .build();
        text(put);
        return place.get("file_url").getAsString();
    }

    private JsonObject initiate(String name, String type) throws IOException {
        final var what = new JsonObject();
        what.addProperty("file_name", name);
        what.addProperty("content_type", type);
        final var ask = new Request.Builder()
                .url(proxyUrl)
                .header("authorization", "Key " + session)
                .header("x-fal-target-url", INITIATE)
                .post(RequestBody.create(gson.toJson(what), MediaType.parse("application/json")))
                .build();
        return gson.fromJson(text(ask), JsonObject.class);
    }

    private String text(Request request) throws IOException {
        try (var response = http.newCall(request).execute()) {
            if (!response.isSuccessful()) {
                throw new IOException("Upload failed with code: " + response.code());
            }
            return response.body().string();
        }
    }
}
