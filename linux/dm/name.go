package dm

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// plain reports whether libdevmapper leaves a byte of a name as it is.
func plain(b byte) bool {
	return b >= '0' && b <= '9' || b >= 'A' && b <= 'Z' || b >= 'a' && b <= 'z' || strings.IndexByte("#+-.:=@_", b) >= 0
}

// mangle writes a name or UUID as the kernel has it: every byte that is not plain
// as \xNN. One that is written so already stays as it is; a mixture is an error.
func mangle(s string) (string, error) {
	if !strings.Contains(s, `\x`) {
		return escape(s), nil
	}
	if plainText, ok := unescape(s); !ok || escape(plainText) != s {
		return "", errors.New(`\x is followed by something else than two hexadecimal digits of a byte that is written so`)
	}
	return s, nil
}

func escape(s string) string {
	var out strings.Builder
	for i := range len(s) {
		if plain(s[i]) {
			out.WriteByte(s[i])
		} else {
			fmt.Fprintf(&out, `\x%02x`, s[i])
		}
	}
	return out.String()
}

// unescape takes \xNN back; false when s has any other byte that is not plain.
func unescape(s string) (string, bool) {
	var out strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '\\' {
			if !plain(s[i]) {
				return "", false
			}
			out.WriteByte(s[i])
			continue
		}
		if i+4 > len(s) || s[i+1] != 'x' {
			return "", false
		}
		b, err := strconv.ParseUint(s[i+2:i+4], 16, 8)
		if err != nil {
			return "", false
		}
		out.WriteByte(byte(b))
		i += 3
	}
	return out.String(), true
}

// demangle writes a kernel's name as people read it. A name that mangle would not
// lead back to stays as it is.
func demangle(s string) string {
	read, ok := unescape(s)
	if !ok || strings.Contains(read, `\x`) || escape(read) != s {
		return s
	}
	return read
}

// kernelNameOf is mangle for a name that came from the kernel.
func kernelNameOf(name string) string {
	if kernel, err := mangle(name); err == nil {
		return kernel
	}
	return name
}

// checkName returns a device's name as the kernel has it.
func checkName(name string) (string, error) {
	kernel, err := mangle(name)
	switch {
	case err != nil:
		return "", err
	case name == "":
		return "", errors.New("a device must have a name")
	case strings.ContainsRune(name, '/'):
		return "", errors.New("want a name, not a path")
	case strings.ContainsRune(name, 0):
		return "", errors.New("a name cannot have a NUL")
	case name == "." || name == ".." || name == controlName:
		return "", errors.New("the name is taken by the system")
	case len(kernel) >= nameLen:
		return "", fmt.Errorf("a name has %d bytes at most, this one has %d as the kernel stores it", nameLen-1, len(kernel))
	}
	return kernel, nil
}

// checkUUID is checkName for a UUID, which may be empty.
func checkUUID(uuid string) (string, error) {
	kernel, err := mangle(uuid)
	switch {
	case err != nil:
		return "", fmt.Errorf("UUID %q: %w", uuid, err)
	case strings.ContainsRune(uuid, 0):
		return "", fmt.Errorf("UUID %q: it cannot have a NUL", uuid)
	case len(kernel) >= uuidLen:
		return "", fmt.Errorf("UUID %q: it has %d bytes at most, this one has %d as the kernel stores it", uuid, uuidLen-1, len(kernel))
	}
	return kernel, nil
}
