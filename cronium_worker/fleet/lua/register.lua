-- ARGV: encrypted secrets ('' for none), seconds to keep them while no worker has the job, body of the pending event,
-- then the record's fields and values.
-- Returns {} when the job was registered now, else {job, encrypted secrets} of the one that has this id already.
local existing = redis.call('HGET', record, 'job')
if existing then
  return { existing, sealed() }
end
redis.call('HSET', record, 'status', 'pending', 'attempt', 1, 'token', 0, 'writes', 0, 'seq', 0,
  'sent_at', now_ms(), unpack(ARGV, 4))
if ARGV[1] ~= '' then
  redis.call('HSET', record, 'secrets_ttl', ARGV[2])
  redis.call('SET', secrets, ARGV[1], 'EX', ARGV[2])
end
emit('status', ARGV[3])
return {}
