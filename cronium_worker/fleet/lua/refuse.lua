-- ARGV: id, created_at, result JSON, finished_at, body of the terminal event, seconds to live.
-- Records a job that was never valid, so that whoever waits for it hears why. An existing record is left alone.
if redis.call('EXISTS', record) == 0 then
  redis.call('HSET', record, 'id', ARGV[1], 'job', '{}', 'attempt', 1, 'seq', 0, 'created_at', ARGV[2])
  finish('failed', unpack(ARGV, 3))
end
return 'ok'
