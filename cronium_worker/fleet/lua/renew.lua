-- ARGV: token, milliseconds. Returns 'ok' or 'lost'.
local owner, status = unpack(redis.call('HMGET', record, 'token', 'status'))
if owner ~= ARGV[1] or TERMINAL[status] or status == 'pending' then
  return 'lost'
end
lease(ARGV[2])
return 'ok'
