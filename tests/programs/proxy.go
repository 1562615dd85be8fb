// SPDX-License-Identifier: Apache-2.0

// A TCP proxy as it is usually written in Go: io.Copy, which moves bytes between connections with splice(2).
package main

import (
	"io"
	"log"
	"net"
	"os"
)

// usage: proxy LISTEN TO
func main() {
	listener, err := net.Listen("tcp", os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	for {
		from, err := listener.Accept()
		if err != nil {
			log.Fatal(err)
		}
		go relay(from.(*net.TCPConn), os.Args[2])
	}
}

func relay(from *net.TCPConn, address string) {
	defer from.Close()
	dialed, err := net.Dial("tcp", address)
	if err != nil {
		log.Print(err)
		return
	}
	to := dialed.(*net.TCPConn)
	defer to.Close()
	done := make(chan struct{})
	go func() {
		io.Copy(from, to)
		from.CloseWrite()
		close(done)
	}()
	io.Copy(to, from)
	to.CloseWrite()
	<-done
}
