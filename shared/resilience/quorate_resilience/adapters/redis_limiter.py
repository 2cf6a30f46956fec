"""The four limiters as scripts of Redis, so that several processes count together.

Each script reads one key, decides as the limiter of the same name in `quorate_resilience.limiters`, and writes the key
back with the time in which its record expires; Redis runs it alone, so that nothing comes between. The time is that of
the server, since the clocks of those who ask differ; when it goes back, nothing is regained. Nothing is kept in Redis
for longer than it is worth something.

This module is the text, the arguments and the answers; whoever has a connection sends `call`, and reads what comes by
`decision`. Redis 5 or newer is wanted: before, a script that asks for the time could not write. One key a call, so that
a Redis Cluster will do.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

from quorate_resilience.limiters import (
    Decision,
    FixedWindow,
    LeakyBucket,
    SlidingWindow,
    TabledTokenBucket,
    TokenBucket,
)

MICROSECONDS = 1_000_000
NEVER_US = 1 << 53
"""A wait that does not end, as a number that both sides hold exactly."""

SERVER_TIME = """\
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]
"""
"""All times are in microseconds."""

RECORD = """\
local function read()
  local packed = redis.call('GET', KEYS[1])
  if not packed then return nil end
  local record = {struct.unpack('<' .. string.rep('d', #packed / 8), packed)}
  record[#record] = nil  -- the position behind the last float
  return record
end
local function write(record, expires)
  local lives_ms = math.ceil((expires - now) / 1000)
  if lives_ms < 1 then lives_ms = 1 end
  local packed = struct.pack('<' .. string.rep('d', #record), unpack(record))
  redis.call('SET', KEYS[1], packed, 'PX', string.format('%.0f', lives_ms))
end
local function answer(admitted, remaining, wait, reset, delay)
  if wait > 9007199254740992 then wait = 9007199254740992 end
  delay = delay or 0
  return {admitted and 1 or 0, math.floor(remaining), math.ceil(wait), math.ceil(reset), math.ceil(delay), now}
end
"""

_BUCKET = """\
local rate, burst, cost = tonumber(ARGV[1]) / 1000000, tonumber(ARGV[2]), tonumber(ARGV[3])
local tokens, updated = burst, now
local record = read()
if record then
  tokens, updated = record[1], record[2]
  if now > updated then tokens, updated = math.min(tokens + (now - updated) * rate, burst), now end
end
local slack = 0.001 * rate
if tokens + slack < cost then
  local wait = cost > burst and math.huge or (cost - tokens) / rate
  return answer(false, math.max(tokens, 0), wait, (burst - tokens) / rate)
end
tokens = tokens - cost
local reset = (burst - tokens) / rate
if cost > 0 then write({tokens, updated}, updated + reset) end
return answer(true, math.max(tokens + slack, 0), 0, reset)
"""

_FIXED_WINDOW = """\
local limit, size, cost = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local window, count = math.floor(now / size), 0
local record = read()
if record and record[1] >= window then window, count = record[1], record[2] end
local ends = (window + 1) * size
local left = limit - count
if cost > left then
  return answer(false, left, cost > limit and math.huge or ends - now, ends - now)
end
count = count + cost
if cost > 0 then write({window, count}, ends) end
return answer(true, limit - count, 0, count > 0 and ends - now or 0)
"""

_SLIDING_WINDOW = """\
local limit, size, parts = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local cost = tonumber(ARGV[4])
size = size / parts
local newest = math.floor(now / size)
local record = read()
if record and record[1] > newest then newest = record[1] end
local counted, sum = {newest}, 0
for age = 0, parts do
  local count = 0
  if record and newest - record[1] <= age then count = record[2 + age - (newest - record[1])] or 0 end
  counted[2 + age] = count
  sum = sum + count
end
local function leaves(age) return (newest - age + parts + 1) * size end
local function reset()
  for age = 0, parts do
    if counted[2 + age] > 0 then return leaves(age) end
  end
  return now
end
if cost > limit - sum then
  local missing, wait = cost - (limit - sum), math.huge
  if cost <= limit then
    for age = parts, 0, -1 do
      missing = missing - counted[2 + age]
      if missing <= 0 then wait = leaves(age) - now; break end
    end
  end
  return answer(false, limit - sum, wait, reset() - now)
end
counted[2] = counted[2] + cost
if cost > 0 then write(counted, reset()) end
return answer(true, limit - sum - cost, 0, reset() - now)
"""

_QUEUE = """\
local interval = 1000000 / tonumber(ARGV[1])
local wait_max = math.min(tonumber(ARGV[2]) * interval, tonumber(ARGV[3]))
local record = read()
local free, gaps = now, {}
if record then
  if record[1] > now then free = record[1] end
  for place = 2, #record do
    if record[place] > now then gaps[#gaps + 1] = record[place] end
  end
end
local function keep() write({free, unpack(gaps)}, free) end
"""

_LEAKY_BUCKET = """\
local cost = tonumber(ARGV[4])
local slack = 0.001
local function room(behind)
  local left = wait_max - behind + slack
  return left >= 0 and math.floor(left / interval) + 1 or 0
end
local departure = free
if cost == 1 and #gaps > 0 then
  departure = table.remove(gaps, 1)
elseif cost > 0 and (departure - now > wait_max + slack or cost > room(0)) then
  local wait = cost > room(0) and math.huge or math.max(free - now - wait_max, 0)
  return answer(false, room(free - now) + #gaps, wait, free - now)
else
  free = free + cost * interval
end
if cost > 0 then keep() end
return answer(true, room(free - now) + #gaps, 0, free - now, cost > 0 and departure - now or 0)
"""

_GIVE_BACK = """\
local departure = tonumber(ARGV[4])
if not record or departure <= now or departure >= free - interval / 2 then return 0 end
if free - departure < 1.5 * interval then
  free = free - interval
  while #gaps > 0 and free - gaps[#gaps] < 1.5 * interval do free = table.remove(gaps) end
elseif #gaps < 15 then
  local place = 1
  while gaps[place] and gaps[place] < departure do place = place + 1 end
  table.insert(gaps, place, departure)
end
keep()
return 1
"""


class Script:
    """Lua text, and the digest that Redis knows it by once it is loaded. `clock` sets `now`, the time of a call."""

    __slots__ = ("sha", "text")

    def __init__(self, body: str, clock: str = SERVER_TIME) -> None:
        self.text = clock + RECORD + body
        # Redis names scripts so; nothing is protected by it.
        self.sha = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()


TOKEN_BUCKET = Script(_BUCKET)
FIXED_WINDOW = Script(_FIXED_WINDOW)
SLIDING_WINDOW = Script(_SLIDING_WINDOW)
LEAKY_BUCKET = Script(_QUEUE + _LEAKY_BUCKET)
GIVE_BACK = Script(_QUEUE + _GIVE_BACK)
SCRIPTS = (TOKEN_BUCKET, FIXED_WINDOW, SLIDING_WINDOW, LEAKY_BUCKET, GIVE_BACK)


@dataclass(frozen=True, slots=True)
class ScriptedLimit:
    """One limit in Redis: which script decides, and what it is told before the cost."""

    script: Script
    arguments: tuple[bytes, ...]
    limit: int

    def call(self, cost: int = 1) -> tuple[bytes, ...]:
        """The script's arguments."""
        return (*self.arguments, b"%d" % cost)

    def give_back_call(self, departure_s: float) -> tuple[bytes, ...]:
        """Those of GIVE_BACK, for a request that was to leave a leaky bucket then, by the server's clock."""
        return (*self.arguments, _number(departure_s * MICROSECONDS))


@dataclass(frozen=True, slots=True)
class ScriptedDecision:
    decision: Decision
    now_s: float
    """Of the server's clock, when the script ran."""


def scripted(limiter: TokenBucket | TabledTokenBucket | FixedWindow | SlidingWindow | LeakyBucket) -> ScriptedLimit:
    """The limit that `limiter` keeps, with the same parameters."""
    if isinstance(limiter, FixedWindow):
        return ScriptedLimit(FIXED_WINDOW, (b"%d" % limiter.limit, _micros(limiter.window_s)), limiter.limit)
    if isinstance(limiter, SlidingWindow):
        arguments = (b"%d" % limiter.limit, _micros(limiter.window_s), b"%d" % limiter.sub_windows)
        return ScriptedLimit(SLIDING_WINDOW, arguments, limiter.limit)
    if isinstance(limiter, LeakyBucket):
        arguments = (_number(limiter.rate_per_s), b"%d" % limiter.queue, _micros(limiter.queue_wait_s))
        return ScriptedLimit(LEAKY_BUCKET, arguments, limiter.limit)
    return ScriptedLimit(TOKEN_BUCKET, (_number(limiter.rate_per_s), b"%d" % limiter.burst), limiter.burst)


def decision(limit: ScriptedLimit, reply: object) -> ScriptedDecision | None:
    """What a script's `reply` says; None when it is no script's."""
    if not isinstance(reply, Sequence) or len(reply) != 6 or not all(isinstance(value, int) for value in reply):
        return None
    admitted, remaining, wait_us, reset_us, delay_us, now_us = reply
    wait_s = math.inf if wait_us >= NEVER_US else wait_us / MICROSECONDS
    decided = Decision(bool(admitted), remaining, wait_s, reset_us / MICROSECONDS, limit.limit, delay_us / MICROSECONDS)
    return ScriptedDecision(decided, now_us / MICROSECONDS)


def _number(value: float) -> bytes:
    return repr(float(value)).encode()


def _micros(seconds: float) -> bytes:
    return _number(seconds * MICROSECONDS)
