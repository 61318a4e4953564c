-- Count the leases of a pool that have not expired.
--
-- KEYS: a sorted set of leases by the time they expire.
-- ARGV: now (empty: the server's time).
local now = tonumber(ARGV[1])
if not now then
  local time = redis.call('TIME')
  now = time[1] + time[2] / 1000000
end
return redis.call('ZCOUNT', KEYS[1], string.format('(%.6f', now), '+inf')
