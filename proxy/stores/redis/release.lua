-- Return a lease to all its pools.
--
-- KEYS: the hash of the holder's leases, then one sorted set a pool, of leases by the time they expire.
-- ARGV: lease.
redis.call('HDEL', KEYS[1], ARGV[1])
for at = 2, #KEYS do
  redis.call('ZREM', KEYS[at], ARGV[1])
end
return 0
