#!/usr/bin/env bash
# The EventSource of npm undici 7.30.2 while it waits to reconnect
#
# Guess:  an EventSource that is CONNECTING keeps Node running, as npm eventsource and a socket do.
# Seen:   its timer does not: a program that does nothing else ends with status 0 at the first end
#         of the stream, with no error. With anything else that keeps Node running it reconnects.
source "$(dirname "$0")/common.bash"
npm_install undici@7.30.2 eventsource@4.1.1

cat >"$folder/server.mjs" <<'JS'
import http from "node:http";
const server = http.createServer((_, response) => {
  response.writeHead(200, { "content-type": "text/event-stream" });
  response.write("retry: 200\ndata: one\n\n");
  setTimeout(() => response.end(), 100);
});
server.listen(0, "127.0.0.1", () => console.log(server.address().port));
JS
cat >"$folder/run.mjs" <<'JS'
const [, , name, url, alive] = process.argv;
const { EventSource } = await import(name);
let messages = 0;
new EventSource(url).onmessage = () => {
  messages += 1;
  if (messages === 2) process.exit(2);
};
if (alive) setInterval(() => {}, 1000);
JS
node "$folder/server.mjs" >"$folder/port" &
url="http://127.0.0.1:$(first_line "$folder/port")/"
look() { node --no-warnings "$folder/run.mjs" "$1" "$url" "${2-}" && echo "ended after one message" || echo "reconnected"; }
expect "undici's, alone" "$(look undici)" "ended after one message"
expect "undici's, beside an interval" "$(look undici alive)" "reconnected"
expect "npm eventsource, alone" "$(look eventsource)" "reconnected"
