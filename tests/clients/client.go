// Each operation of a service by Go's net/http: `go run client.go ADDRESS KEY NAME`.
// Prints a line an operation: its name, the status, and the body.
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"os"
	"strings"
)

type fields map[string]interface{}

var address, key = os.Args[1], os.Args[2]

func check(err error) {
	if err != nil {
		panic(err)
	}
}

func send(operation string, request *http.Request) []byte {
	response, err := http.DefaultClient.Do(request)
	check(err)
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	check(err)
	fmt.Printf("%s %d %s\n", operation, response.StatusCode, body)
	return body
}

func post(operation, path string, asked fields) {
	asked["key"] = key
	body, err := json.Marshal(asked)
	check(err)
	request, err := http.NewRequest("POST", address+path, bytes.NewReader(body))
	check(err)
	request.Header.Set("Content-Type", "application/json")
	send(operation, request)
}

func upload(name string) string {
	var body bytes.Buffer
	form := multipart.NewWriter(&body)
	check(form.WriteField("key", key))
	part, err := form.CreateFormFile("file", name)
	check(err)
	_, err = part.Write([]byte(strings.Repeat("some media", 20_000)))
	check(err)
	check(form.Close())
	request, err := http.NewRequest("POST", address+"/upload-2", &body)
	check(err)
	request.Header.Set("Content-Type", form.FormDataContentType())
	var reply struct{ Data struct{ Folder, ID string } }
	check(json.Unmarshal(send("upload", request), &reply))
	return address + "/files/" + reply.Data.Folder + "/" + reply.Data.ID + ".txt"
}

func get(operation, link, part string) {
	request, err := http.NewRequest("GET", link, nil)
	check(err)
	if part != "" {
		request.Header.Set("Range", part)
	}
	send(operation, request)
}

func main() {
	post("save", "/store/save", fields{"file": "list", "value": fields{"Apples": 8}})
	post("merge", "/store/save", fields{"file": "list", "options": "merge", "value": fields{"Oranges": 10}})
	post("load", "/store/load", fields{"file": "list"})
	post("list", "/store/load", fields{"file": "", "options": "list"})
	post("large", "/store/save", fields{"file": "large", "value": strings.Repeat("x", 200_000)})
	post("delete", "/store/save", fields{"file": "list", "options": "delete", "value": nil})
	post("absent", "/store/load", fields{"file": "list"})
	link := upload(os.Args[3])
	get("download", link, "")
	get("part", link, "bytes=-5")
}
