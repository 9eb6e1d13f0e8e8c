package vault

import (
	"container/list"
	"sync"
)

// lru keeps the values that were used last, up to a weight of all of them. It may be used by several
// goroutines at once.
type lru[K comparable, V any] struct {
	mu    sync.Mutex
	limit int
	held  int // weight of all
	weigh func(V) int
	order list.List // of pair[K, V], the one used last in front
	at    map[K]*list.Element
}

type pair[K comparable, V any] struct {
	key   K
	value V
}

// newLRU makes one that keeps that many values.
func newLRU[K comparable, V any](limit int) *lru[K, V] {
	return newHeavyLRU[K](limit, func(V) int { return 1 })
}

// newHeavyLRU makes one of values that weigh differently. The one used last is kept in any case.
func newHeavyLRU[K comparable, V any](limit int, weigh func(V) int) *lru[K, V] {
	return &lru[K, V]{limit: limit, weigh: weigh, at: map[K]*list.Element{}}
}

func (l *lru[K, V]) get(key K) (v V, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	e, ok := l.at[key]
	if !ok {
		return v, false
	}
	l.order.MoveToFront(e)
	return e.Value.(pair[K, V]).value, true
}

func (l *lru[K, V]) put(key K, v V) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if e, ok := l.at[key]; ok {
		l.remove(e)
	}
	l.at[key] = l.order.PushFront(pair[K, V]{key, v})
	for l.held += l.weigh(v); l.held > l.limit && l.order.Len() > 1; {
		l.remove(l.order.Back())
	}
}

// remove takes a value out. l.mu is held.
func (l *lru[K, V]) remove(e *list.Element) {
	p := l.order.Remove(e).(pair[K, V])
	delete(l.at, p.key)
	l.held -= l.weigh(p.value)
}

func (l *lru[K, V]) drop(key K) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if e, ok := l.at[key]; ok {
		l.remove(e)
	}
}
