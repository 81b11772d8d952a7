// go-redis: connect, wait for a line, publish, say what came of it.
package main

import (
	"bufio"
	"context"
	"fmt"
	"os"

	"github.com/redis/go-redis/v9"
)

func main() {
	ctx := context.Background()
	options := &redis.Options{Addr: "127.0.0.1:" + os.Args[1]}
	if os.Args[2] == "off" {
		options.MaxRetries = -1
	}
	client := redis.NewClient(options)
	if err := client.FCall(ctx, "livebridge_publish", []string{"live"}, "first").Err(); err != nil {
		panic(err)
	}
	fmt.Println("ready")
	bufio.NewReader(os.Stdin).ReadString('\n')
	arguments := []any{"second"}
	if os.Args[2] == "id" {
		arguments = append(arguments, "id", "order-17")
	}
	if err := client.FCall(ctx, "livebridge_publish", []string{"live"}, arguments...).Err(); err != nil {
		fmt.Println("raised", err)
	} else {
		fmt.Println("answered")
	}
}
