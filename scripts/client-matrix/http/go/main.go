// Publishes three messages with net/http: publish URL plain|key. A line for each: a status, or what
// was raised.
package main

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
)

func main() {
	for number := 0; number < 3; number++ {
		request, _ := http.NewRequest("POST", os.Args[1], strings.NewReader(fmt.Sprintf("n%d", number)))
		if os.Args[2] == "key" {
			request.Header.Set("Idempotency-Key", fmt.Sprintf("message-%d", number))
		}
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			fmt.Println("raised", err)
			continue
		}
		io.ReadAll(response.Body)
		response.Body.Close()
		fmt.Println(response.StatusCode)
	}
}
