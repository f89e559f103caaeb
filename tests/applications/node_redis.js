// node-redis with its default settings, and a session store on it: node node_redis.js PORT

const assert = require("node:assert/strict");
const { once, EventEmitter } = require("node:events");
const { promisify } = require("node:util");
const { RedisStore } = require("connect-redis");
const { createClient, WatchError } = require("redis");

const socket = { port: Number(process.argv[2]) };

async function commands(client) {
  assert.equal(await client.set("k", "v", { EX: 100, NX: true }), "OK");
  assert.equal(await client.set("k", "w", { KEEPTTL: true, GET: true }), "v");
  assert.ok((await client.ttl("k")) > 50);
  assert.equal(await client.getEx("k", { type: "PERSIST" }), "w");
  assert.equal(await client.ttl("k"), -1);
  assert.equal(await client.incrByFloat("n", 1.5), "1.5");
  await client.mSet({ a: "1", b: "2" });
  const keys = [];
  for await (const page of client.scanIterator({ MATCH: "?", COUNT: 2 })) keys.push(...page);
  assert.deepEqual(keys.sort(), ["a", "b", "k", "n"]);
  assert.deepEqual(await client.commandGetKeys(["mset", "a", "1", "b", "2"]), ["a", "b"]);
  assert.match(await client.info("server"), /redis_version/);
  await Promise.all(Array.from({ length: 200 }, () => client.incr("count")));
  assert.equal(await client.get("count"), "200");
}

async function transactions(client) {
  assert.deepEqual(await client.multi().set("m", "1").incr("m").get("m").exec(), ["OK", 2, "2"]);
  await client.watch("m");
  const other = await client.duplicate().connect();
  await other.set("m", "9");
  await assert.rejects(client.multi().set("m", "3").exec(), WatchError);
  other.destroy();
  assert.equal(await client.get("m"), "9");
  assert.deepEqual(await client.eval("return {KEYS[1], ARGV[1]}", { keys: ["a"], arguments: ["b"] }), ["a", "b"]);
  assert.equal(await client.evalSha(await client.scriptLoad("return 7")), 7);
}

async function messages(client) {
  const subscriber = await client.duplicate().connect();
  const heard = new EventEmitter();
  await subscriber.subscribe("news", (text, channel) => heard.emit("news", channel, text));
  await subscriber.pSubscribe("n*", (text, channel) => heard.emit("pattern", channel, text));
  const both = Promise.all([once(heard, "news"), once(heard, "pattern")]);
  assert.equal(await client.publish("news", "hello"), 2);
  assert.deepEqual(await both, [["news", "hello"], ["news", "hello"]]);
  await subscriber.unsubscribe("news");
  await subscriber.pUnsubscribe("n*");
  await subscriber.close();
}

async function sessions(client) {
  const store = new RedisStore({ client });
  const of = (verb) => promisify(store[verb].bind(store));
  await of("set")("id", { cookie: {}, user: "ada" });
  assert.equal((await of("get")("id")).user, "ada");
  await of("touch")("id", { cookie: {} });
  assert.ok((await client.ttl("sess:id")) > 86000, "a session lasts for a day");
  assert.deepEqual(await of("ids")(), ["id"]);
  await of("destroy")("id");
  assert.ok(!(await of("get")("id")));
}

async function main() {
  for (const RESP of [2, 3]) {
    const client = await createClient({ socket, RESP }).connect();
    for (const part of [commands, transactions, messages, sessions]) await part(client);
    await client.flushAll();
    await client.close();
  }
}

main().then(() => console.log("passed"));
