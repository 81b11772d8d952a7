#!/usr/bin/env bash
# github.com/centrifugal/centrifuge-go v0.12.1, and a server that closes with 1009 (message too big, RFC 6455)
#
# Guess:  it stays away, as npm centrifuge 5.8.0 does, with code 3 ('message size limit exceeded'): the
#         same message would be too big again.
# Seen:   the SDK for Go takes the code for a reason to reconnect, with the same code 3, and comes back at once.
# So:     a Go client whose message is over the limit reconnects for each attempt. Limit the size of what
#         is published in the application.
source "$(dirname "$0")/common.bash"
command -v go >/dev/null || { echo "needs go"; exit 77; }
command -v npm >/dev/null || { echo "needs npm"; exit 77; }

npm_install centrifuge@5.8.0 ws@8.21.0
cat >"$folder/server.mjs" <<'JS'
import { WebSocketServer } from "ws";

// Lets every client in, and closes it.
const server = new WebSocketServer({ host: "127.0.0.1", port: 0 }, () => console.log(server.address().port));
server.on("connection", (socket) => {
  socket.once("message", (text) => {
    const { id } = JSON.parse(text);
    socket.send(JSON.stringify({ id, connect: { client: "a", version: "1" } }));
    socket.close(1009, "message too big");
  });
});
JS
cat >"$folder/client.mjs" <<'JS'
import { Centrifuge } from "centrifuge";
import WebSocket from "ws";

const client = new Centrifuge(process.argv[2], { websocket: WebSocket });
let wasConnected = false;
client.on("connected", () => (wasConnected = true));
client.on("connecting", ({ code }) => wasConnected && end(`comes back, code ${code}`));
client.on("disconnected", ({ code }) => end(`stays away, code ${code}`));
const end = (seen) => {
  console.log(seen);
  process.exit();
};
client.connect();
setTimeout(() => end("nothing in 20 s"), 20000);
JS
cat >"$folder/main.go" <<'GO'
package main

import (
	"fmt"
	"os"
	"time"

	"github.com/centrifugal/centrifuge-go"
)

func main() {
	client := centrifuge.NewJsonClient(os.Args[1], centrifuge.Config{})
	seen := make(chan string, 8)
	connected := make(chan bool, 8)
	client.OnConnected(func(centrifuge.ConnectedEvent) { connected <- true })
	client.OnConnecting(func(event centrifuge.ConnectingEvent) {
		if len(connected) > 0 {
			seen <- fmt.Sprintf("comes back, code %d", event.Code)
		}
	})
	client.OnDisconnected(func(event centrifuge.DisconnectedEvent) {
		seen <- fmt.Sprintf("stays away, code %d", event.Code)
	})
	client.Connect()
	select {
	case what := <-seen:
		fmt.Println(what)
	case <-time.After(20 * time.Second):
		fmt.Println("nothing in 20 s")
	}
	os.Exit(0)
}
GO
(cd "$folder" && go mod init finding && go get github.com/centrifugal/centrifuge-go@v0.12.1 && go build -o run .) \
    >"$folder/build" 2>&1 || { cat "$folder/build" >&2; exit 1; }
node "$folder/server.mjs" >"$folder/port" &
url="ws://127.0.0.1:$(first_line "$folder/port")"
expect "npm centrifuge" "$(node "$folder/client.mjs" "$url")" "stays away, code 3"
expect "centrifuge-go" "$("$folder/run" "$url")" "comes back, code 3"
