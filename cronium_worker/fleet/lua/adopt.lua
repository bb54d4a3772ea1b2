-- ARGV: claimant (unique to this call), host, node, attempt, lease in milliseconds, newest format of jobs
-- that the worker reads.
-- For the next worker of the same host, which knows that the one before is gone.
-- Returns what claim.lua does, and {…, stdout_offset, stderr_offset, started_at, image, adoptions}.
local status, claimant, token, attempt, host, format =
  unpack(redis.call('HMGET', record, 'status', 'claimant', 'token', 'attempt', 'host', 'format'))
if not status then
  return { 'missing' }
end
if TERMINAL[status] then
  return { 'finished' }
end
if claimant ~= ARGV[1] then
  if status == 'pending' or attempt ~= ARGV[4] or host ~= ARGV[2] then
    return { 'busy' }
  end
  if is_newer(format, ARGV[6]) then
    return { 'unreadable' }
  end
  token = take(ARGV[1], ARGV[3], ARGV[5])
  -- A worker that was told to end has said so: that was no death.
  if redis.call('HDEL', record, 'detached') == 0 then
    redis.call('HINCRBY', record, 'adoptions', 1)
  end
end
local reply = claimed(token)
for _, name in ipairs({ 'stdout_offset', 'stderr_offset', 'started_at', 'image', 'adoptions' }) do
  table.insert(reply, redis.call('HGET', record, name) or '')
end
return reply
