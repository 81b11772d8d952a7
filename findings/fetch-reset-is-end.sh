#!/usr/bin/env bash
# fetch of Node 20 and of npm undici 7.30.2, and a reset in the middle of a body that has neither a
# length nor chunks
#
# Guess:  reading the body throws ('terminated', ECONNRESET): a reset is an error, however the body
#         is framed.
# Seen:   the body ends as if all had arrived. In chunks, the same reset throws.
# So:     event streams over fetch cannot tell a crash from an end, and fetch-event-source takes it
#         for success; in chunks they can.
source "$(dirname "$0")/common.bash"
npm_install undici@7.30.2

cat >"$folder/run.mjs" <<'JS'
import net from "node:net";
import { fetch as undici } from "undici";

const HEAD = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n";
const ANSWERS = {
  "close-delimited": HEAD + "Connection: close\r\n\r\ndata: one\n\n",
  chunked: HEAD + "Transfer-Encoding: chunked\r\n\r\nb\r\ndata: one\n\n\r\n",
};
for (const [framing, answer] of Object.entries(ANSWERS)) {
  for (const [name, get] of Object.entries({ node: fetch, undici })) {
    const server = net.createServer((socket) => {
      socket.on("error", () => {});
      socket.once("data", () => socket.write(answer, () => setTimeout(() => socket.resetAndDestroy(), 200)));
    });
    await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
    const response = await get(`http://127.0.0.1:${server.address().port}/`);
    const word = await response.text().then(() => "ends", () => "throws");
    process.stdout.write(`${name} ${framing} ${word}; `);
    server.close();
  }
}
process.exit();
JS
expect "Node $(node --version | cut -d. -f1), after a reset" "$(node --no-warnings "$folder/run.mjs")" \
    "node close-delimited ends; undici close-delimited ends; node chunked throws; undici chunked throws; "
