package job

import (
	"errors"
	"fmt"
	"math"
	"strings"

	"github.com/dustin/go-humanize"
)

// sectorBytes is what device-mapper counts in.
const sectorBytes = 512

// ParseSize reads a number of bytes above zero in the units of lvcreate, truncate and dd:
// 64K and 64KiB are in powers of 1024, 64KB in powers of 1000, 8s are sectors of 512 bytes.
func ParseSize(s string) (int64, error) {
	number, unit := s, int64(1)
	if sectors, ok := strings.CutSuffix(s, "s"); ok {
		number, unit = sectors, sectorBytes
	} else if n := len(s); n > 0 && strings.ContainsRune("kKmMgGtTpP", rune(s[n-1])) {
		number += "iB"
	}
	n, err := humanize.ParseBytes(number)
	if err != nil || n == 0 || n > uint64(math.MaxInt64/unit) {
		return 0, errors.New("must be a size above zero, as 4096, 64K, 100MB or 8s (sectors)")
	}
	return int64(n) * unit, nil
}

// leastRate is what no disk is slower than, in bytes a second: less is a number without
// its unit.
const leastRate = 64 << 10

// ParseRate reads a number of bytes a second in the units of ParseSize, 64 KiB or more.
func ParseRate(s string) (int64, error) {
	n, err := ParseSize(s)
	if err == nil && n < leastRate {
		err = fmt.Errorf("%d bytes a second are less than the least, 64K: give a unit, as 10M", n)
	}
	return n, err
}
