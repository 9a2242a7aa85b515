// Remote is a client of exec, attach and port-forward made of client-go alone, so that each of its
// transports and subprotocols can be chosen, which no command of Kubernetes' own allows.
//
//	remote [flags] stream URL             exec or attach: a process's streams are this one's
//	remote [flags] forward URL PORT...    as kubectl port-forward; says where it listens
//
// It ends with the remote process's exit code, or with 125 if there is none; then the error is on
// standard error.
package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"
	"k8s.io/client-go/util/exec"
	"k8s.io/streaming/pkg/httpstream"
)

// What the process's exit code is if the remote process has none.
const broken = 125

var (
	transport = flag.String("transport", "spdy", "spdy or websocket")
	protocols = flag.String("protocols", "v4.channel.k8s.io", "the subprotocols to ask for, in order")
	stdin     = flag.Bool("stdin", false, "pass standard input on")
	stdout    = flag.Bool("stdout", true, "show standard output")
	stderr    = flag.Bool("stderr", true, "show standard error")
	tty       = flag.Bool("tty", false, "the process has a terminal")
	sizes     = flag.String("sizes", "", "sizes of the terminal, WIDTHxHEIGHT,...: one after each line of output")
	ca        = flag.String("ca", "", "the authority to trust; without one, certificates are not checked")
)

func main() {
	flag.Parse()
	err := run(flag.Args())
	var exit exec.CodeExitError
	switch {
	case errors.As(err, &exit):
		os.Exit(exit.Code)
	case err != nil:
		fmt.Fprintln(os.Stderr, err)
		os.Exit(broken)
	}
}

func run(arguments []string) error {
	if len(arguments) < 2 {
		return errors.New("usage: remote [flags] stream|forward URL [PORT...]")
	}
	verb, address, ports := arguments[0], arguments[1], arguments[2:]
	target, err := url.Parse(address)
	if err != nil {
		return err
	}
	config := &rest.Config{TLSClientConfig: rest.TLSClientConfig{CAFile: *ca}}
	config.Insecure = *ca == ""
	switch verb {
	case "stream":
		return stream(config, target)
	case "forward":
		return forward(config, target, ports)
	}
	return fmt.Errorf("no such verb: %s", verb)
}

func stream(config *rest.Config, target *url.URL) error {
	executor, err := executor(config, target)
	if err != nil {
		return err
	}
	options := remotecommand.StreamOptions{Tty: *tty}
	if *stdin {
		options.Stdin = os.Stdin
	}
	if *stdout {
		options.Stdout = os.Stdout
	}
	if *stderr && !*tty {
		options.Stderr = os.Stderr
	}
	if *sizes != "" {
		queue := newSizes(*sizes)
		options.Stdout = queue.watch(os.Stdout)
		options.TerminalSizeQueue = queue
	}
	return executor.StreamWithContext(context.Background(), options)
}

func executor(config *rest.Config, target *url.URL) (remotecommand.Executor, error) {
	names := strings.Split(*protocols, ",")
	if *transport == "websocket" {
		return remotecommand.NewWebSocketExecutorForProtocols(config, http.MethodGet, target.String(), names...)
	}
	roundTripper, upgrader, err := spdy.RoundTripperFor(config)
	if err != nil {
		return nil, err
	}
	return remotecommand.NewSPDYExecutorForProtocols(roundTripper, upgrader, http.MethodPost, target, names...)
}

func forward(config *rest.Config, target *url.URL, ports []string) error {
	dialer, err := dialer(config, target)
	if err != nil {
		return err
	}
	stop, ready := make(chan struct{}), make(chan struct{})
	forwarder, err := portforward.NewForStreaming(dialer, ports, stop, ready, os.Stdout, os.Stderr)
	if err != nil {
		return err
	}
	return forwarder.ForwardPorts()
}

func dialer(config *rest.Config, target *url.URL) (httpstream.Dialer, error) {
	if *transport == "websocket" {
		return portforward.NewSPDYOverWebsocketDialerForStreaming(target, config)
	}
	roundTripper, upgrader, err := spdy.RoundTripperFor(config)
	if err != nil {
		return nil, err
	}
	client := &http.Client{Transport: roundTripper}
	return spdy.NewDialerForStreaming(upgrader, client, http.MethodPost, target), nil
}

// lines hands out one size for each line of output.
type lines struct {
	next chan remotecommand.TerminalSize
	left []remotecommand.TerminalSize
}

func newSizes(list string) *lines {
	sizes := &lines{}
	for _, text := range strings.Split(list, ",") {
		var size remotecommand.TerminalSize
		if _, err := fmt.Sscanf(text, "%dx%d", &size.Width, &size.Height); err != nil {
			fmt.Fprintf(os.Stderr, "%q is no size: %v\n", text, err)
			os.Exit(broken)
		}
		sizes.left = append(sizes.left, size)
	}
	sizes.next = make(chan remotecommand.TerminalSize, len(sizes.left))
	return sizes
}

// Next is asked by client-go for what to tell the server.
func (sizes *lines) Next() *remotecommand.TerminalSize {
	size, open := <-sizes.next
	if !open {
		return nil
	}
	return &size
}

// watch passes on what is written to it, and counts the lines.
func (sizes *lines) watch(output io.Writer) io.Writer {
	reader, writer := io.Pipe()
	go func() {
		scanner := bufio.NewScanner(reader)
		for scanner.Scan() {
			if len(sizes.left) > 0 {
				sizes.next <- sizes.left[0]
				sizes.left = sizes.left[1:]
			}
		}
		_, _ = io.Copy(io.Discard, reader)
	}()
	return io.MultiWriter(output, writer)
}
