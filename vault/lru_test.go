package vault

import "testing"

func TestMemoryForTablesIsBounded(t *testing.T) {
	l := newHeavyLRU[int](10, func(n int) int { return n })
	for i, weight := range []int{4, 4, 4, 20, 3, 3} {
		l.put(i, weight)
		if l.held > 10 && l.order.Len() > 1 || l.order.Len() != len(l.at) {
			t.Errorf("%d values of %d, %d by key", l.order.Len(), l.held, len(l.at))
		}
	}
	l.put(4, 7) // in the place of another
	l.drop(5)
	if _, kept := l.get(4); !kept || l.held != 7 || l.order.Len() != 1 {
		t.Errorf("%d values of %d", l.order.Len(), l.held)
	}
}
