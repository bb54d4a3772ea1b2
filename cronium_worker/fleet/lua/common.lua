-- Put before every other script. KEYS: 1 record, 2 events, 3 secrets (one Redis Cluster slot).
local record, events, secrets = KEYS[1], KEYS[2], KEYS[3]
local TERMINAL = { completed = true, failed = true, timeout = true, cancelled = true }

-- Stores an event, then publishes it.
local function append(kind, event)
  redis.call('XADD', events, '*', 'event', event)
  redis.call('PUBLISH', record .. (kind == 'log' and ':logs' or ':status'), event)
  if kind == 'status' then
    redis.call('PUBLISH', 'cronium:status', event)
  end
end

-- The same under the next sequence number. The body is the event's JSON after `seq`, in pieces: each concatenation copies.
local function emit(kind, ...)
  local seq = redis.call('HINCRBY', record, 'seq', 1) - 1
  local start = '{"v":1,"job_id":"' .. redis.call('HGET', record, 'id') .. '","seq":' .. seq .. ','
  append(kind, table.concat({ start, ... }))
end

-- Redis's own clock: hosts' clocks differ.
local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- The encrypted secrets; '' when the job has none, 'gone' when they are deleted already.
local function sealed()
  return redis.call('GET', secrets) or (redis.call('HEXISTS', record, 'secrets_ttl') == 1 and 'gone') or ''
end

-- From now on for as long again, whoever has the job or has not.
local function keep_secrets()
  local ttl = redis.call('HGET', record, 'secrets_ttl')
  if ttl then
    redis.call('EXPIRE', secrets, ttl)
  end
end

-- The claim is this worker's until then, unless it renews it.
local function lease(ttl_ms)
  redis.call('HSET', record, 'lease', now_ms() + ttl_ms)
  keep_secrets()
end

-- 'ok' when the writer still owns the attempt and this write is new, 'done' when it was made before
-- (a client sends again when the answer got lost), 'lost' when the writer must stop; the next `seq` when it is not
-- the one that the writer has taken for it.
local function fence(token, write, seq)
  local owner, last, status, next_seq = unpack(redis.call('HMGET', record, 'token', 'writes', 'status', 'seq'))
  if owner ~= token then
    return 'lost'
  end
  if tonumber(last) >= tonumber(write) then
    return 'done'
  end
  if TERMINAL[status] then
    return 'lost'
  end
  if seq and seq ~= next_seq then
    return next_seq
  end
  redis.call('HSET', record, 'writes', write)
  return 'ok'
end

-- The rest is the body of the terminal event, in pieces.
local function finish(status, result, finished_at, ttl, ...)
  redis.call('HSET', record, 'status', status, 'result', result, 'finished_at', finished_at)
  redis.call('HDEL', record, 'lease', 'note')
  emit('status', ...)
  redis.call('DEL', secrets)
  redis.call('EXPIRE', record, ttl)
  redis.call('EXPIRE', events, ttl)
end

-- Makes a worker the owner; returns its token.
local function take(claimant, node, ttl_ms)
  redis.call('HSET', record, 'claimant', claimant, 'node', node, 'taken_at', now_ms(), 'writes', 0)
  lease(ttl_ms)
  return redis.call('HINCRBY', record, 'token', 1)
end

-- Whether the record needs a newer version than a worker that reads jobs of this format.
local function is_newer(format, known)
  return tonumber(format or 1) > tonumber(known)
end

local function claimed(token)
  local reply = redis.call(
    'HMGET', record, 'attempt', 'job', 'signature', 'created_at', 'queued_at', 'cancel', 'faults', 'failures', 'sent_at',
    'seq'
  )
  local attempt, job, signature, created_at, queued_at, cancel, faults, failures, sent_at, seq = unpack(reply)
  return {
    'claimed', tostring(token), attempt, job, signature or '', sealed(), created_at, queued_at,
    cancel or '', faults or '0', failures or '0', sent_at or '0', seq,
  }
end

-- Back to `pending`: the next attempt, or the same one when its script was never started.
local function again(attempt, body, delay_ms, faults, failures, queued_at)
  redis.call('HDEL', record, 'lease', 'started_at', 'image', 'stdout_offset', 'stderr_offset', 'adoptions',
    'detached')
  redis.call('HSET', record, 'status', 'pending', 'attempt', attempt, 'faults', faults, 'failures', failures,
    'queued_at', queued_at, 'due_at', now_ms() + delay_ms)
  keep_secrets()
  emit('status', body)
end
