package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/rogpeppe/go-internal/testscript"
)

// exits runs a command and checks its exit code: exits CODE COMMAND ARG…
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE COMMAND ARG...")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	err = ts.Exec(args[1], args[2:]...)
	got := 0
	if err != nil {
		exit, ok := err.(*exec.ExitError)
		if !ok {
			ts.Fatalf("%v", err)
		}
		got = exit.ExitCode()
	}
	if got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
}

// jsonHas checks fields of the JSON objects that the last command printed, one a
// line: json KEY… for their presence, json KEY=VALUE for what they hold, as it is
// printed by %v. Every line must fit.
func jsonHas(ts *testscript.TestScript, neg bool, args []string) {
	out := ts.ReadFile("stdout")
	dec := json.NewDecoder(strings.NewReader(out))
	dec.UseNumber()
	objects := 0
	for dec.More() {
		var object map[string]any
		ts.Check(dec.Decode(&object))
		objects++
		for _, arg := range args {
			if fits(object, arg) == neg {
				ts.Fatalf("%s: %v", arg, object)
			}
		}
	}
	if objects == 0 {
		ts.Fatalf("no JSON in %q", out)
	}
}

func fits(object map[string]any, arg string) bool {
	key, want, compare := strings.Cut(arg, "=")
	var at any = object
	for part := range strings.SplitSeq(key, ".") {
		m, ok := at.(map[string]any)
		if !ok {
			return false
		}
		if at, ok = m[part]; !ok {
			return false
		}
	}
	return !compare || fmt.Sprint(at) == want
}

// ownS3 tells a script of an S3 server: the program that scripts/s3-server makes, and an address of its own.
func ownS3(env *testscript.Env) error {
	cache, err := os.UserCacheDir()
	if err != nil {
		return err
	}
	programs, _ := filepath.Glob(filepath.Join(cache, "tidemark/s3/versitygw-*"))
	env.Setenv("S3SERVER", cmp.Or(strings.Join(programs, " "), "run-scripts/s3-server"))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	env.Setenv("S3ADDR", l.Addr().String())
	return l.Close()
}
