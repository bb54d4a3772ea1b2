-- ARGV: result JSON, finished_at, seconds to live, body of the terminal event: used when no worker has the job.
-- Returns 'missing', 'finished' (before this call), 'cancelled' (by this call) or 'requested' (of its worker).
local status, id = unpack(redis.call('HMGET', record, 'status', 'id'))
if not status then
  return 'missing'
end
if TERMINAL[status] then
  return 'finished'
end
if status == 'pending' then
  finish('cancelled', unpack(ARGV))
  redis.call('PUBLISH', 'cronium:cancel', id)
  return 'cancelled'
end
redis.call('HSET', record, 'cancel', 1)
redis.call('PUBLISH', 'cronium:cancel', id)
return 'requested'
