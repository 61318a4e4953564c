-- Take a slot of every pool, or of none if one of them is full.
--
-- KEYS: the epoch, the hash of the holder's leases, then one sorted set a pool, of leases by the time they expire.
-- ARGV: now (empty: the server's time), seconds until the expiry, lease, the epoch that the caller knows (empty: any), then
-- the limit of each pool.
-- Answer: the place of a pool that is full, 0 for none, -1 if the epoch is another.
--
-- A lease that would expire later than one of now is of a clock that was ahead: it lasts no longer than that.
-- What takes memory is written first: a server without memory refuses that, and lets it through after a removal.
local now, seconds, lease = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3]
if ARGV[4] ~= '' and redis.call('GET', KEYS[1]) ~= ARGV[4] then
  return -1
end
if not now then
  local time = redis.call('TIME')
  now = time[1] + time[2] / 1000000
end

local full, pools, stamp, latest = 0, {}, string.format('%.6f', now), string.format('%.6f', now + seconds)
for at = 3, #KEYS do
  local key = KEYS[at]
  local expires_at = tonumber(redis.call('ZSCORE', key, lease) or now)
  if expires_at <= now and redis.call('ZCOUNT', key, '(' .. stamp, '+inf') >= tonumber(ARGV[2 + at]) then
    full = at - 2
    break
  end
  pools[at - 2] = key
end
if full == 0 then
  redis.call('HSET', KEYS[2], lease, cjson.encode(pools))
  for _, key in ipairs(pools) do
    redis.call('ZADD', key, latest, lease)
    redis.call('EXPIRE', key, 86400)
  end
end
for at = 3, #KEYS do
  local key = KEYS[at]
  redis.call('ZREMRANGEBYSCORE', key, '-inf', stamp)
  for _, ahead in ipairs(redis.call('ZRANGEBYSCORE', key, '(' .. latest, '+inf')) do
    redis.call('ZADD', key, latest, ahead)
  end
end
return full
