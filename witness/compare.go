package witness

import (
	"fmt"
	"slices"
)

// Compare tells in words what is not as it was; nothing means that both witnesses are alike. Each
// line names a volume and one thing of it.
func Compare(was, now Witness) []string {
	if was.Size != now.Size {
		return []string{fmt.Sprintf("the size is %d bytes, was %d", now.Size, was.Size)}
	}
	var all []string
	for i := range max(len(was.Volumes), len(now.Volumes)) {
		switch {
		case i >= len(now.Volumes):
			all = append(all, fmt.Sprintf("%s at byte %d is gone", was.Volumes[i].Kind, was.Volumes[i].Off))
		case i >= len(was.Volumes):
			all = append(all, fmt.Sprintf("%s at byte %d is new", now.Volumes[i].Kind, now.Volumes[i].Off))
		default:
			all = append(all, compare(was.Volumes[i], now.Volumes[i])...)
		}
	}
	return all
}

func compare(was, now Volume) []string {
	at := fmt.Sprintf("%s at byte %d", now.Kind, now.Off)
	if was.Kind != now.Kind || was.Off != now.Off || was.Len != now.Len {
		return []string{fmt.Sprintf("%s with %d bytes, was %s at byte %d with %d bytes", at, now.Len, was.Kind, was.Off, was.Len)}
	}
	var all []string
	if was.State != now.State {
		all = append(all, fmt.Sprintf("%s: it %s, before it %s", at, now.State.says(), was.State.says()))
	}
	for i, f := range now.Fields {
		switch {
		case i >= len(was.Fields) || was.Fields[i].Name != f.Name:
			return append(all, at+": it was noted by another version of tidemark")
		case was.Fields[i].Value != f.Value:
			all = append(all, fmt.Sprintf("%s: %s is %s, was %s", at, f.Name, f.Value, was.Fields[i].Value))
		}
	}
	if len(was.Fields) > len(now.Fields) || was.Mounts != now.Mounts && !slices.ContainsFunc(now.Fields, func(f Field) bool { return f.Name == mountCount }) {
		all = append(all, at+": it was noted by another version of tidemark")
	}
	return all
}

func (s State) says() string {
	if s == Clean {
		return "is clean"
	}
	return string(s)
}
