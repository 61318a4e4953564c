-- Take a slot of every pool, or of none if one of them is full.
--
-- KEYS: one sorted set a pool, of leases by the time they expire.
-- ARGV: now, expiry, lease, then the limit of each pool.
-- Answer: the place of a pool that is full, 0 for none.
local now, expires_at, lease = ARGV[1], ARGV[2], ARGV[3]

for at, key in ipairs(KEYS) do
  redis.call('ZREMRANGEBYSCORE', key, '-inf', now)
  if not redis.call('ZSCORE', key, lease) and redis.call('ZCARD', key) >= tonumber(ARGV[3 + at]) then
    return at
  end
end
for _, key in ipairs(KEYS) do
  redis.call('ZADD', key, expires_at, lease)
  redis.call('EXPIRE', key, 86400)
end
return 0
