// BullMQ at its best for small jobs: one worker, 100 jobs at once; completed jobs keep their results.
const { Worker } = require("bullmq");

const connection = { url: process.env.PEER_REDIS_URL, maxRetriesPerRequest: null };
const worker = new Worker("bench", async (job) => job.data.prompt, { connection, concurrency: 100 });
worker.on("error", (error) => console.error(error));
process.on("SIGTERM", () => worker.close(true).then(() => process.exit(0)));
