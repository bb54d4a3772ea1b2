-- ARGV: claimant (unique to this call), host, node, body of the preparing event without attempt, lease in milliseconds, newest
-- format of jobs that the worker reads: a job of a newer one is left as it is ('unreadable').
-- Returns {outcome, token, attempt, job, signature, secrets, created_at, queued_at, cancel, faults, failures, sent_at, seq}.
local status, claimant, token, attempt, due_at, format, note =
  unpack(redis.call('HMGET', record, 'status', 'claimant', 'token', 'attempt', 'due_at', 'format', 'note'))
if not status then
  return { 'missing' }
end
if TERMINAL[status] then
  return { 'finished' }
end
if claimant ~= ARGV[1] then
  -- Another worker has it, or it is to wait; whoever waits for it sends it again.
  if status ~= 'pending' or tonumber(due_at or 0) > now_ms() then
    return { 'busy' }
  end
  if is_newer(format, ARGV[6]) then
    return { 'unreadable' }
  end
  if note then
    redis.call('HDEL', record, 'note')
  end
  token = take(ARGV[1], ARGV[3], ARGV[5])
  redis.call('HSET', record, 'status', 'preparing', 'host', ARGV[2])
  emit('status', ARGV[4] .. ',"attempt":' .. attempt .. '}')
end
return claimed(token)
