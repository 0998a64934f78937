// Enqueues for BullMQ: `node producer.js HOW N` prints what driver/produce.py prints for the others.
const { Queue, QueueEvents } = require("bullmq");

const CONCURRENT = 100;
const CHUNK = 1000;
const WARM_UP_RESULTS = 50;

const connection = { url: process.env.PEER_REDIS_URL, maxRetriesPerRequest: null };
const queue = new Queue("bench", { connection });

const prompt = (number) => ({ prompt: `prompt number ${number}`, model: "echo" });
const one = (number) => queue.add("echo", prompt(number));

async function sequentially(n) {
  for (let number = 0; number < n; number++) await one(number);
}

// A hundred callers, each of which goes on when its job is in.
async function concurrently(n) {
  let next = 0;
  const caller = async () => {
    while (next < n) await one(next++);
  };
  await Promise.all(Array.from({ length: CONCURRENT }, caller));
}

async function inBulk(n) {
  for (let first = 0; first < n; first += CHUNK) {
    const length = Math.min(CHUNK, n - first);
    await queue.addBulk(Array.from({ length }, (_, i) => ({ name: "echo", data: prompt(first + i) })));
  }
}

async function enqueueing(how, n) {
  await queue.waitUntilReady();
  const started = performance.now();
  const startedCpu = process.cpuUsage();
  await { one: sequentially, hundred: concurrently, many: inBulk }[how](n);
  const elapsed_s = (performance.now() - started) / 1000;
  const cpu = process.cpuUsage(startedCpu);
  return { elapsed_s, cpu_s: (cpu.user + cpu.system) / 1e6 };
}

async function latency(n) {
  const events = new QueueEvents("bench", { connection });
  await events.waitUntilReady();
  const latency_ms = [];
  for (let number = -WARM_UP_RESULTS; number < n; number++) {
    const started = performance.now();
    await (await one(number)).waitUntilFinished(events);
    if (number >= 0) latency_ms.push(performance.now() - started);
  }
  await events.close();
  return { latency_ms };
}

async function main() {
  const [how, n] = process.argv.slice(2);
  console.log(JSON.stringify(await (how === "latency" ? latency(+n) : enqueueing(how, +n))));
  await queue.close();
}

main();
