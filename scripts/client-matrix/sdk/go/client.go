// A client whose events can be waited for, tokens, and what publishes beside it.
package main

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/centrifugal/centrifuge-go"
)

const patience = 15 * time.Second

// A token (HS256) for everything.
var all string

func token(seconds int, channels ...string) string {
	if len(channels) == 0 {
		channels = []string{"*"}
	}
	return sign(seconds, channels, map[string]any{})
}

func tokenOf(user string) string {
	return sign(3600, []string{"*"}, map[string]any{"sub": user, "info": map[string]string{"name": user}})
}

func sign(seconds int, channels []string, claims map[string]any) string {
	claims["exp"] = time.Now().Unix() + int64(seconds)
	claims["livebridge"] = map[string]any{"subscribe": channels, "publish": channels}
	content, err := json.Marshal(claims)
	must(err)
	encode := base64.RawURLEncoding.EncodeToString
	text := encode([]byte(`{"alg":"HS256"}`)) + "." + encode(content)
	signer := hmac.New(sha256.New, []byte(the.Secret))
	signer.Write([]byte(text))
	return text + "." + encode(signer.Sum(nil))
}

// publish sends a message to the last instance, and insists on it.
func publish(channel, body string) {
	request, err := http.NewRequest("POST", the.HTTP+"/publish?channel="+channel, strings.NewReader(body))
	must(err)
	request.Header.Set("Authorization", "Bearer "+token(3600))
	response, err := http.DefaultClient.Do(request)
	must(err)
	response.Body.Close()
	equal("a publish", response.StatusCode, 200)
}

// soon is for a request that has so much time.
func soon() context.Context {
	until, cancel := context.WithTimeout(context.Background(), patience)
	time.AfterFunc(patience, cancel)
	return until
}

func take[T any](events chan T, what string) T {
	select {
	case event := <-events:
		return event
	case <-time.After(patience):
		panic("not in time: " + what)
	}
}

type client struct {
	*centrifuge.Client
	connecting, connected, disconnected chan int
}

type subscription struct {
	*centrifuge.Subscription
	subscribed, unsubscribed chan int
	publications, comings    chan string
}

func config(token string) centrifuge.Config {
	return centrifuge.Config{
		Token: token, MinReconnectDelay: 50 * time.Millisecond, MaxReconnectDelay: 200 * time.Millisecond,
	}
}

func newClient(config centrifuge.Config) *client { return newClientAt(the.URL, config) }

func newClientAt(url string, config centrifuge.Config) *client {
	create := centrifuge.NewJsonClient
	if the.Form == "protobuf" {
		create = centrifuge.NewProtobufClient
	}
	sdk := &client{create(url, config), make(chan int, 1000), make(chan int, 1000), make(chan int, 1000)}
	sdk.OnConnecting(func(event centrifuge.ConnectingEvent) { sdk.connecting <- int(event.Code) })
	sdk.OnConnected(func(centrifuge.ConnectedEvent) { sdk.connected <- 0 })
	sdk.OnDisconnected(func(event centrifuge.DisconnectedEvent) { sdk.disconnected <- int(event.Code) })
	return sdk
}

// connect returns when the client is connected.
func connect(config centrifuge.Config) *client {
	sdk := newClient(config)
	must(sdk.Connect())
	sdk.await("connecting")
	sdk.await("connected")
	return sdk
}

// await waits for an event of the connection, and returns its code.
func (sdk *client) await(event string) int {
	return take(map[string]chan int{
		"connecting": sdk.connecting, "connected": sdk.connected, "disconnected": sdk.disconnected,
	}[event], event)
}

// subscribe returns when messages arrive.
func subscribe(sdk *client, channel string) *subscription {
	held, err := sdk.NewSubscription(channel, centrifuge.SubscriptionConfig{JoinLeave: true})
	must(err)
	sub := &subscription{
		held, make(chan int, 1000), make(chan int, 1000), make(chan string, 1000), make(chan string, 1000),
	}
	sub.OnSubscribed(func(centrifuge.SubscribedEvent) { sub.subscribed <- 0 })
	sub.OnUnsubscribed(func(event centrifuge.UnsubscribedEvent) { sub.unsubscribed <- int(event.Code) })
	sub.OnPublication(func(event centrifuge.PublicationEvent) { sub.publications <- string(event.Data) })
	sub.OnJoin(func(event centrifuge.JoinEvent) { sub.comings <- "join " + event.User })
	sub.OnLeave(func(event centrifuge.LeaveEvent) { sub.comings <- "leave " + event.User })
	sub.begin()
	return sub
}

// begin subscribes, and returns when messages arrive.
func (sub *subscription) begin() {
	for len(sub.subscribed) > 0 {
		<-sub.subscribed
	}
	must(sub.Subscribe())
	sub.await("subscribed")
}

func (sub *subscription) await(event string) int {
	return take(map[string]chan int{"subscribed": sub.subscribed, "unsubscribed": sub.unsubscribed}[event], event)
}

// data returns that of the next publications.
func (sub *subscription) data(count int) []string {
	return next(sub.publications, count, "publications of "+sub.Channel)
}

// changes returns who came and went next.
func (sub *subscription) changes(count int) []string {
	return next(sub.comings, count, "who comes and goes")
}

func next(events chan string, count int, what string) (found []string) {
	for len(found) < count {
		found = append(found, take(events, fmt.Sprintf("%d %s, not only %v", count, what, found)))
	}
	return found
}
