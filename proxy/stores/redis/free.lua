-- End leases of a dead holder, and forget the holder with its last one.
--
-- KEYS: the sorted set of holders by the time until which they are believed to live, the hash of the holder's leases, then
-- the pools that the first lease is to leave, the second, and so on.
-- ARGV: now (empty: the server's time), seconds that a sign of life counts, holder, then each lease and the number of its
-- pools.
local now, seconds, holder = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3]
if not now then
  local time = redis.call('TIME')
  now = time[1] + time[2] / 1000000
end

local lives_until = tonumber(redis.call('ZSCORE', KEYS[1], holder) or now)
if now < lives_until and lives_until <= now + seconds then
  return 0
end
local first = 3
for at = 4, #ARGV, 2 do
  redis.call('HDEL', KEYS[2], ARGV[at])
  for place = first, first + ARGV[at + 1] - 1 do
    redis.call('ZREM', KEYS[place], ARGV[at])
  end
  first = first + ARGV[at + 1]
end
if redis.call('EXISTS', KEYS[2]) == 0 then
  redis.call('ZREM', KEYS[1], holder)
end
return 1
