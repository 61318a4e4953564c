import ai.fal.client.ClientConfig
import ai.fal.client.CredentialsResolver
import ai.fal.client.FalClient
import com.google.gson.JsonObject
import com.google.gson.JsonParser
import okhttp3.OkHttpClient
import okhttp3.Request
import okhttp3.RequestBody.Companion.toRequestBody
import java.io.IOException
import java.time.Instant
import java.time.OffsetDateTime

/**
 * The session of the signed-in user, renewed a minute before its end.
 *
 * The fal client asks for its credentials at each request, so a job outlives its session.
 */
class FalSession(
    private val proxy: String, // such as https://ai.example.com
    private val backend: Request, // your own route that mints sessions, with your login
    private val http: OkHttpClient = OkHttpClient(),
) : CredentialsResolver {
    private class Session(answer: JsonObject) {
        val token: String = answer.get("token").asString
        val expiresAt: Instant = OffsetDateTime.parse(answer.get("expires_at").asString).toInstant()
    }

    private var token: String? = null
    private var renewAt = Instant.MIN

    /** A fal client that calls the proxy with this session. */
    fun client(): FalClient =
        FalClient.withConfig(ClientConfig.builder().withProxyUrl("$proxy/api/fal/proxy").withCredentials(this).build())

    /** The token. Parallel requests wait for one renewal. */
    @Synchronized
    override fun get(): String {
        val current = token
        if (current != null && Instant.now() < renewAt) return current
        val session = current?.let(::renew) ?: send(backend)
        renewAt = session.expiresAt.minusSeconds(60)
        return session.token.also { token = it }
    }

    /** The next token of the session; null if the proxy does not renew it any more. */
    private fun renew(token: String): Session? = try {
        val url = "$proxy/v1/sessions/renew"
        send(Request.Builder().url(url).header("Authorization", "Bearer $token").post("".toRequestBody()).build())
    } catch (_: IOException) {
        null
    }

    private fun send(request: Request): Session = http.newCall(request).execute().use { answer ->
        val body = answer.body?.string().orEmpty()
        if (!answer.isSuccessful) throw IOException("${request.url} answered ${answer.code}: $body")
        // OkHttp ends the app for any other exception.
        runCatching { Session(JsonParser.parseString(body).asJsonObject) }
            .getOrElse { throw IOException("${request.url} answered no session") }
    }
}
