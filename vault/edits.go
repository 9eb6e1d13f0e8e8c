package vault

import (
	"slices"
	"sort"

	format "tidemark/format/vault"
)

// edits are what is new in one leaf page: entries as in a page, of which those without a segment
// are zeros.
type edits []format.Entry

// put puts an entry over those that are there.
func (l edits) put(e format.Entry) edits {
	end := e.Off + e.Len
	first := sort.Search(len(l), func(i int) bool { return l[i].Off+l[i].Len > e.Off })
	last := first
	var with []format.Entry
	if first < len(l) && l[first].Off < e.Off {
		with = append(with, cut(l[first], l[first].Off, e.Off))
	}
	with = append(with, e)
	for ; last < len(l) && l[last].Off < end; last++ {
		if l[last].Off+l[last].Len > end {
			with = append(with, cut(l[last], end, l[last].Off+l[last].Len))
		}
	}
	return slices.Replace(l, first, last, with...)
}

// cut returns the part of an entry between two places of the page.
func cut(e format.Entry, from, to int64) format.Entry {
	at := e.At + from - e.Off
	if e.Ref.IsZero() {
		at = 0
	}
	return format.Entry{Off: from, Len: to - from, Ref: e.Ref, At: at}
}

// over returns the page that the edits make of an old one: without zeros, and entries that go
// on where another ends are one.
func (l edits) over(old format.Leaf) format.Leaf {
	var page format.Leaf
	emit := func(e format.Entry) {
		if e.Ref.IsZero() {
			return
		}
		if n := len(page); n > 0 {
			if p := &page[n-1]; p.Ref == e.Ref && p.Off+p.Len == e.Off && p.At+p.Len == e.At {
				p.Len += e.Len
				return
			}
		}
		page = append(page, e)
	}
	rest := slices.Clone(old)
	for _, e := range l {
		end := e.Off + e.Len
		for len(rest) > 0 && rest[0].Off < e.Off {
			o := rest[0]
			if o.Off+o.Len > e.Off {
				emit(cut(o, o.Off, e.Off))
				rest[0] = cut(o, e.Off, o.Off+o.Len)
				break
			}
			emit(o)
			rest = rest[1:]
		}
		emit(e)
		for len(rest) > 0 && rest[0].Off < end {
			o := rest[0]
			if o.Off+o.Len > end {
				rest[0] = cut(o, end, o.Off+o.Len)
				break
			}
			rest = rest[1:]
		}
	}
	for _, o := range rest {
		emit(o)
	}
	return page
}
