-- End leases of a dead holder, and forget the holder with its last one.
--
-- KEYS: the sorted set of holders by the time until which they are believed to live, the hash of the holder's leases, then
-- the pools that the first lease is to leave, the second, and so on.
-- ARGV: now (empty: the server's time), holder, then each lease and the number of its pools.
local now = tonumber(ARGV[1])
if not now then
  local time = redis.call('TIME')
  now = time[1] + time[2] / 1000000
end

local lives_until = redis.call('ZSCORE', KEYS[1], ARGV[2])
if lives_until and tonumber(lives_until) > now then
  return 0
end
local first = 3
for at = 3, #ARGV, 2 do
  redis.call('HDEL', KEYS[2], ARGV[at])
  for place = first, first + ARGV[at + 1] - 1 do
    redis.call('ZREM', KEYS[place], ARGV[at])
  end
  first = first + ARGV[at + 1]
end
if redis.call('EXISTS', KEYS[2]) == 0 then
  redis.call('ZREM', KEYS[1], ARGV[2])
end
return 1
