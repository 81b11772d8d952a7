#!/usr/bin/env bash
# Go github.com/r3labs/sse/v2 2.10.0 and github.com/tmaxmax/go-sse 0.12.0, and an event of more than
# 64 KiB
#
# Guess:  the subscription ends with an error ('token too long'): the next attempt would fail in the
#         same way.
# Seen:   both take it for a lost connection, reconnect with the id of the event before it, receive
#         the same event again, and so on for ever. They never get past it, and the program is told
#         nothing unless it asks to be notified of reconnections.
# So:     raise the buffer: ClientMaxBufferSize, Connection.Buffer.
source "$(dirname "$0")/common.bash"
command -v go >/dev/null || { echo "needs go"; exit 77; }

cat >"$folder/main.go" <<'GO'
package main

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync/atomic"
	"time"

	tmaxmax "github.com/tmaxmax/go-sse"
	r3labs "github.com/r3labs/sse/v2"
)

// The first request gets one small event and a large one; the others, which ask for what follows
// the small one, the large one.
func main() {
	var requests atomic.Int32
	var asked atomic.Value
	asked.Store("")
	serve := func(writer http.ResponseWriter, request *http.Request) {
		asked.Store(request.Header.Get("Last-Event-ID"))
		writer.Header().Set("Content-Type", "text/event-stream")
		fmt.Fprint(writer, "retry: 100\n\n")
		if requests.Add(1) == 1 {
			fmt.Fprint(writer, "id: 1\ndata: small\n\n")
		}
		fmt.Fprintf(writer, "id: 2\ndata: %s\n\n", strings.Repeat("x", 70000))
		writer.(http.Flusher).Flush()
		<-request.Context().Done()
	}
	server := httptest.NewServer(http.HandlerFunc(serve))
	ended := make(chan error, 1)
	go func() {
		if os.Args[1] == "r3labs" {
			ended <- r3labs.NewClient(server.URL).SubscribeRaw(func(*r3labs.Event) {})
			return
		}
		request, _ := http.NewRequest("GET", server.URL, nil)
		connection := tmaxmax.NewConnection(request)
		connection.SubscribeToAll(func(tmaxmax.Event) {})
		ended <- connection.Connect()
	}()
	deadline := time.After(60 * time.Second)
	for requests.Load() < 4 {
		select {
		case err := <-ended:
			fmt.Println("ended:", err)
			os.Exit(0)
		case <-deadline:
			fmt.Println(requests.Load(), "requests in a minute")
			os.Exit(0)
		case <-time.After(50 * time.Millisecond):
		}
	}
	fmt.Println("asks for the fourth time, from", asked.Load(), "on")
	os.Exit(0)
}
GO
(cd "$folder" && go mod init finding && go get github.com/r3labs/sse/v2@v2.10.0 github.com/tmaxmax/go-sse@v0.12.0 &&
    go build -o run .) >"$folder/build" 2>&1 || { cat "$folder/build" >&2; exit 1; }
for name in r3labs tmaxmax; do
    expect "$name" "$("$folder/run" "$name")" "asks for the fourth time, from 1 on"
done
