-- ARGV: claimant (unique to this call), host, body of the preparing event without attempt, lease in milliseconds.
-- Returns {outcome, token, attempt, job, secrets, created_at, queued_at, cancel}.
local status, claimant, token, attempt = unpack(redis.call('HMGET', record, 'status', 'claimant', 'token', 'attempt'))
if not status then
  return { 'missing' }
end
if TERMINAL[status] then
  return { 'finished' }
end
if claimant ~= ARGV[1] then
  if status ~= 'pending' then
    return { 'busy' }
  end
  token = redis.call('HINCRBY', record, 'token', 1)
  redis.call('HSET', record, 'status', 'preparing', 'claimant', ARGV[1], 'host', ARGV[2], 'writes', 0)
  lease(ARGV[4])
  emit('status', ARGV[3] .. ',"attempt":' .. attempt .. '}')
end
local job, created_at, queued_at, cancel =
  unpack(redis.call('HMGET', record, 'job', 'created_at', 'queued_at', 'cancel'))
return { 'claimed', tostring(token), attempt, job, redis.call('GET', secrets) or '', created_at, queued_at, cancel or '' }
