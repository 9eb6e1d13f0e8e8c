package era

import "slices"

// activate is what creating the device and resuming it does: three commits.
func (m *model) activate() {
	for i := range ceilDiv(m.nrBlocks, erasPerBlock) {
		m.array = m.insert(m.array, i, m.take())
	}
	m.commit()
	m.newEra()
	m.commit()
}

// newEra makes an empty writeset.
func (m *model) newEra() {
	m.era++
	m.current = m.emptyTree(childWidth, false)
	for i := range ceilDiv(m.nrBlocks, bitsPerBlock) {
		m.current = m.insert(m.current, i, m.take())
	}
}

// rollover archives the current writeset and begins another. Nothing is
// digested: how far the kernel gets before the next one depends on the machine.
func (m *model) rollover() {
	m.writesets = m.insert(m.writesets, m.era, m.current)
	m.newEra()
}

// takeSnapshot is the message take_metadata_snap.
func (m *model) takeSnapshot() {
	m.rollover()
	m.commit()
	m.change(0, true)
	m.snapshot = m.take()
	m.change(0, false)
	m.clone = [2]Addr{m.writesets, m.array}
	m.change(m.writesets, true)
	m.change(m.array, true)
	m.commit()
}

// dropSnapshot is the message drop_metadata_snap.
func (m *model) dropSnapshot() {
	m.free(m.clone[0])
	m.free(m.clone[1])
	m.change(m.snapshot, false)
	m.snapshot = 0
	m.commit()
}

// digest removes the oldest writeset, which had no bits. Its blocks are free
// after the next commit, which something else must cause.
func (m *model) digest() {
	m.writesets = m.shadowNode(m.writesets)
	n := m.nodes[m.writesets]
	oldest := n.values[0]
	n.keys, n.values = slices.Clone(n.keys[1:]), slices.Clone(n.values[1:])
	m.free(oldest)
}

// rewriteArray copies every block of the era array in one transaction, as the
// digestion of a full writeset does when nothing else commits.
func (m *model) rewriteArray() {
	m.array = m.rewrite(m.array)
	m.commit()
}

func (m *model) rewrite(at Addr) Addr {
	at = m.shadowNode(at)
	n := m.nodes[at]
	for i, v := range n.values {
		if n.leaf {
			n.values[i], _ = m.shadow(v)
		} else {
			n.values[i] = m.rewrite(v)
		}
	}
	return at
}
