package snapstore

import (
	"encoding/binary"
	"fmt"
	"iter"

	"tidemark/block"
)

// Exceptions returns the exceptions in the order of the store, which is that in which the
// kernel made them. It reads the store as it goes, and ends with an error, which wraps
// ErrDamaged or is that of the reader, where the list cannot be followed. It does not
// judge the exceptions: Check does.
func (s *Store) Exceptions() iter.Seq2[Exception, error] {
	return func(yield func(Exception, error) bool) {
		odd := func(f *Fault) bool {
			yield(Exception{}, f)
			return false
		}
		_, err := s.walk(func(e Exception, _ int64) bool { return yield(e, nil) }, odd)
		if err != nil {
			yield(Exception{}, fmt.Errorf("snapstore: %w", err))
		}
	}
}

// walk calls each for every exception, with the byte at which it lies, and odd for what cannot
// be in a list. It ends early where one of them says so, and returns the number of areas that
// it read.
func (s *Store) walk(each func(e Exception, at int64) bool, odd func(*Fault) bool) (areas int64, err error) {
	buf := block.AlignedBuffer(int(min(s.chunk, pieceSize)))
	for ; ; areas++ {
		if !s.holds(s.area(areas)) {
			odd(&Fault{
				Object: fmt.Sprintf("area %d", areas), Offset: s.area(areas) * s.chunk,
				Problem: fmt.Sprintf("it lies behind the end of the store, which has %d bytes: it was cut off", s.size),
			})
			return areas, nil
		}
		more, err := s.walkArea(areas, buf, each, odd)
		if !more || err != nil {
			return areas + 1, err
		}
	}
}

// walkArea walks one area; it reports whether the list goes on behind it.
func (s *Store) walkArea(area int64, buf []byte, each func(Exception, int64) bool, odd func(*Fault) bool) (more bool, err error) {
	ended := false
	begin := s.area(area) * s.chunk
	for at := begin; at < begin+s.chunk; at += int64(len(buf)) {
		if err := readFull(s.r, buf, at); err != nil {
			return false, fmt.Errorf("area %d at byte %d: %w", area, at, err)
		}
		for i := 0; i < len(buf); i += exceptionSize {
			e := Exception{Old: binary.LittleEndian.Uint64(buf[i:]), New: binary.LittleEndian.Uint64(buf[i+8:])}
			goOn := true
			switch at := at + int64(i); {
			case e == Exception{}:
				ended = true
			case ended || e.New == 0:
				goOn = odd(exceptionFault(at, "it lies behind the end of the list"))
				ended = true
			default:
				goOn = each(e, at)
			}
			if !goOn {
				return false, nil
			}
		}
	}
	return !ended, nil
}
