package vault

import (
	"context"
	"sync"

	"tidemark/block"
	format "tidemark/format/vault"
)

// packer puts segments into packs, and full packs into the store, one at a time while the next one
// is filled.
type packer struct {
	v      *Vault
	ctx    context.Context
	mu     sync.Mutex
	open   *format.Pack               // nil where none is begun
	sent   *format.Pack               // being put; nil where none is
	rooms  [2][]byte                  // for both; the next one lies in the first
	fresh  map[format.Hash]format.Ref // chunks of both, which the index does not know yet
	mine   map[format.ID]bool         // packs that were begun
	stored int64                      // bytes of packs
	err    error                      // of a put; it ends all
	done   chan struct{}              // closed when sent has been put
}

func newPacker(ctx context.Context, v *Vault) *packer {
	return &packer{v: v, ctx: ctx, fresh: map[format.Hash]format.Ref{}, mine: map[format.ID]bool{}}
}

// nextRoom returns the memory of the next pack. The last but one has been put by then, where it is.
// p.mu is held.
func (p *packer) nextRoom() []byte {
	if p.rooms[0] == nil {
		p.rooms[0] = block.LargeBuffer(format.PackRoom)
	}
	p.rooms[0], p.rooms[1] = p.rooms[1], p.rooms[0]
	return p.rooms[1]
}

// add seals a segment of plain bytes.
func (p *packer) add(kind format.Kind, plain, scratch []byte, h format.Hash) (format.Ref, error) {
	coding, body := p.v.codec.Squeeze(plain, scratch)
	p.mu.Lock()
	defer p.mu.Unlock()
	if ref, ok := p.fresh[h]; ok && kind == format.Chunk {
		return ref, nil
	}
	for p.err == nil && p.open != nil && p.open.Full() {
		p.send()
	}
	if p.err != nil {
		return format.Ref{}, p.err
	}
	if p.open == nil {
		p.open = p.v.keys.NewPack(newID(), p.nextRoom())
		p.mine[p.open.Name().ID] = true
	}
	ref := p.open.Add(format.Segment{Kind: kind, Coding: coding, Plain: int64(len(plain)), Hash: h}, body)
	if kind == format.Chunk {
		p.fresh[h] = ref
	}
	return ref, nil
}

// find returns a chunk that is in a pack which the index does not know.
func (p *packer) find(h format.Hash) (format.Ref, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	ref, ok := p.fresh[h]
	return ref, ok
}

// page returns a page that may not be in the store yet.
func (p *packer) page(ref format.Ref) ([]byte, error) {
	if b, ok, err := p.unsent(ref, nil); ok {
		return b, err
	}
	return p.v.segment(p.ctx, ref, true, nil)
}

// copy copies bytes of a segment that may not be in the store yet, from at on, into b.
func (p *packer) copy(ref format.Ref, at int64, b []byte) error {
	return p.v.segments.copy(ref, at, b, func(room []byte) ([]byte, error) {
		if b, ok, err := p.unsent(ref, room); ok {
			return b, err
		}
		return p.v.segment(p.ctx, ref, false, room)
	})
}

// unsent returns the plain bytes of a segment of the packs that are not in the store yet.
func (p *packer) unsent(ref format.Ref, room []byte) (b []byte, ok bool, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, pack := range []*format.Pack{p.open, p.sent} {
		if pack != nil && pack.Name().ID == ref.Pack {
			b, err = pack.Open(p.v.codec, ref.Segment, room)
			return b, true, err
		}
	}
	return nil, false, nil
}

// send begins to put the open pack; or, where another is being put, waits for that. p.mu is held;
// it is let go meanwhile.
func (p *packer) send() {
	if p.sent != nil {
		done := p.done
		p.mu.Unlock()
		<-done
		p.mu.Lock()
		return
	}
	pack := p.open
	p.open, p.sent, p.done = nil, pack, make(chan struct{})
	b := pack.End(newSalt())
	p.stored += int64(len(b))
	go p.put(pack, b, p.done)
}

// put puts a pack, and tells the index of it.
func (p *packer) put(pack *format.Pack, b []byte, done chan struct{}) {
	defer close(done)
	k := known{pack.Name(), int64(len(b))}
	err := p.v.store.Put(p.ctx, k.name.String(), b)
	if err == nil {
		err = p.v.index.later(&table{known: k, Table: format.Table{Name: k.name, Segments: pack.Segments()}})
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.sent = nil
	if err != nil {
		p.err = err
		return
	}
	for _, s := range pack.Segments() {
		if s.Kind == format.Chunk && p.fresh[s.Hash].Pack == k.name.ID {
			delete(p.fresh, s.Hash)
		}
	}
}

// flush puts all that was added, and waits until it is there.
func (p *packer) flush() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	for p.err == nil && (p.sent != nil || p.open != nil && !p.open.Empty()) {
		p.send()
	}
	return p.err
}

// wait waits until nothing is being put.
func (p *packer) wait() {
	p.mu.Lock()
	done := p.done
	p.mu.Unlock()
	if done != nil {
		<-done
	}
}
