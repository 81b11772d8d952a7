// What docs/centrifuge.md promises of the SDK for Go, in either form of the protocol, one check after the other. Prints a line
// for each. The argument says where the instances are (scripts/client-matrix/matrix/native_sdks.py).
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"reflect"
	"sort"
	"strings"
	"syscall"
	"time"

	"github.com/centrifugal/centrifuge-go"
)

type setup struct {
	URL     string `json:"url"`     // of a balancer before the instances
	HTTP    string `json:"http"`    // of the last instance
	Closing string `json:"closing"` // of a server that closes each connection with the code in its path
	Pids    []int  `json:"pids"`    // of the instances, in the order in which the balancer prefers them
	Secret  string `json:"secret"`
	Form    string `json:"form"`
	Back    []int  `json:"back"` // codes after which an SDK comes back
	Away    []int  `json:"away"` // and after which it does not
}

var the setup

type check struct {
	name string
	run  func()
}

func main() {
	must(json.Unmarshal([]byte(os.Args[1]), &the))
	all = token(3600)
	for _, check := range []check{
		{"connects, publishes and reads the history", publishesAndReads},
		{"carries bytes as they are", carriesBytes},
		{"has many channels, and changes them at any time", hasManyChannels},
		{"is told what it may not do", isToldWhatItMayNot},
		{"sees who is there, and who comes and goes", seesWhoIsThere},
		{"leaves for good with a token that is not valid", leavesWithAnInvalidToken},
		{"is closed with a message over the limit", isClosedWithAMessageOverTheLimit},
		{"gets a new token in time and stays", renewsItsToken},
		{"gets a new token when it comes with an old one", replacesAnOldToken},
		{"comes back or stays away as the close code says", heedsCloseCodes},
		{"notices that the server is silent, and goes elsewhere", noticesSilence},
		{"goes elsewhere when an instance stops, and misses nothing", survives(syscall.SIGTERM, 0)},
		{"goes elsewhere when an instance dies, and misses nothing", survives(syscall.SIGKILL, 1)},
	} {
		began := time.Now()
		detail := attempt(check.run)
		line, _ := json.Marshal(map[string]any{
			"check": check.name, "ok": detail == "", "detail": detail, "seconds": time.Since(began).Seconds(),
		})
		fmt.Println(string(line))
	}
}

func attempt(run func()) (detail string) {
	defer func() {
		if failure := recover(); failure != nil {
			detail = fmt.Sprint(failure)
		}
	}()
	run()
	return ""
}

func publishesAndReads() {
	sdk := connect(config(all))
	defer sdk.Close()
	sub := subscribe(sdk, "go:one")
	_, err := sub.Publish(soon(), []byte(`{"number":1}`))
	must(err)
	_, err = sdk.Publish(soon(), "go:one", []byte(`"two"`))
	must(err)
	equal("the publications", sub.data(2), []string{`{"number":1}`, `"two"`})
	newest, err := sub.History(soon(), centrifuge.WithHistoryLimit(0))
	must(err)
	equal("the position", []int{int(newest.Offset), len(newest.Publications)}, []int{2, 0})
	page, err := sub.History(soon(), centrifuge.WithHistoryLimit(10), centrifuge.WithHistoryReverse(true))
	must(err)
	equal("the history", []int{int(page.Publications[0].Offset), int(page.Publications[1].Offset)}, []int{2, 1})
	since := centrifuge.StreamPosition{Offset: 1, Epoch: page.Epoch}
	rest, err := sub.History(soon(), centrifuge.WithHistoryLimit(10), centrifuge.WithHistorySince(&since))
	must(err)
	equal("the rest of it", string(rest.Publications[0].Data), `"two"`)
	since.Epoch = "1"
	_, err = sub.History(soon(), centrifuge.WithHistoryLimit(10), centrifuge.WithHistorySince(&since))
	equal("another epoch", code(err), 112)
}

func carriesBytes() {
	sdk := connect(config(all))
	defer sdk.Close()
	sub := subscribe(sdk, "go:bytes")
	if the.Form == "protobuf" {
		_, err := sub.Publish(soon(), []byte{0xff, 0, 1})
		must(err)
		publish("go:bytes", "bare text")
		equal("the data", sub.data(2), []string{"\xff\x00\x01", "bare text"})
		return
	}
	publish("go:bytes", "\xff\x00\x01")
	publish("go:bytes", "bare text")
	equal("the data", sub.data(2), []string{`"/wAB"`, `"bare text"`})
}

func hasManyChannels() {
	sdk := connect(config(all))
	defer sdk.Close()
	var subs []*subscription
	for index := range 60 {
		subs = append(subs, subscribe(sdk, fmt.Sprintf("go:many:%d", index)))
	}
	for _, sub := range subs {
		publish(sub.Channel, `"`+sub.Channel+`"`)
	}
	for _, sub := range subs {
		equal("the publication", sub.data(1), []string{`"` + sub.Channel + `"`})
	}
	must(subs[0].Unsubscribe())
	subs[0].await("unsubscribed")
	subs[0].begin()
	publish(subs[0].Channel, "1")
	equal("after a second subscription", subs[0].data(1), []string{"1"})
}

func isToldWhatItMayNot() {
	sdk := connect(config(token(3600, "go:some")))
	defer sdk.Close()
	sub, err := sdk.NewSubscription("go:forbidden")
	must(err)
	ended := make(chan uint32, 1)
	sub.OnUnsubscribed(func(event centrifuge.UnsubscribedEvent) { ended <- event.Code })
	must(sub.Subscribe())
	equal("a subscription", int(take(ended, "the end of a subscription")), 103)
	_, err = sdk.Publish(soon(), "go:forbidden", []byte("1"))
	equal("a publication", code(err), 103)
	_, err = sdk.Presence(soon(), "go:some")
	equal("presence", code(err), 108)
	_, err = sdk.RPC(soon(), "method", []byte("{}"))
	equal("a call", code(err), 108)
}

func seesWhoIsThere() {
	here := connect(config(tokenOf("here")))
	defer here.Close()
	there := connect(config(tokenOf("there")))
	defer there.Close()
	sub := subscribe(here, "go:room")
	equal("who came", sub.changes(1), []string{"join here"})
	other := subscribe(there, "go:room")
	equal("who came", sub.changes(1), []string{"join there"})
	presence, err := sub.Presence(soon())
	must(err)
	var seen []string
	for _, info := range presence.Clients {
		seen = append(seen, info.User+" "+string(info.ConnInfo))
	}
	sort.Strings(seen)
	equal("who is there", seen, []string{`here {"name":"here"}`, `there {"name":"there"}`})
	stats, err := there.PresenceStats(soon(), "go:room")
	must(err)
	equal("how many", []int{stats.NumClients, stats.NumUsers}, []int{2, 2})
	must(other.Unsubscribe())
	equal("who went", sub.changes(1), []string{"leave there"})
}

func leavesWithAnInvalidToken() {
	sdk := newClient(config("no token"))
	defer sdk.Close()
	must(sdk.Connect())
	equal("the code", sdk.await("disconnected"), 3500)
}

// isClosedWithAMessageOverTheLimit: this version of the SDK comes back after it.
func isClosedWithAMessageOverTheLimit() {
	sdk := connect(config(all))
	defer sdk.Close()
	go sdk.Publish(soon(), "go:one", []byte(`"`+strings.Repeat("x", 200_000)+`"`))
	equal("the code: message size limit", sdk.await("connecting"), 3)
	sdk.await("connected")
}

func renewsItsToken() {
	tokens := []string{all, token(5)}
	config := config("")
	config.GetToken = func(centrifuge.ConnectionTokenEvent) (string, error) {
		next := tokens[len(tokens)-1]
		tokens = tokens[:len(tokens)-1]
		return next, nil
	}
	sdk := connect(config)
	defer sdk.Close()
	sub := subscribe(sdk, "go:token")
	time.Sleep(6 * time.Second)
	publish("go:token", "1")
	equal("the publication", sub.data(1), []string{"1"})
	equal("tokens that are left, and other connections", []int{len(tokens), len(sdk.connecting)}, []int{0, 0})
}

func replacesAnOldToken() {
	config := config(token(-10))
	count := 0
	config.GetToken = func(centrifuge.ConnectionTokenEvent) (string, error) {
		count++
		return all, nil
	}
	sdk := connect(config)
	defer sdk.Close()
	equal("tokens", count, 1)
}

// heedsCloseCodes connects to a server that closes each connection, since not every code is easily provoked.
func heedsCloseCodes() {
	var wrong []string
	for _, code := range append(append([]int{}, the.Back...), the.Away...) {
		config := config(all)
		config.MinReconnectDelay = time.Minute
		sdk := newClientAt(fmt.Sprintf("%s/%d", the.Closing, code), config)
		// It fails if the close comes before the answer to its first command.
		_ = sdk.Connect()
		sdk.await("connecting")
		var seen string
		select {
		case <-sdk.connecting:
			seen = "back"
		case <-sdk.disconnected:
			seen = "away"
		case <-time.After(1500 * time.Millisecond):
			// While it connects, it is in that state already.
			seen = map[centrifuge.State]string{centrifuge.StateConnecting: "back"}[sdk.State()]
		}
		expected := "away"
		for _, back := range the.Back {
			if back == code {
				expected = "back"
			}
		}
		if seen != expected {
			wrong = append(wrong, fmt.Sprintf("%d: %q", code, seen))
		}
		sdk.Close()
	}
	// This version comes back after the size limit.
	equal("what is otherwise", wrong, []string{"1009: \"back\""})
}

func noticesSilence() {
	config := config(all)
	config.MaxServerPingDelay = 500 * time.Millisecond
	sdk := connect(config)
	defer sdk.Close()
	sub := subscribe(sdk, "go:silence")
	publish("go:silence", "1")
	equal("a publication", sub.data(1), []string{"1"})
	must(syscall.Kill(the.Pids[0], syscall.SIGSTOP))
	defer syscall.Kill(the.Pids[0], syscall.SIGCONT)
	equal("the code: no ping", sdk.await("connecting"), 2)
	publish("go:silence", "2")
	sdk.await("connected")
	equal("the publication that it missed", sub.data(1), []string{"2"})
}

// survives sees that nothing is lost or repeated while the instance of a client ends.
func survives(signal syscall.Signal, instance int) func() {
	return func() {
		sdk := connect(config(all))
		defer sdk.Close()
		sub := subscribe(sdk, fmt.Sprintf("go:end:%d", instance))
		var expected []string
		for number := 1; number <= 60; number++ {
			if number == 20 {
				must(syscall.Kill(the.Pids[instance], signal))
			}
			publish(sub.Channel, fmt.Sprint(number))
			expected = append(expected, fmt.Sprint(number))
			time.Sleep(20 * time.Millisecond)
		}
		equal("each once and in order", sub.data(60), expected)
		code := sdk.await("connecting")
		equal("the code", code, map[syscall.Signal]int{syscall.SIGTERM: 3001, syscall.SIGKILL: 1}[signal])
	}
}

func equal(what string, seen, expected any) {
	if !reflect.DeepEqual(seen, expected) {
		panic(fmt.Sprintf("%s: %v instead of %v", what, seen, expected))
	}
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}

func code(err error) int {
	failure, is := err.(*centrifuge.Error)
	if !is {
		panic(fmt.Sprintf("it did not fail with a code: %v", err))
	}
	return int(failure.Code)
}
