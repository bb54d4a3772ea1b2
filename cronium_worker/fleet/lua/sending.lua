-- A message for this job is about to be sent. Returns {} when none is wanted, else
-- {task_id, queue, priority, type, message}.
local status = redis.call('HGET', record, 'status')
if status ~= 'pending' and not TERMINAL[status] then
  return {}
end
if status == 'pending' then
  redis.call('HSET', record, 'sent_at', now_ms())
end
return redis.call('HMGET', record, 'task_id', 'queue', 'priority', 'type', 'message')
