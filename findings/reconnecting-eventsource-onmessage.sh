#!/usr/bin/env bash
# npm reconnecting-eventsource 1.6.5 (over npm eventsource 4.1.1) and where it goes on after a
# refusal
#
# Guess:  it remembers the id of every event, however the program listens, and asks with it after a
#         503.
# Seen:   with `onmessage` it remembers nothing and asks without a position; with
#         addEventListener("message") it asks with ?lastEventId=. With both, onmessage is called
#         twice for each message.
source "$(dirname "$0")/common.bash"
npm_install reconnecting-eventsource@1.6.5 eventsource@4.1.1

cat >"$folder/run.mjs" <<'JS'
import http from "node:http";
import { EventSource } from "eventsource";
globalThis.EventSource = EventSource;
const { default: Reconnecting } = await import("reconnecting-eventsource");

/** Serves one event, ends, refuses once, and tells what the next request asks with. */
function look(listen) {
  return new Promise((resolve) => {
    let requests = 0;
    let calls = 0;
    const server = http.createServer((request, response) => {
      requests += 1;
      if (requests === 2) return response.writeHead(503).end();
      if (requests === 3) {
        const position = new URL(request.url, "http://h").searchParams.get("lastEventId");
        resolve(`asks with ${position ?? "nothing"} after ${calls} call${calls === 1 ? "" : "s"}`);
      }
      response.writeHead(200, { "content-type": "text/event-stream" });
      response.write("retry: 100\nid: 7\ndata: one\n\n");
      setTimeout(() => response.end(), 200);
    });
    server.listen(0, "127.0.0.1", () => {
      const source = new Reconnecting(`http://127.0.0.1:${server.address().port}/`, { max_retry_time: 100 });
      listen(source, () => (calls += 1));
    });
  });
}
const seen = {
  onmessage: await look((source, call) => (source.onmessage = call)),
  listener: await look((source, call) => source.addEventListener("message", call)),
  both: await look((source, call) => {
    source.onmessage = call;
    source.addEventListener("message", () => {});
  }),
};
process.stdout.write(Object.entries(seen).map((pair) => pair.join(": ")).join("; "));
process.exit();
JS
expect "reconnecting-eventsource 1.6.5" "$(node --no-warnings "$folder/run.mjs")" \
    "onmessage: asks with nothing after 1 call; listener: asks with 7 after 1 call; both: asks with 7 after 2 calls"
