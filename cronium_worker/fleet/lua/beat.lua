-- KEYS: 1 the host, 2 all hosts, 3 those that are drained (one Redis Cluster slot).
-- ARGV: host, node, report JSON, seconds to live. Returns 1 when the host is drained.
-- By Redis's own clock: hosts' clocks differ.
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('HSET', KEYS[1], ARGV[2], ARGV[3], ARGV[2] .. '_at', now_ms)
redis.call('EXPIRE', KEYS[1], ARGV[4])
redis.call('SADD', KEYS[2], ARGV[1])
return redis.call('SISMEMBER', KEYS[3], ARGV[1])
