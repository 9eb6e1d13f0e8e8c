package vault

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"

	"tidemark/extent"
	format "tidemark/format/vault"
	"tidemark/vault/store"
)

// VerifyOptions say how a vault is verified.
type VerifyOptions struct {
	// Data reads all packs, too: each is held against its checksum, and each segment against its
	// seal, and each chunk against its hash.
	Data bool
	// Share is how much of the packs Data reads, as 0.05: others each time. 0 stands for all.
	Share float64
	// Damage gets each thing that is wrong.
	Damage func(Damage)
}

// Damage is one thing that is wrong.
type Damage struct {
	Point  string        `json:"point"`  // the name of a point that cannot be restored whole; ""
	Extent extent.Extent `json:"extent"` // bytes of the disk that are lost; empty where all are
	Object string        `json:"object"` // that is missing or damaged
	Reason string        `json:"reason"`
}

// Verified is what was looked at.
type Verified struct {
	Points   int   `json:"points"`
	Packs    int   `json:"packs"`    // that points need
	Bytes    int64 `json:"bytes"`    // of packs that were read
	Damages  int   `json:"damages"`  // that were told
	Unneeded int   `json:"unneeded"` // packs and generations
}

// Verify looks whether every point is whole: that its pages can be read, and that each segment they
// name is in the table of a pack that is there, and as long as it must be. It asks the store and
// not the cache. It returns errors of the store; what is wrong with the vault is told by
// VerifyOptions.Damage, and does not end it.
func (v *Vault) Verify(ctx context.Context, o VerifyOptions) (Verified, error) {
	c := v.verifier(o)
	err := c.run(ctx)
	return c.sum, err
}

// run lists the points before the packs: what a point needs is there before it.
func (c *verifier) run(ctx context.Context) error {
	names, err := c.v.pointNames(ctx, format.ID{})
	if err != nil {
		return err
	}
	if err := c.packs(ctx); err != nil {
		return err
	}
	if err := c.disks(ctx); err != nil {
		return err
	}
	for _, name := range names {
		if err := c.point(ctx, name); err != nil {
			return err
		}
	}
	for id := range c.there {
		if c.needed[id] {
			c.sum.Packs++
		} else {
			c.sum.Unneeded++
		}
	}
	return nil
}

// disks looks whether the names of the disks can be read.
func (c *verifier) disks(ctx context.Context) error {
	var names []string
	err := c.v.store.List(ctx, format.DisksPrefix, func(i store.Info) error {
		names = append(names, i.Name)
		return nil
	})
	for _, name := range names {
		if err != nil {
			break
		}
		var content []byte
		if content, err = c.v.unseal(ctx, name); err == nil {
			_, err = format.ParseDisk(content)
		}
		if err != nil && ours(err) && !errors.Is(err, store.ErrNotExist) {
			c.fault(Damage{Object: name}, err)
			err = nil
		}
	}
	return err
}

func (v *Vault) verifier(o VerifyOptions) *verifier {
	own := *v // with nothing in memory yet
	own.forgetPages()
	return &verifier{
		v: &own, o: o, there: map[format.ID]bool{}, lost: map[format.Ref]string{}, bad: map[format.ID]string{},
		older: map[format.ID]bool{}, needed: map[format.ID]bool{}, good: refSet{},
	}
}

type verifier struct {
	v     *Vault
	o     VerifyOptions
	there map[format.ID]bool    // packs whose table is sound, and in the index
	lost  map[format.Ref]string // segments that cannot be read, and why
	bad   map[format.ID]string  // packs without a table, and why
	older map[format.ID]bool    // packs that have more than one generation
	newer error                 // of what a later version wrote; nil: there is nothing
	// tableless are the packs in bad.
	tableless []known
	good      refSet // pages below which all is well
	needed    map[format.ID]bool
	// Rooms for a pack, and for what a segment of it expands to.
	stored, plain []byte
	sum           Verified
}

func (c *verifier) damage(d Damage) {
	c.sum.Damages++
	if c.o.Damage != nil {
		c.o.Damage(d)
	}
}

// fault tells of damage that an error speaks of.
func (c *verifier) fault(d Damage, err error) {
	if errors.Is(err, format.ErrNewer) {
		c.newer = err
	}
	d.Reason = err.Error()
	c.damage(d)
}

// ours reports whether an error is about what is stored, and not about the store.
func ours(err error) bool {
	return errors.Is(err, format.ErrDamaged) || errors.Is(err, format.ErrNotVault) || errors.Is(err, format.ErrNewer) || errors.Is(err, store.ErrNotExist)
}

// packs reads the tables of all packs from the store.
func (c *verifier) packs(ctx context.Context) error {
	newest := map[format.ID]known{}
	err := c.v.listPacks(ctx, format.PacksPrefix, func(k known) error {
		old, more := newest[k.name.ID]
		if more {
			c.older[k.name.ID] = true
			c.sum.Unneeded++
		}
		if !more || old.name.Generation < k.name.Generation {
			newest[k.name.ID] = k
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, k := range newest {
		if err := c.pack(ctx, k); err != nil {
			return err
		}
	}
	return nil
}

// pack reads the table of a pack, and that of a newer generation when it was rewritten meanwhile.
func (c *verifier) pack(ctx context.Context, k known) error {
	id := k.name.ID
	t, err := c.v.readTable(ctx, k)
	if errors.Is(err, store.ErrNotExist) {
		all, listing := c.v.generations(ctx, id)
		if listing != nil {
			return listing
		}
		if len(all) == 0 {
			return nil // if a point needs it that is told there
		}
		t, err = c.v.readTable(ctx, all[0])
	}
	switch {
	case err != nil && !ours(err):
		return err
	case err != nil:
		c.bad[id] = err.Error()
		c.tableless = append(c.tableless, k)
		c.fault(Damage{Object: k.name.String()}, err)
		return nil
	}
	c.there[id] = true
	if err := c.v.index.renew(t); err != nil {
		return err
	}
	if c.o.Data && (c.o.Share == 0 || rand.Float64() < c.o.Share) {
		return c.data(ctx, t)
	}
	return nil
}

// mostPacks is how large most packs are at most, in bytes.
const mostPacks = 17 << 20

// data reads a whole pack, and where its disk cannot do that what can be read of it.
func (c *verifier) data(ctx context.Context, t *table) error {
	name := t.name.String()
	if c.plain == nil {
		c.plain = make([]byte, format.MaxSegment)
	}
	if int64(len(c.stored)) <= t.size {
		c.stored = make([]byte, max(t.size+1, mostPacks))
	}
	b, err := c.v.store.Get(ctx, name, 0, t.size+1, c.stored)
	if errors.Is(err, store.ErrNotExist) { // removed or rewritten meanwhile
		return nil
	}
	if errors.Is(err, store.ErrUnreadable) {
		var other error
		if b, other = c.v.readable(ctx, name); other != nil {
			return other
		}
	}
	if err != nil && !ours(err) {
		return err
	}
	c.sum.Bytes += int64(len(b))
	if err == nil {
		_, err = format.CheckPack(b)
	}
	reason := ""
	if err != nil {
		reason = err.Error()
	}
	opener := c.v.keys.Opener(t.name.ID)
	for _, s := range t.Segments { // a checksum can be forged, a seal cannot
		stored := b[min(s.Place, int64(len(b))):min(s.Place+s.Stored, int64(len(b)))]
		plain, err := opener.Open(c.v.codec, s, stored, c.plain)
		if err == nil && s.Kind == format.Chunk && c.v.keys.Hash(plain) != s.Hash {
			err = fmt.Errorf("segment %d: %w: it has another hash", s.Number, format.ErrDamaged)
		}
		if err != nil {
			reason = err.Error()
			c.lost[format.Ref{Pack: t.name.ID, Segment: s.Number}] = reason
		}
	}
	if reason != "" {
		c.damage(Damage{Object: name, Reason: reason})
	}
	return nil
}

func (c *verifier) point(ctx context.Context, name format.PointName) error {
	p, err := c.v.Point(ctx, name)
	switch {
	case errors.Is(err, store.ErrNotExist):
		return nil // forgotten meanwhile
	case err != nil && !ours(err):
		return err
	case err != nil:
		c.fault(Damage{Point: name.String(), Object: name.String()}, err)
		return nil
	}
	c.sum.Points++
	t := c.v.treeOf(p.Point)
	_, err = c.page(ctx, t, name.String(), t.top(format.Level(t.size)))
	return err
}

// page reports whether all is well with a page and what lies below it.
func (c *verifier) page(ctx context.Context, t tree, point string, n node) (bool, error) {
	if n.ref.IsZero() {
		return true, nil
	}
	c.needed[n.ref.Pack] = true
	inside := n.off <= t.size-format.Covers(n.level) // else the end of the disk matters
	if inside && c.good.has(n.ref) {
		return true, nil
	}
	well := true
	reason, err := c.segment(ctx, n.ref, 0, 0, true)
	if err != nil {
		return false, err
	}
	if reason == "" {
		err := c.below(ctx, t, point, n, &well)
		if err != nil && !ours(err) {
			return false, err
		} else if err != nil {
			reason = err.Error()
		}
	}
	if reason != "" {
		well = false
		covered := extent.Extent{Off: n.off, Len: min(format.Covers(n.level), t.size-n.off)}
		c.damage(Damage{Point: point, Extent: covered, Object: n.ref.String(), Reason: reason})
	}
	if inside && well {
		c.good.add(n.ref)
	}
	return well, nil
}

func (c *verifier) below(ctx context.Context, t tree, point string, n node, well *bool) error {
	if n.level > 0 {
		return t.children(ctx, n, everywhere, func(_ int, child node) error {
			ok, err := c.page(ctx, t, point, child)
			*well = *well && ok
			return err
		})
	}
	l, err := c.v.leaf(ctx, n.ref)
	if err != nil {
		return err
	}
	for _, e := range l {
		c.needed[e.Ref.Pack] = true
		reason, err := c.segment(ctx, e.Ref, e.At, e.Len, false)
		if err != nil {
			return err
		}
		if n.off+e.Off+e.Len > t.size {
			reason = fmt.Sprintf("it lies behind the end of the disk, which has %d bytes", t.size)
		}
		if reason != "" {
			*well = false
			c.damage(Damage{Point: point, Extent: extent.Extent{Off: n.off + e.Off, Len: e.Len}, Object: e.Ref.String(), Reason: reason})
		}
	}
	return nil
}

// segment returns what is wrong with n bytes of a segment from at on.
func (c *verifier) segment(ctx context.Context, ref format.Ref, at, n int64, isPage bool) (string, error) {
	if !c.there[ref.Pack] {
		if reason := c.bad[ref.Pack]; reason != "" {
			return reason, nil
		}
		return "the pack is missing", nil
	}
	t, err := c.v.table(ctx, ref.Pack)
	if err != nil {
		return "", err
	}
	s, ok := t.Find(ref.Segment)
	if !ok && c.older[ref.Pack] {
		if t, err = c.v.otherTable(ctx, ref, t.known); err != nil && !ours(err) {
			return "", err
		} else if err == nil {
			s, ok = t.Find(ref.Segment)
		}
	}
	switch {
	case !ok:
		return "there is no such segment in the pack", nil
	case (s.Kind == format.Page) != isPage:
		return fmt.Sprintf("it is a %v", s.Kind), nil
	case at+n > s.Plain:
		return fmt.Sprintf("it has %d bytes, and %d from %d on are needed", s.Plain, n, at), nil
	}
	return c.lost[ref], nil
}
