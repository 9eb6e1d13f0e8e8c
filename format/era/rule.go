package era

import "tidemark/format/pdata"

// eraRule knows which eras the era array can have. The kernel digests the oldest
// writeset first. So each element is older than the oldest writeset, or it has the
// era of the oldest writeset and its block is marked there (half digested). A query
// for a later era therefore need not read the array, and digestion sets no element
// back.
//
// An element of the current era is allowed when the writeset of the current era
// marks the block too: a tolerant dump marks lost blocks in this way.
//
// The rule keeps two writesets, one bit for each data block.
type eraRule struct {
	era    Era // the current one
	any    bool
	oldest Era
	old    pdata.Bitmap // the oldest writeset
	now    pdata.Bitmap // the current era's
	open   pdata.Bitmap // the writeset that is being filled; nil when the rule needs it not
}

// begin begins a writeset.
func (r *eraRule) begin(e Era, bits uint32) {
	r.open = nil
	if r.any && e >= r.oldest && e != r.era {
		return
	}
	r.open = pdata.NewBitmap(uint64(bits))
	if !r.any || e < r.oldest {
		r.any, r.oldest, r.old = true, e, r.open
	}
	if e == r.era {
		r.now = r.open
	}
}

// allows says whether a block may have an era.
func (r *eraRule) allows(block uint64, e Era) bool {
	switch {
	case e > r.era:
		return false
	case !r.any || e < r.oldest:
		return true
	}
	return e == r.oldest && r.old.Has(block) || e == r.era && r.now.Has(block)
}

// newest returns the newest era an element may have without a writeset.
func (r *eraRule) newest() Era {
	if r.any {
		return min(r.era, r.oldest)
	}
	return r.era
}
