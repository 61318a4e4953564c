-- Give a sign of life.
--
-- KEYS: a sorted set of holders by the time until which they are believed to live, the epoch, the hash of the holder's
-- leases.
-- ARGV: now (empty: the server's time), seconds until the expiry, holder, an epoch in case that there is none.
-- Answer: the epoch; whether it is that new one; whether the holder was believed to live; the time that it had before and
-- the one that it has now; then some of the holders whose time is over, or lies further ahead than a sign of life gives:
-- that is of a clock that was set back.
local now, seconds, holder = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3]
if not now then
  local time = redis.call('TIME')
  now = time[1] + time[2] / 1000000
end

local is_fresh = redis.call('SETNX', KEYS[2], ARGV[4])
local before = redis.call('ZSCORE', KEYS[1], holder)
redis.call('ZADD', KEYS[1], string.format('%.6f', now + seconds), holder)
redis.call('EXPIRE', KEYS[1], 86400)
redis.call('EXPIRE', KEYS[3], 86400)
local answer = {
  redis.call('GET', KEYS[2]),
  is_fresh == 1 and '1' or '',
  before and tonumber(before) > now and '1' or '',
  before or '',
  redis.call('ZSCORE', KEYS[1], holder),
}
local over = { { '-inf', string.format('%.6f', now) }, { string.format('(%.6f', now + seconds), '+inf' } }
for _, range in ipairs(over) do
  for _, dead in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], range[1], range[2], 'LIMIT', 0, 16)) do
    table.insert(answer, dead)
  end
end
return answer
