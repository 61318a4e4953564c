-- Let leases expire later, in each of their pools; never sooner.
--
-- KEYS: the hash of the holder's leases, then the pools of the first lease, of the second, and so on: sorted sets of leases
-- by the time they expire.
-- ARGV: now (empty: the server's time), seconds until the expiry, '1' to take a lease where it is missing, '1' to make them
-- the holder's, then each lease and the number of its pools.
--
-- To take a lease is refused by a server without memory, as it is written before anything is removed. To let one expire
-- later is not.
local now, seconds, takes, holds = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3] == '1', ARGV[4] == '1'
if not now then
  local time = redis.call('TIME')
  now = time[1] + time[2] / 1000000
end

local stamp, first = string.format('%.6f', now + seconds), 2
for at = 5, #ARGV, 2 do
  local lease, pools = ARGV[at], {}
  for place = first, first + ARGV[at + 1] - 1 do
    local key = KEYS[place]
    local expires_at = tonumber(redis.call('ZSCORE', key, lease) or now)
    if takes and expires_at <= now then
      redis.call('ZADD', key, stamp, lease)
      redis.call('EXPIRE', key, 86400)
    end
    redis.call('ZREMRANGEBYSCORE', key, '-inf', string.format('%.6f', now))
    if now < expires_at and expires_at < now + seconds then
      redis.call('ZADD', key, stamp, lease)
      redis.call('EXPIRE', key, 86400)
    end
    table.insert(pools, key)
  end
  if holds then
    redis.call('HSET', KEYS[1], lease, cjson.encode(pools))
  end
  first = first + ARGV[at + 1]
end
return 0
