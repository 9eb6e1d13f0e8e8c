package era

// Header is what the superblock says about the device.
type Header struct {
	UUID         string `json:"uuid"` // at most 16 bytes; the kernel clears it
	BlockSectors uint32 `json:"block_size"`
	NrBlocks     uint32 `json:"nr_blocks"`
	Era          Era    `json:"current_era"`
}

// Sink takes the content of metadata in the order of the XML: the header, each
// writeset with its bits, the era array, the end. Dump feeds one; the XML
// encoder and the Builder are two.
//
// Bits and Eras are called with consecutive pieces from block 0 on, without
// gaps. Each piece but the last of a writeset is a multiple of 64 bits. The
// slices are valid only during the call.
type Sink interface {
	Begin(h Header) error
	BeginWriteset(e Era, bits uint32) error
	// Bits gives the next n bits, bit i in words[i/64], lowest first. What
	// follows bit n-1 is zero.
	Bits(words []uint64, n int) error
	EndWriteset() error
	BeginArray() error
	Eras(eras []Era) error
	EndArray() error
	End() error
}
