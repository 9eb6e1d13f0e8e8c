package epochs

import "io"

// Check returns everything that is wrong with the file of size bytes in r, in
// the order of the file, and nil when Decode would accept it. It goes on after a
// wrong checksum, so that the fields behind it are judged too.
func Check(r io.ReaderAt, size int64) []error {
	h, err := readHeader(r, size)
	if err != nil {
		return []error{err}
	}
	var faults []error
	if err := h.verify(r, size); err != nil {
		faults = append(faults, err)
	}
	fields := h.faults()
	faults = append(faults, fields...)
	if len(fields) > 0 {
		return faults
	}
	if _, err := h.decodePayload(r); err != nil {
		faults = append(faults, err)
	}
	return faults
}
