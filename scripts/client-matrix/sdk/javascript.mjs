// What docs/centrifuge.md promises of the SDK for JavaScript, in either form of the protocol, one check after the other. Prints a
// line for each.
import { createHmac } from "node:crypto";
import { createConnection } from "node:net";

import WebSocket from "ws";

const { url, http, pid, killed, stopped, narrow, redis_port, secret, form, map_example } = JSON.parse(process.argv[2]);
const isProtobuf = form === "protobuf";
const { Centrifuge } = await import(isProtobuf ? "centrifuge/build/protobuf" : "centrifuge");

/** A value as the SDK publishes it, and a value that it received: with Protobuf, these are bytes. */
const pack = (value) => (isProtobuf ? new TextEncoder().encode(JSON.stringify(value)) : value);
const unpack = (data) => (isProtobuf ? JSON.parse(new TextDecoder().decode(data)) : data);

/** A token (HS256) that holds for so many seconds, for these channels, with more claims. */
const token = (seconds, channels = ["*"], more = {}) => {
  const part = (value) => Buffer.from(JSON.stringify(value)).toString("base64url");
  const exp = Math.floor(Date.now() / 1000) + seconds;
  const text = `${part({ alg: "HS256" })}.${part({ exp, livebridge: { subscribe: channels, publish: channels }, ...more })}`;
  return `${text}.${createHmac("sha256", secret).update(text).digest("base64url")}`;
};
const all = token(3600);
const headers = { Authorization: `Bearer ${all}` };

const until = (what, wait, milliseconds = 15000) =>
  Promise.race([wait, new Promise((_, no) => setTimeout(no, milliseconds, new Error(`not in time: ${what}`)))]);
const event = (emitter, name) => until(name, new Promise((resolve) => emitter.once(name, resolve)));
const equal = (seen, expected, what) => {
  if (JSON.stringify(seen) !== JSON.stringify(expected)) {
    throw new Error(`${what}: ${JSON.stringify(seen)} instead of ${JSON.stringify(expected)}`);
  }
};
const client = (options) =>
  new Centrifuge(url, { websocket: WebSocket, minReconnectDelay: 50, maxReconnectDelay: 200, token: all, ...options });
const publish = async (channel, body) => {
  const response = await fetch(`${http}/publish?channel=${encodeURIComponent(channel)}`, { method: "POST", body, headers });
  equal(response.status, 200, "a publish");
};
const failed = async (promise) => {
  try {
    await promise;
  } catch (error) {
    return error.code;
  }
  throw new Error("it did not fail");
};
/** The data of the next publications. */
const data = (subscription, count, milliseconds) =>
  until(
    `${count} publications`,
    new Promise((resolve) => {
      const found = [];
      subscription.on("publication", (context) => found.push(unpack(context.data)) === count && resolve(found));
    }),
    milliseconds,
  );

/** Waits until a condition holds. */
const eventually = (what, holds, milliseconds) =>
  until(what, (async () => { while (!holds()) await new Promise((again) => setTimeout(again, 20)); })(), milliseconds);
/** Publishes the value of a key, or removes the key. */
const set = async (channel, key, value) => {
  const removed = value === undefined ? "&remove=true" : "";
  const path = `${http}/publish?channel=${encodeURIComponent(channel)}&key=${key}${removed}`;
  const response = await fetch(path, { method: "POST", body: JSON.stringify(value) ?? "", headers });
  equal(response.status, 200, "a publish");
};
/** Subscribes to a map, and keeps what is known of it. */
const keep = (js, channel, options) => {
  const map = js.newMapSubscription(channel, options);
  const known = { map, values: {}, syncs: 0, recovered: [], unsubscribed: [] };
  map.on("sync", ({ entries }) => {
    known.syncs += 1;
    known.values = {};
    for (const { key, data } of entries) known.values[key] = unpack(data);
  });
  map.on("update", ({ key, data, removed }) => {
    if (removed) delete known.values[key];
    else known.values[key] = unpack(data);
  });
  map.on("subscribed", ({ recovered }) => known.recovered.push(recovered));
  map.on("unsubscribed", ({ code }) => known.unsubscribed.push(code));
  map.subscribe();
  return known;
};
const sorted = (values) => Object.entries(values).sort();
const command = (text) =>
  until(
    text,
    new Promise((answered, failed) => {
      const socket = createConnection(redis_port, "127.0.0.1", () => socket.write(`${text}\r\n`));
      socket.once("data", (answer) => {
        socket.destroy();
        answered(String(answer));
      });
      socket.once("error", failed);
    }),
  );
/** The sockets of a client that connects to another instance at first. */
const balanced = (first) => {
  let count = 0;
  return class extends WebSocket {
    constructor(_, ...rest) {
      super(count++ ? url : first.url, ...rest);
    }
  };
};
/** How many messages wait for the slowest client of an instance. */
const backlog = async ({ http }) =>
  Number(/^livebridge_backlog_messages ([0-9]+)/m.exec(await (await fetch(`${http}/metrics`, { headers })).text())[1]);
/** The codes with which a client loses its connection. */
const codes = (js) => {
  const seen = { connecting: [], disconnected: [] };
  for (const name of Object.keys(seen)) js.on(name, ({ code }) => seen[name].push(code));
  return seen;
};

const checks = {
  async "connects, publishes and reads the history"() {
    const js = client();
    js.connect();
    const subscription = js.newSubscription("js:one");
    const seen = data(subscription, 2);
    subscription.subscribe();
    await subscription.ready(5000);
    await subscription.publish(pack({ number: 1 }));
    await js.publish("js:one", pack("two"));
    equal(await seen, [{ number: 1 }, "two"], "the publications");
    const newest = await subscription.history({ limit: 0 });
    equal([newest.offset, newest.publications.length], [2, 0], "the position");
    const { publications, epoch } = await subscription.history({ limit: 10, reverse: true });
    equal(publications.map((held) => held.offset), [2, 1], "the history");
    const rest = await subscription.history({ limit: 10, since: { offset: 1, epoch } });
    equal(rest.publications.map((held) => unpack(held.data)), ["two"], "the rest of it");
    equal(await failed(subscription.history({ limit: 10, since: { offset: 1, epoch: "1" } })), 112, "another epoch");
    js.disconnect();
  },

  async "carries bytes that are no text"() {
    const js = client();
    const subscription = js.newSubscription("js:bytes");
    const seen = until("a publication", new Promise((resolve) => subscription.on("publication", resolve)));
    subscription.subscribe();
    js.connect();
    await subscription.ready(5000);
    const bytes = Buffer.from([255, 0, 1]);
    await (isProtobuf ? subscription.publish(bytes) : publish("js:bytes", bytes));
    const { data, tags } = await seen;
    equal(
      isProtobuf ? [Array.from(data), tags] : [data, tags],
      isProtobuf ? [[255, 0, 1], {}] : ["/wAB", { encoding: "base64" }],
      "the data and the tags",
    );
    js.disconnect();
  },

  async "has many channels, and changes them at any time"() {
    const js = client();
    const names = Array.from({ length: 60 }, (_, index) => `js:many:${index}`);
    const subscriptions = names.map((name) => js.newSubscription(name));
    const seen = subscriptions.map((subscription) => data(subscription, 1));
    subscriptions.forEach((subscription) => subscription.subscribe());
    js.connect();
    await Promise.all(subscriptions.map((subscription) => subscription.ready(10000)));
    await Promise.all(names.map((name) => publish(name, JSON.stringify(name))));
    equal(await Promise.all(seen), names.map((name) => [name]), "the publications");
    subscriptions[0].unsubscribe();
    js.removeSubscription(subscriptions[0]);
    const again = js.newSubscription(names[0]);
    const late = data(again, 1);
    again.subscribe();
    await again.ready(5000);
    await publish(names[0], "1");
    equal(await late, [1], "the publications after a second subscription");
    js.disconnect();
  },

  async "recovers after a cut"() {
    const js = client();
    const subscription = js.newSubscription("js:cut");
    const found = [];
    subscription.on("publication", (context) => found.push(unpack(context.data)));
    subscription.subscribe();
    js.connect();
    await subscription.ready(5000);
    for (let number = 1; number <= 40; number += 1) {
      await publish("js:cut", String(number));
      if (number % 10 === 5) {
        // It may still be reconnecting after the last cut.
        await js.ready(10000);
        js._transport._transport.terminate();
      }
    }
    const all = Array.from({ length: 40 }, (_, index) => index + 1);
    await until("all", (async () => { while (found.length < 40) await new Promise((again) => setTimeout(again, 20)); })());
    equal(found, all, "each once and in order");
    js.disconnect();
  },

  async "is told what it may not do"() {
    const js = client({ token: token(3600, ["js:some"]) });
    js.connect();
    await js.ready(5000);
    const subscription = js.newSubscription("js:forbidden");
    const ended = event(subscription, "unsubscribed");
    subscription.subscribe();
    equal((await ended).code, 103, "a subscription");
    equal(await failed(js.publish("js:forbidden", pack(1))), 103, "a publication");
    equal(await failed(js.presence("js:some")), 108, "presence");
    equal(await failed(js.rpc("method", pack({}))), 108, "a call");
    js.disconnect();
  },

  async "sees who is there, and who comes and goes"() {
    const named = (sub) => client({ token: token(3600, ["*"], { sub, info: { name: sub } }) });
    const [here, there] = [named("here"), named("there")];
    const subscription = here.newSubscription("js:room", { joinLeave: true });
    const changes = [];
    for (const kind of ["join", "leave"]) subscription.on(kind, ({ info }) => changes.push(`${kind} ${info.user}`));
    const told = (expected) =>
      until(
        `${expected}, not ${changes}`,
        (async () => { while (changes.length < expected.length) await new Promise((again) => setTimeout(again, 20)); })(),
      ).then(() => equal(changes, expected, "who came and went"));
    subscription.subscribe();
    here.connect();
    await told(["join here"]);
    const other = there.newSubscription("js:room");
    other.subscribe();
    there.connect();
    await told(["join here", "join there"]);
    const { clients } = await subscription.presence();
    const seen = Object.values(clients).map(({ user, connInfo }) => [user, unpack(connInfo)]);
    equal(seen.sort(), [["here", { name: "here" }], ["there", { name: "there" }]], "who is there");
    const { numClients, numUsers } = await there.presenceStats("js:room");
    equal([numClients, numUsers], [2, 2], "how many");
    // Away for a moment: nobody is told.
    there._transport._transport.terminate();
    await event(there, "connecting");
    await other.ready(5000);
    await new Promise((later) => setTimeout(later, 6000));
    other.unsubscribe();
    await told(["join here", "join there", "leave there"]);
    here.disconnect();
    there.disconnect();
  },

  async "leaves for good with a token that is not valid"() {
    const js = client({ token: "no token" });
    const ended = event(js, "disconnected");
    js.connect();
    equal((await ended).code, 3500, "the code");
  },

  async "leaves for good with a message over the limit"() {
    const js = client();
    js.connect();
    await js.ready(5000);
    const ended = event(js, "disconnected");
    js.publish("js:one", pack("x".repeat(200_000))).catch(() => {});
    equal((await ended).code, 3, "the code: message size limit exceeded");
  },

  async "gets a new token in time and stays"() {
    let count = 0;
    const js = client({ token: "", getToken: async () => (count++ ? all : token(5)) });
    const subscription = js.newSubscription("js:token");
    const codes = [];
    js.on("connecting", ({ code }) => codes.push(code));
    subscription.subscribe();
    js.connect();
    await subscription.ready(5000);
    await new Promise((later) => setTimeout(later, 6000));
    const seen = data(subscription, 1);
    await publish("js:token", "1");
    equal([await seen, count, codes], [[1], 2, [0]], "one token more, and no other connection");
    js.disconnect();
  },

  async "gets a new token when it comes with an old one"() {
    let count = 0;
    const js = client({ token: token(-10), getToken: async () => { count += 1; return all; } });
    js.connect();
    await js.ready(10000);
    equal(count, 1, "one token");
    js.disconnect();
  },

  async "loses channels that a new token does not allow"() {
    let count = 0;
    const js = client({ token: "", getToken: async () => (count++ ? token(3600, ["js:some"]) : token(5)) });
    const subscription = js.newSubscription("js:lost");
    const ended = event(subscription, "unsubscribed");
    subscription.subscribe();
    js.connect();
    equal((await ended).code, 2000, "the code");
    js.disconnect();
  },

  async "has a token for a single channel, and gets a new one in time"() {
    const of = (seconds) => token(seconds, [], { channel: "js:ticket" });
    let count = 0;
    const js = client({ token: token(3600, ["js:other"]) });
    const subscription = js.newSubscription("js:ticket", { getToken: async () => of(count++ ? 3600 : 5) });
    const codes = [];
    subscription.on("subscribing", ({ code }) => codes.push(code));
    subscription.subscribe();
    js.connect();
    await subscription.ready(5000);
    await new Promise((later) => setTimeout(later, 6000));
    const seen = data(subscription, 1);
    await publish("js:ticket", "1");
    equal([await seen, count, codes], [[1], 2, [0]], "one token more, and the same subscription");
    const expired = js.newSubscription("js:expired", { token: token(-10, [], { channel: "js:expired" }),
      getToken: async () => token(3600, [], { channel: "js:expired" }) });
    expired.subscribe();
    await expired.ready(10000);
    const wrong = js.newSubscription("js:wrong", { token: of(3600) });
    const ended = event(wrong, "unsubscribed");
    wrong.subscribe();
    equal((await ended).code, 103, "the code for another channel");
    js.disconnect();
  },

  async "keeps a map of keys"() {
    const [js, other] = [client(), client()];
    js.connect();
    other.connect();
    await other.ready(5000);
    for (const key of ["a", "b", "c", "d", "e"]) await set("js:map:1", key, key);
    await set("js:map:1", "b");
    const known = keep(js, "js:map:1", { pageSize: 2 });
    await known.map.ready(5000);
    await eventually("the values", () => known.syncs === 1);
    equal(sorted(known.values), sorted({ a: "a", c: "c", d: "d", e: "e" }), "the values");
    await known.map.publish("f", pack({ number: 1 }));
    await known.map.remove("a");
    await other.mapPublish("js:map:1", "c", pack([2]));
    await other.mapRemove("js:map:1", "d");
    await set("js:map:1", "end", 0);
    await eventually("the changes", () => "end" in known.values);
    const expected = { c: [2], e: "e", f: { number: 1 }, end: 0 };
    equal(sorted(known.values), sorted(expected), "the values after changes");
    // Without a map of its own it is a channel like any other.
    const plain = other.newSubscription("js:map:1");
    const seen = data(plain, 4);
    plain.subscribe();
    equal((await seen).length, 4, "the values as publications");
    plain.unsubscribe();
    known.map.unsubscribe();
    await set("js:map:1", "e");
    known.map.subscribe();
    await eventually("the changes since", () => !("e" in known.values));
    equal([known.syncs, known.recovered], [1, [false, true]], "read once, and then recovered");
    equal(await failed(js.mapPublish("js:one", "key", pack(1))), 107, "a publication to another channel");
    const none = keep(js, "js:no-map");
    await eventually("its end", () => none.unsubscribed.length);
    equal(none.unsubscribed, [108], "a map of another channel");
    js.disconnect();
    other.disconnect();
  },

  async "keeps a map as the documentation shows it"() {
    // Values are bytes in the other form.
    if (isProtobuf) return;
    const js = client();
    js.connect();
    await set("sheet:q3", "A1", 1);
    await set("sheet:q3", "B5", 5);
    const AsyncFunction = (async () => {}).constructor;
    const cells = await new AsyncFunction("client", `${map_example}\nreturn cells;`)(js);
    await set("sheet:q3", "C1", 3);
    await eventually("the cells", () => cells.has("C1"));
    equal([...cells].sort(), [["A1", 1], ["B4", 17], ["C1", 3]], "the cells");
    js.disconnect();
  },

  async "reads a map again after its values were lost"() {
    const js = client();
    js.connect();
    for (const key of ["a", "b", "c"]) await set("js:map:2", key, key);
    const known = keep(js, "js:map:2", { minResubscribeDelay: 50 });
    const kept = keep(js, "js:map:3", { unrecoverableStrategy: "fatal" });
    await set("js:map:3", "a", 1);
    await eventually("the values", () => known.syncs === 1 && "a" in kept.values);
    await set("js:map:2", "c", "changed");
    await eventually("a change", () => known.values.c === "changed");
    equal(await command("FLUSHALL"), "+OK\r\n", "the loss");
    await Promise.all([set("js:map:2", "d", "d"), set("js:map:3", "b", 2)]);
    await eventually("the values again", () => known.syncs === 2);
    equal([known.values, known.unsubscribed], [{ d: "d" }, []], "the values that there are");
    await eventually("the other's end", () => kept.unsubscribed.length);
    equal(kept.unsubscribed, [112], "told, as it wants it");
    js.disconnect();
  },

  async "goes on on another instance when its own is killed"() {
    const js = client({ websocket: balanced(killed) });
    const subscription = js.newSubscription("js:killed");
    const found = [];
    subscription.on("publication", (context) => found.push(unpack(context.data)));
    subscription.subscribe();
    for (let number = 0; number < 500; number += 1) await set("js:map:4", `k${number}`, number);
    const known = keep(js, "js:map:4", { pageSize: 100 });
    js.connect();
    await Promise.all([subscription.ready(5000), known.map.ready(5000)]);
    await publish("js:killed", "1");
    await set("js:map:4", "k0", "before");
    await eventually("what comes before", () => found.length === 1 && known.values.k0 === "before");
    process.kill(killed.pid, "SIGKILL");
    for (let number = 2; number <= 5; number += 1) await publish("js:killed", String(number));
    await set("js:map:4", "k1", "after");
    await set("js:map:4", "k2");
    await eventually("what comes after", () => found.length === 5 && known.values.k1 === "after" && !("k2" in known.values));
    equal(found, [1, 2, 3, 4, 5], "each once and in order");
    equal([known.syncs, known.recovered], [1, [false, true]], "nothing is read again");
    const expected = Object.fromEntries(Array.from({ length: 500 }, (_, number) => [`k${number}`, number]));
    delete expected.k2;
    equal(sorted(known.values), sorted({ ...expected, k0: "before", k1: "after" }), "the values");
    js.disconnect();
  },

  async "comes back after the codes that say so"() {
    // It sends too fast; then its instance stops.
    for (const [code, lose] of [
      [3013, (js) => { for (let number = 0; number < 5000; number += 1) js.send(pack(number)).catch(() => {}); }],
      [3001, () => process.kill(stopped.pid, "SIGTERM")],
    ]) {
      const js = client({ websocket: balanced(stopped) });
      const seen = codes(js);
      const subscription = js.newSubscription(`js:back:${code}`);
      const found = data(subscription, 2, 45000);
      subscription.subscribe();
      js.connect();
      await subscription.ready(5000);
      await publish(`js:back:${code}`, "1");
      lose(js);
      // A client that sends too fast is not read for up to ten seconds at first.
      await eventually(`the end with ${code}`, () => seen.connecting.length === 2, 30000);
      equal(seen.connecting[1], code, "the code");
      await publish(`js:back:${code}`, "2");
      equal(await found, [1, 2], "what was published meanwhile");
      equal(seen.disconnected, [], "it came back");
      js.disconnect();
    }
  },

  async "comes back after it did not read, and has missed nothing"() {
    const js = client({ websocket: balanced(narrow) });
    const seen = codes(js);
    const subscription = js.newSubscription("js:slow");
    const found = [];
    subscription.on("publication", (context) => found.push(unpack(context.data).number));
    subscription.subscribe();
    js.connect();
    await subscription.ready(5000);
    const socket = js._transport._transport;
    socket.pause();
    const text = "x".repeat(60_000);
    let count = 0;
    // Its instance keeps 16 messages for a client whose socket is full.
    while ((await backlog(narrow)) <= 16) await publish("js:slow", JSON.stringify({ number: (count += 1), text }));
    socket.resume();
    await eventually("all", () => found.length >= count, 60000);
    equal(found, Array.from({ length: count }, (_, index) => index + 1), "each once and in order");
    equal([seen.connecting, seen.disconnected], [[0, 3008], []], "the codes");
    js.disconnect();
  },

  async "comes back after it left pings unanswered"() {
    const js = client();
    const seen = codes(js);
    js.connect();
    await js.ready(5000);
    js._sendPong = false;
    await eventually("the end", () => seen.connecting.length === 2, 30000);
    await js.ready(15000);
    equal([seen.connecting, seen.disconnected], [[0, 3012], []], "the codes");
    js.disconnect();
  },

  async "comes back without a channel that Redis begins to refuse"() {
    const js = client();
    const seen = codes(js);
    const [kept, lost] = ["js:kept", "js:refused"].map((name) => js.newSubscription(name));
    const ended = until("its end", new Promise((resolve) => lost.on("unsubscribed", resolve)), 30000);
    for (const subscription of [kept, lost]) subscription.subscribe();
    js.connect();
    await Promise.all([kept.ready(5000), lost.ready(5000)]);
    equal(await command("ACL SETUSER default resetchannels &js:kept &livebridge:*"), "+OK\r\n", "the refusal");
    try {
      equal((await ended).code, 103, "the code of the subscription");
      await kept.ready(15000);
      equal([seen.connecting, seen.disconnected], [[0, 3011], []], "the codes");
    } finally {
      equal(await command("ACL SETUSER default allchannels"), "+OK\r\n", "the permission");
    }
    js.disconnect();
  },

  async "leaves for good after the codes that say so"() {
    const js = client();
    js.connect();
    await js.ready(5000);
    const ended = event(js, "disconnected");
    js._transport.send(pack("no command"));
    equal((await ended).code, 3501, "no command");
    // It wants another token in time, and has no function for it.
    const short = client({ token: token(2) });
    const seen = codes(short);
    short.connect();
    await eventually("its end", () => seen.disconnected.length);
    equal([seen.connecting, seen.disconnected], [[0], [1]], "a token that ends: unauthorized");
  },

  async "notices that the server is silent"() {
    const js = client({ maxServerPingDelay: 500 });
    js.connect();
    await js.ready(5000);
    const cut = until("connecting", new Promise((resolve) => js.on("connecting", resolve)));
    process.kill(pid, "SIGSTOP");
    try {
      equal((await cut).code, 2, "no ping");
    } finally {
      process.kill(pid, "SIGCONT");
    }
    await js.ready(15000);
    js.disconnect();
  },
};

for (const [name, check] of Object.entries(checks)) {
  let detail = "";
  try {
    await check();
  } catch (error) {
    detail = String(error?.message ?? JSON.stringify(error));
  }
  process.stdout.write(JSON.stringify({ check: name, ok: !detail, detail }) + "\n");
}
process.exit(0);
