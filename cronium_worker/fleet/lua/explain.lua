-- ARGV: why no worker takes the job, body of the progress event that says so. Once for each reason.
-- Returns 1 when it was said now.
local status, note = unpack(redis.call('HMGET', record, 'status', 'note'))
if status ~= 'pending' or note == ARGV[1] then
  return 0
end
redis.call('HSET', record, 'note', ARGV[1])
emit('progress', ARGV[2])
return 1
