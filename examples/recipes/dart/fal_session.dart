import 'dart:convert';

import 'package:fal_client/fal_client.dart';
import 'package:http/http.dart' as http;

/// The session of the signed-in user, renewed a minute before its end.
///
/// The fal client reads the credentials of its configuration at each request, so a job that is under way goes on with
/// the next session.
class FalSession {
  /// [proxy] is such as `https://ai.example.com`; [requestSession] sends a POST to your own route that mints sessions,
  /// with your login.
  FalSession({required this.proxy, required this.requestSession})
      : _config = Config(proxyUrl: '$proxy/api/fal/proxy') {
    _fal = FalClientImpl(config: _config);
  }

  final String proxy;
  final Future<http.Response> Function() requestSession;
  final Config _config;
  late final FalClient _fal;
  DateTime? _expiresAt;
  Future<void>? _next;

  /// The client, with a session that lasts at least a minute. Ask for it at each call.
  Future<FalClient> client() async {
    final left = _expiresAt?.difference(DateTime.now());
    if (left == null || left < const Duration(minutes: 1)) {
      // Calls at the same time share one request for the next session.
      await (_next ??= _refresh().whenComplete(() => _next = null));
    }
    return _fal;
  }

  Future<void> _refresh() async {
    final answer = await _renew() ?? await requestSession();
    if (answer.statusCode < 200 || answer.statusCode >= 300) {
      throw http.ClientException('no session: status ${answer.statusCode}');
    }
    final session = jsonDecode(answer.body) as Map<String, dynamic>;
    _config.credentials = session['token'] as String;
    _expiresAt = DateTime.parse(session['expires_at'] as String);
  }

  /// The answer with the next token; null if the proxy does not renew the session any more.
  Future<http.Response?> _renew() async {
    if (_config.credentials.isEmpty) return null;
    try {
      final headers = {'authorization': 'Bearer ${_config.credentials}'};
      final answer = await http.post(Uri.parse('$proxy/v1/sessions/renew'), headers: headers);
      return answer.statusCode == 201 ? answer : null;
    } on http.ClientException {
      return null;
    }
  }
}
