import FalClient
import Foundation

/// The session of the signed-in user, renewed a minute before its end.
///
/// The fal client takes a session in its URL only, so ask for a client at each call. A call that is under way keeps its
/// session: if that ends, the proxy still answers for the job for ten minutes.
actor FalSession {
    private struct Session: Decodable {
        let token: String
        let expires_at: Date
    }

    private let proxy: URL
    private let backend: URLRequest
    private var current: Session?
    private var next: Task<Session, Error>?

    /// `proxy` is such as https://ai.example.com; `backend` is a POST to your own route that mints sessions, with your
    /// login.
    init(proxy: URL, backend: URLRequest) {
        self.proxy = proxy
        self.backend = backend
    }

    func client() async throws -> Client {
        let token = try await session().token
        return FalClient.withProxy("\(proxy.absoluteString)/s/\(token)/api/fal/proxy")
    }

    /// Calls at the same time share one request for the next session.
    private func session() async throws -> Session {
        let old = current
        if let old, old.expires_at.timeIntervalSinceNow > 60 { return old }
        if let next { return try await next.value }
        let task = Task { try await self.fetch(after: old) }
        next = task
        defer { next = nil }
        let session = try await task.value
        current = session
        return session
    }

    private func fetch(after old: Session?) async throws -> Session {
        if let old, let renewed = try? await send(renewal(of: old)) { return renewed }
        return try await send(backend)
    }

    private func renewal(of session: Session) -> URLRequest {
        var request = URLRequest(url: proxy.appendingPathComponent("v1/sessions/renew"))
        request.httpMethod = "POST"
        request.setValue("Bearer \(session.token)", forHTTPHeaderField: "Authorization")
        return request
    }

    private func send(_ request: URLRequest) async throws -> Session {
        let (body, response) = try await URLSession.shared.data(for: request)
        guard let http = response as? HTTPURLResponse, 200 ..< 300 ~= http.statusCode else {
            throw URLError(.userAuthenticationRequired)
        }
        let decoder = JSONDecoder()
        decoder.dateDecodingStrategy = .iso8601
        return try decoder.decode(Session.self, from: body)
    }
}
