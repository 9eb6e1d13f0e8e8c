package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"tidemark/transfer/merge"
	"tidemark/transfer/stores"
)

// storeList is the command line of "snapstore list".
type storeList struct {
	chunks bool
	dd     bool
	origin string
	asJSON bool
}

func newSnapstoreList() *cobra.Command {
	l := &storeList{}
	cmd := command{
		use: "list STORE", short: "List what a store has of its origin",
		long: `Prints one extent a line, in the order of the store: its offset in the origin, its offset in the store, and its length, all in bytes. With --chunks it prints one exception a line: the number of the chunk in the origin, and in the store.

With -d it prints a dd command for each chunk, as list_exception_chunks does; together they do what "tidemark snapstore apply" does, slowly and without its checks. --origin says what they write to.`,
		example: `tidemark snapstore list store.img
tidemark snapstore list --json --chunks store.img
tidemark snapstore list -d --origin disk.img store.img`,
		exits: []exitCode{exitRefused, exitDamaged},
		args: func(cmd *cobra.Command, args []string) error {
			if l.dd && (l.asJSON || l.chunks) {
				return errors.New("-d goes together with neither --json nor --chunks")
			}
			return cobra.ExactArgs(1)(cmd, args)
		},
		run: func(cmd *cobra.Command, args []string) error { return l.run(args[0], cmd.OutOrStdout()) },
	}.build()
	flags := cmd.Flags()
	flags.BoolVar(&l.chunks, "chunks", false, "list each exception by the numbers of its chunks")
	flags.BoolVarP(&l.dd, "dd", "d", false, "print the dd commands of list_exception_chunks")
	flags.StringVar(&l.origin, "origin", "", "the `device` or file that the store is of: a short last chunk is cut off at its end")
	addJSON(cmd, &l.asJSON, "one object")
	return cmd
}

func (l *storeList) run(path string, out io.Writer) error {
	s, err := stores.Open(path)
	if err != nil {
		return err
	}
	defer s.Close()
	end := int64(1) << 62
	if l.origin != "" {
		if end, err = stores.OriginSize(l.origin); err != nil {
			return err
		}
	}
	if _, err := s.Sound(end); err != nil {
		return err
	}
	w := bufio.NewWriter(out)
	switch {
	case l.dd:
		err = ddLines(w, s, path, l.origin, end)
	case l.chunks:
		err = l.exceptions(w, s)
	default:
		err = l.extents(w, s, end)
	}
	return errors.Join(err, w.Flush())
}

func (l *storeList) extents(w io.Writer, s *stores.Store, end int64) error {
	list := jsonList{w: w, head: fmt.Sprintf(`{"chunk_size":%d,"extents":[`, s.ChunkSize())}
	for p, err := range merge.Joined(s.Pieces(end)) {
		if err == nil && l.asJSON {
			err = list.add(fmt.Appendf(nil, `{"origin":%d,"store":%d,"length":%d}`, p.To, p.From, p.Len))
		} else if err == nil {
			_, err = fmt.Fprintln(w, p.To, p.From, p.Len)
		}
		if err != nil {
			return err
		}
	}
	if l.asJSON {
		return list.end("}")
	}
	return nil
}

func (l *storeList) exceptions(w io.Writer, s *stores.Store) error {
	list := jsonList{w: w, head: fmt.Sprintf(`{"chunk_size":%d,"exceptions":[`, s.ChunkSize())}
	for e, err := range s.Exceptions() {
		if err == nil && l.asJSON {
			err = list.add(fmt.Appendf(nil, `{"old":%d,"new":%d}`, e.Old, e.New))
		} else if err == nil {
			_, err = fmt.Fprintln(w, e.Old, e.New)
		}
		if err != nil {
			return err
		}
	}
	if l.asJSON {
		return list.end("}")
	}
	return nil
}

// ddLines prints one command for each chunk. A short last chunk is copied by sectors.
func ddLines(w io.Writer, s *stores.Store, store, origin string, end int64) error {
	if origin == "" {
		origin = "ORIGIN"
	}
	for p, err := range s.Pieces(end) {
		if err != nil {
			return err
		}
		bs, count := s.ChunkSize(), int64(1)
		if p.Len < bs {
			bs = gcd(p.Len, p.To, p.From)
			count = p.Len / bs
		}
		if _, err := fmt.Fprintf(w, "dd if=%s of=%s bs=%d count=%d skip=%d seek=%d conv=notrunc\n",
			quoted(store), quoted(origin), bs, count, p.From/bs, p.To/bs); err != nil {
			return err
		}
	}
	return nil
}

func gcd(n int64, others ...int64) int64 {
	for _, m := range others {
		for m != 0 {
			n, m = m, n%m
		}
	}
	return n
}

// quoted is a word for a shell.
func quoted(s string) string {
	if s != "" && strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-+:@%,=") == "" {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
