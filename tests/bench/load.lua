-- One call of a fal client, over and over. Set by the environment: BENCH_METHOD, BENCH_TARGET, BENCH_TOKEN;
-- BENCH_DELAY_MS is the mean pause of a connection between two calls, 0 for none.
wrk.method = os.getenv("BENCH_METHOD")
wrk.headers["x-fal-target-url"] = os.getenv("BENCH_TARGET")
wrk.headers["authorization"] = "Bearer " .. os.getenv("BENCH_TOKEN")
wrk.headers["accept"] = "application/json"
if wrk.method == "POST" then
  wrk.headers["content-type"] = "application/json"
  wrk.body = '{"image_url":"https://example.com/cat.png","prompt":"What is in this picture?","max_tokens":64}'
end

local pause = tonumber(os.getenv("BENCH_DELAY_MS") or "0")
if pause > 0 then
  -- Spread evenly, so that the connections do not call together.
  function delay()
    return math.random(0, 2 * pause)
  end
end

function done(summary, latency)
  local errors = summary.errors
  io.write(string.format(
    'RESULT {"requests": %d, "microseconds": %d, "refused": %d, "broken": %d, "p50_ms": %.3f, "p99_ms": %.3f}\n',
    summary.requests, summary.duration, errors.status,
    errors.connect + errors.read + errors.write + errors.timeout,
    latency:percentile(50) / 1000, latency:percentile(99) / 1000))
end
