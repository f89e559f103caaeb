// ioredis with its default settings, and a rate limiter on it: node ioredis.js PORT

const assert = require("node:assert/strict");
const { once } = require("node:events");
const Redis = require("ioredis");
const { RateLimiterRedis } = require("rate-limiter-flexible");

const port = Number(process.argv[2]);

async function commands(client) {
  assert.equal(await client.set("k", "v", "PX", 100000), "OK");
  assert.equal(await client.expire("k", 50, "LT"), 1);
  assert.ok((await client.ttl("k")) <= 50);
  assert.deepEqual(await client.getBuffer("k"), Buffer.from("v"));
  await client.mset(new Map([["a", "1"], ["b", "2"]]));
  const keys = [];
  for await (const page of client.scanStream({ match: "?" })) keys.push(...page);
  assert.deepEqual(keys.sort(), ["a", "b", "k"]);
  const batching = new Redis({ port, enableAutoPipelining: true, keyPrefix: "mine:" });
  await Promise.all(Array.from({ length: 200 }, (_, number) => batching.set(number, number)));
  assert.equal(await client.get("mine:199"), "199");
  await batching.quit();
}

async function transactions(client) {
  assert.deepEqual(await client.multi().set("m", 1).incr("m").exec(), [[null, "OK"], [null, 2]]);
  const [set, wrong] = await client.multi().set("m", "x").incr("m").exec();
  assert.deepEqual(set, [null, "OK"]);
  assert.match(wrong[0].message, /not an integer/);
  await client.watch("m");
  const other = new Redis(port);
  await other.set("m", "9");
  assert.equal(await client.multi().set("m", "3").exec(), null);
  await other.quit();
  client.defineCommand("twice", { numberOfKeys: 1, lua: "return redis.call('INCRBY', KEYS[1], 2 * ARGV[1])" });
  assert.equal(await client.twice("n", 4), 8);
  assert.deepEqual(await client.pipeline().twice("n", 1).get("n").exec(), [[null, 10], [null, "10"]]);
}

async function messages(client) {
  const subscriber = new Redis(port);
  await once(subscriber, "ready"); // ioredis sends SUBSCRIBE before its own check of the server otherwise, at times
  await client.config("SET", "notify-keyspace-events", "Ex");
  assert.equal(await subscriber.subscribe("news", "__keyevent@0__:expired"), 2);
  let heard = once(subscriber, "message");
  await client.publish("news", "hello");
  assert.deepEqual(await heard, ["news", "hello"]);
  heard = once(subscriber, "message");
  await client.set("short", "1", "PX", 20);
  assert.deepEqual(await heard, ["__keyevent@0__:expired", "short"]);
  await client.config("SET", "notify-keyspace-events", "");
  await subscriber.quit();
}

async function monitors(client) {
  const monitor = await client.monitor();
  const seen = once(monitor, "monitor");
  await client.set("watched", "1");
  assert.deepEqual((await seen)[1], ["set", "watched", "1"]);
  monitor.disconnect();
}

async function rates(client) {
  const limiter = new RateLimiterRedis({ storeClient: client, points: 2, duration: 60 });
  await limiter.consume("user");
  assert.equal((await limiter.consume("user")).remainingPoints, 0);
  await assert.rejects(limiter.consume("user"), (refused) => refused.msBeforeNext > 0);
  await limiter.delete("user");
  assert.equal((await limiter.consume("user")).remainingPoints, 1);
}

async function main() {
  const client = new Redis(port);
  for (const part of [commands, transactions, messages, monitors, rates]) await part(client);
  await client.quit();
}

main().then(() => console.log("passed"));
