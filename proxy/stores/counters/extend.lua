-- Let a lease expire later, in each of its pools.
--
-- KEYS: one sorted set a pool, of leases by the time they expire.
-- ARGV: now (empty: the server's time), seconds until the expiry, lease, and '1' to take the lease where it is missing.
local now, seconds, lease = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3]
if not now then
  local time = redis.call('TIME')
  now = time[1] + time[2] / 1000000
end

for _, key in ipairs(KEYS) do
  redis.call('ZREMRANGEBYSCORE', key, '-inf', string.format('%.6f', now))
  if ARGV[4] == '1' or redis.call('ZSCORE', key, lease) then
    redis.call('ZADD', key, string.format('%.6f', now + seconds), lease)
    redis.call('EXPIRE', key, 86400)
  end
end
return 0
