from scheduler.model import JobInfo, JobState
class QueueInspector:
    def __init__(self, queue): self.queue=queue
    async def job(self, job_id):
        raw=await self.queue.redis.hgetall(self.queue.keys.of("record", job_id))
        if not raw: return None
        r={k.decode():v.decode("utf8","replace") for k,v in raw.items()}
        return JobInfo(id=job_id,state=JobState(r["s"]),model=r["l"],priority=int(r["p"]),enqueued_at_ms=int(r["q"])//1000,attempts=int(r.get("n",0)),failures=int(r.get("f",0)))
