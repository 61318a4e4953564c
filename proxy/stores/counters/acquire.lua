-- Take a slot of every pool, or of none if one of them is full.
--
-- KEYS: one sorted set a pool, of leases by the time they expire.
-- ARGV: now (empty: the server's time), seconds until the expiry, lease, then the limit of each pool.
-- Answer: the place of a pool that is full, 0 for none.
local now, seconds, lease = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3]
if not now then
  local time = redis.call('TIME')
  now = time[1] + time[2] / 1000000
end

for at, key in ipairs(KEYS) do
  redis.call('ZREMRANGEBYSCORE', key, '-inf', string.format('%.6f', now))
  if not redis.call('ZSCORE', key, lease) and redis.call('ZCARD', key) >= tonumber(ARGV[3 + at]) then
    return at
  end
end
for _, key in ipairs(KEYS) do
  redis.call('ZADD', key, string.format('%.6f', now + seconds), lease)
  redis.call('EXPIRE', key, 86400)
end
return 0
