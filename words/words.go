// Package words says sizes and times to people, everywhere the same way.
//
// For most uses, call [Size]. Programs are told bytes and RFC 3339, by --json. Functions may
// be called by several goroutines at once.
package words

import (
	"fmt"
	"time"

	"github.com/dustin/go-humanize"
)

// Size says n bytes with a unit: "1.5 MiB".
func Size(n int64) string { return humanize.IBytes(uint64(n)) }

// Exactly says n bytes with a unit and to the byte: "1.5 MiB (1572864 bytes)".
func Exactly(n int64) string { return fmt.Sprintf("%s (%d bytes)", Size(n), n) }

// Time says when t was, in local time.
func Time(t time.Time) string { return t.Local().Format("2006-01-02 15:04:05 MST") }
