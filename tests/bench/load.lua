-- One call of a fal client, over and over. Told by the environment: BENCH_METHOD, BENCH_TARGET, BENCH_TOKEN.
wrk.method = os.getenv("BENCH_METHOD")
wrk.headers["x-fal-target-url"] = os.getenv("BENCH_TARGET")
wrk.headers["authorization"] = "Bearer " .. os.getenv("BENCH_TOKEN")
wrk.headers["accept"] = "application/json"
if wrk.method == "POST" then
  wrk.headers["content-type"] = "application/json"
  wrk.body = '{"image_url":"https://example.com/cat.png","prompt":"What is in this picture?","max_tokens":64}'
end

function done(summary, latency)
  local errors = summary.errors
  io.write(string.format(
    'RESULT {"requests": %d, "microseconds": %d, "refused": %d, "broken": %d, "p50_ms": %.3f, "p99_ms": %.3f}\n',
    summary.requests, summary.duration, errors.status,
    errors.connect + errors.read + errors.write + errors.timeout,
    latency:percentile(50) / 1000, latency:percentile(99) / 1000))
end
