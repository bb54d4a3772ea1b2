-- ARGV: secrets JSON ('' for none), body of the pending event, then the record's fields and values.
-- Returns {} when the job was registered now, else {job, secrets} of the one that has this id already.
local existing = redis.call('HGET', record, 'job')
if existing then
  return { existing, redis.call('GET', secrets) or '' }
end
redis.call('HSET', record, 'status', 'pending', 'attempt', 1, 'token', 0, 'writes', 0, 'seq', 0,
  'sent_at', now_ms(), unpack(ARGV, 3))
if ARGV[1] ~= '' then
  redis.call('SET', secrets, ARGV[1])
end
emit('status', ARGV[2])
return {}
