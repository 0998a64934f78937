"""The bare loop: what Redis and one Python process can do with a queue at all.

A script claims 32 jobs (pop, lease and token, the payload in the reply), another publishes and finishes them
(a stream entry of three events, a message for each, the result, the end). Nothing happens in between, one
call at a time: a real worker process cannot be faster than this by much, whatever it leaves out.
"""

from __future__ import annotations

import os

import orjson
import uvloop
from redis.asyncio import Redis

AT_ONCE = 32

FILL = """
for n = ARGV[1], ARGV[2] do
  redis.call('HSET', 'bare:j:' .. n, 's', 'waiting', 'p', ARGV[3])
  redis.call('ZADD', 'bare:w', n, n)
end
"""
CLAIM = """
local popped = redis.call('ZPOPMIN', 'bare:w', ARGV[1])
local reply = {}
for i = 1, #popped, 2 do
  local id = popped[i]
  local token = redis.call('INCR', 'bare:token')
  redis.call('ZADD', 'bare:leases', token, id)
  redis.call('HSET', 'bare:j:' .. id, 's', 'running', 'k', token)
  reply[#reply + 1] = { id, token, redis.call('HGET', 'bare:j:' .. id, 'p') }
end
return reply
"""
FINISH = """
for i = 1, #ARGV, 4 do
  local id, token = ARGV[i], ARGV[i + 1]
  if redis.call('HGET', 'bare:j:' .. id, 'k') == token then
    for seq = 1, 3 do
      redis.call('XADD', 'bare:e:' .. id, token .. '-' .. seq, 'd', ARGV[i + 2])
      redis.call('PUBLISH', 'bare:c:' .. id, ARGV[i + 2])
    end
    redis.call('PEXPIRE', 'bare:e:' .. id, 3600000)
    redis.call('SET', 'bare:r:' .. id, ARGV[i + 3], 'PX', 3600000)
    redis.call('HSET', 'bare:j:' .. id, 's', 'done')
    redis.call('PEXPIRE', 'bare:j:' .. id, 3600000)
    redis.call('ZREM', 'bare:leases', id)
    redis.call('INCR', 'bare:done')
  end
end
"""


async def run() -> None:
    """Put jobs in, and take them out again."""
    jobs = int(os.environ["BARE_JOBS"])
    async with Redis.from_url(os.environ["BARE_URL"]) as redis:
        fill, claim, finish = (redis.register_script(script) for script in (FILL, CLAIM, FINISH))
        for start in range(0, jobs, 1000):
            payload = orjson.dumps({"prompt": f"prompt number {start}", "model": "echo"})
            await fill(args=[start, min(start + 1000, jobs) - 1, payload])
        while claimed := await claim(args=[AT_ONCE]):
            args: list[bytes] = []
            for job_id, token, payload in claimed:
                event = b'{"id":"%d-1","type":"done","job_id":"%s","attempt":1}' % (token, job_id)
                result = orjson.dumps({"text": orjson.loads(payload)["prompt"]})
                args += (job_id, b"%d" % token, event, result)
            await finish(args=args)


if __name__ == "__main__":
    uvloop.run(run())
