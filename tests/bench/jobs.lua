-- Whole jobs as the polling clients of fal make them: a submit, BENCH_POLLS status polls, the result. Each connection
-- takes the next step of whichever job is ready for one, so there are as many jobs under way as connections.
local headers = {
  ["authorization"] = "Bearer " .. os.getenv("BENCH_TOKEN"),
  ["accept"] = "application/json",
}
local base = "https://queue.fal.run/fal-ai/llava-next"
local input = '{"image_url":"https://example.com/cat.png","prompt":"What is in this picture?","max_tokens":64}'
local polls = tonumber(os.getenv("BENCH_POLLS"))
local threads = {}

-- Jobs that wait for their next step, and how many polls each still gets. A thread's globals are its own.
ready, left, finished = {}, {}, 0

function setup(thread)
  table.insert(threads, thread)
end

local function call(method, target, body)
  local all = { ["x-fal-target-url"] = target }
  for name, value in pairs(headers) do all[name] = value end
  if body then all["content-type"] = "application/json" end
  return wrk.format(method, nil, all, body)
end

function request()
  local job = table.remove(ready)
  if not job then return call("POST", base, input) end
  if left[job] > 0 then return call("GET", base .. "/requests/" .. job .. "/status") end
  left[job] = nil
  return call("GET", base .. "/requests/" .. job)
end

function response(status, _, body)
  local job = string.match(body, '"request_id":"([^"]+)"')
  if status >= 400 then return end
  if not job then
    finished = finished + 1
    return
  end
  left[job] = left[job] and left[job] - 1 or polls
  table.insert(ready, job)
end

function done(summary, latency)
  local errors, jobs = summary.errors, 0
  for _, thread in ipairs(threads) do jobs = jobs + thread:get("finished") end
  io.write(string.format(
    'RESULT {"requests": %d, "jobs": %d, "microseconds": %d, "refused": %d, "broken": %d, "p50_ms": %.3f, '
      .. '"p99_ms": %.3f}\n',
    summary.requests, jobs, summary.duration, errors.status,
    errors.connect + errors.read + errors.write + errors.timeout,
    latency:percentile(50) / 1000, latency:percentile(99) / 1000))
end
