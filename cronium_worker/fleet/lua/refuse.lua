-- ARGV: status, result JSON, finished_at, seconds to live, body of the terminal event, then the record's fields and
-- values. Records a job that never was to run, so that whoever waits for it hears why. An existing record is left alone:
-- 'kept', else 'ok'.
if redis.call('EXISTS', record) == 1 then
  return 'kept'
end
redis.call('HSET', record, 'attempt', 1, 'seq', 0, unpack(ARGV, 6))
finish(unpack(ARGV, 1, 5))
return 'ok'
