-- ARGV: token, milliseconds, '1' when the worker has had the job for a while. Returns 'ok' or 'lost'.
local owner, status = unpack(redis.call('HMGET', record, 'token', 'status'))
if owner ~= ARGV[1] or TERMINAL[status] or status == 'pending' then
  return 'lost'
end
lease(ARGV[2])
if ARGV[3] == '1' then
  redis.call('HDEL', record, 'adoptions') -- the count is of deaths in a row
end
return 'ok'
