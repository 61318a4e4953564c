-- Count one hit in every window, or in none if one of them is full.
--
-- KEYS: one sorted set a window, of the times of its hits.
-- ARGV: now (empty: the server's time), a name for this hit (empty: it is only tried, not counted), then limit and seconds of each window.
-- Answer: the place of the refusing window (0 for none), the seconds until it has room, then for each window what is
-- left and the seconds until its oldest hit leaves it. Numbers go as text: Redis would cut them to integers.
--
-- A hit from the future, of a clock that was ahead, counts as one of now: no window refuses longer than it is long.
-- A hit whose answer was lost is sent again: it is known by its name, and counts once, also where it was the last.
-- What takes memory is written first: a server without memory refuses that, and lets it through after a removal.
local now, name = tonumber(ARGV[1]), ARGV[2]
if not now then
  local time = redis.call('TIME')
  now = time[1] + time[2] / 1000000
end
local stamp = string.format('%.6f', now)
local refused, longest = 0, 0

for at, key in ipairs(KEYS) do
  local limit, seconds = tonumber(ARGV[1 + 2 * at]), tonumber(ARGV[2 + 2 * at])
  local blocking = redis.call('ZRANGE', key, -limit, -limit, 'WITHSCORES')[2]
  if blocking then
    local wait = math.min(tonumber(blocking), now) + seconds - now
    if wait > longest then
      refused, longest = at, wait
    end
  end
end
local counts = refused == 0 and name ~= ''
if refused ~= 0 and name ~= '' and redis.call('ZSCORE', KEYS[refused], name) then
  refused, longest = 0, 0
end
if counts then
  for _, key in ipairs(KEYS) do
    redis.call('ZADD', key, stamp, name)
  end
end

local answer = { tostring(refused), tostring(longest) }
for at, key in ipairs(KEYS) do
  local limit, seconds = tonumber(ARGV[1 + 2 * at]), tonumber(ARGV[2 + 2 * at])
  redis.call('ZREMRANGEBYSCORE', key, '-inf', string.format('%.6f', now - seconds))
  for _, ahead in ipairs(redis.call('ZRANGEBYSCORE', key, '(' .. stamp, '+inf')) do
    redis.call('ZADD', key, stamp, ahead)
  end
  if counts then
    redis.call('EXPIRE', key, seconds + 60)
  end
  local oldest = redis.call('ZRANGE', key, 0, 0, 'WITHSCORES')[2]
  table.insert(answer, tostring(math.max(0, limit - redis.call('ZCARD', key))))
  table.insert(answer, tostring(oldest and tonumber(oldest) + seconds - now or 0))
end
return answer
