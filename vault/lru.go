package vault

import (
	"container/list"
	"sync"
)

// lru keeps the values that were used last, up to a number of them. It may be used by several
// goroutines at once.
type lru[K comparable, V any] struct {
	mu    sync.Mutex
	limit int
	order list.List // of pair[K, V], the one used last in front
	at    map[K]*list.Element
}

type pair[K comparable, V any] struct {
	key   K
	value V
}

func newLRU[K comparable, V any](limit int) *lru[K, V] {
	return &lru[K, V]{limit: limit, at: map[K]*list.Element{}}
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
		l.order.Remove(e)
	}
	l.at[key] = l.order.PushFront(pair[K, V]{key, v})
	if l.order.Len() > l.limit {
		last := l.order.Back()
		delete(l.at, l.order.Remove(last).(pair[K, V]).key)
	}
}

func (l *lru[K, V]) drop(key K) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if e, ok := l.at[key]; ok {
		l.order.Remove(e)
		delete(l.at, key)
	}
}
