# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True
"""A lower bound for packing by pairs, without the GIL; equals `scheduler.binpack_reference`.

**Pure**: changes none of its arguments. Shapes and words: pairbound.pxd.
"""

from libc.stdint cimport int32_t, uint8_t, uint64_t
from libc.stdlib cimport calloc
from libc.stdlib cimport free as release


def pair_bound(const uint64_t[:, ::1] items not None, const uint64_t[::1] guard not None,
               const uint64_t[::1] capacity not None, const int32_t[::1] order not None):
    """Bins of that capacity without which no packing of the items exists.

    Of the items, in `order`, those are kept of which no three share a bin. Each bin then holds two of them or
    one, and there are no more pairs than half of a largest matching of kept items with kept items that they
    fit beside. Takes n**3 looks at worst. Raises ValueError on a bad shape, MemoryError.
    """
    cdef Pairs pairs
    cdef Py_ssize_t i, matched, n = items.shape[0], word = guard.shape[0]
    cdef int32_t* indexes
    cdef uint8_t* flags
    if items.shape[1] != word or capacity.shape[0] != word:
        raise ValueError(f"items and capacity must be {word} words wide, as guard is")
    if n == 0 or word == 0:
        return min(n, 1)
    for i in range(order.shape[0]):
        if not 0 <= order[i] < n:
            raise ValueError(f"order[{i}] is {order[i]}, there are {n} items")
    if order.shape[0] > n:
        raise ValueError(f"order has {order.shape[0]} entries, there are {n} items: each at most once")
    pairs.n, pairs.word, pairs.kept = n, word, 0
    pairs.items, pairs.guard, pairs.capacity = &items[0, 0], &guard[0], &capacity[0]
    indexes = <int32_t*>calloc(3 * n, sizeof(int32_t))
    flags = <uint8_t*>calloc(n * (n + 1), sizeof(uint8_t))
    try:
        if indexes == NULL or flags == NULL:
            raise MemoryError(f"no memory for a bound over {n} items")
        pairs.keeps, pairs.partner, pairs.near = indexes, indexes + n, indexes + 2 * n
        pairs.joins, pairs.seen = flags, flags + n * n
        with nogil:
            for i in range(order.shape[0]):
                keep(&pairs, order[i])
            matched = match(&pairs)
    finally:
        release(indexes)
        release(flags)
    return pairs.kept - matched // 2


cdef void keep(Pairs* p, Py_ssize_t item) noexcept nogil:
    """Keep the item unless it and two that are kept fit into one bin."""
    cdef Py_ssize_t i, j, found = 0
    for i in range(p.kept):
        if fits_beside(p, item, p.keeps[i], -1):
            for j in range(found):
                if p.joins[i * p.n + p.near[j]] and fits_beside(p, item, p.keeps[i], p.keeps[p.near[j]]):
                    return
            p.near[found] = i
            found += 1
    for j in range(found):
        p.joins[p.kept * p.n + p.near[j]] = 1
        p.joins[p.near[j] * p.n + p.kept] = 1
    p.keeps[p.kept] = item
    p.kept += 1


cdef Py_ssize_t match(Pairs* p) noexcept nogil:
    """The size of a largest matching of kept items, as left copies, with kept items, as right copies.

    Source: augmenting paths, many in one round (Kuhn 1955; the rounds end when one finds none).
    """
    cdef Py_ssize_t i, matched = 0, before = -1
    for i in range(p.kept):
        p.partner[i] = p.near[i] = -1
    while matched > before:
        before = matched
        for i in range(p.kept):
            p.seen[i] = 0
        for i in range(p.kept):
            if p.near[i] < 0 and augment(p, i):
                matched += 1
    return matched


cdef bint augment(Pairs* p, Py_ssize_t left) noexcept nogil:
    """Find a right copy for the left one, moving others. As deep as there are items, which callers bound."""
    cdef Py_ssize_t right
    for right in range(p.kept):
        if p.joins[left * p.n + right] and p.partner[right] < 0 and not p.seen[right]:
            p.seen[right] = 1
            p.partner[right], p.near[left] = left, right
            return True
    for right in range(p.kept):
        if p.joins[left * p.n + right] and not p.seen[right]:
            p.seen[right] = 1
            if augment(p, p.partner[right]):
                p.partner[right], p.near[left] = left, right
                return True
    return False


cdef inline bint fits_beside(const Pairs* p, Py_ssize_t item, Py_ssize_t one,
                             Py_ssize_t two) noexcept nogil:
    """Whether a bin with `one`, and with `two` unless it is -1, takes the item; they must fit themselves."""
    cdef Py_ssize_t w
    cdef uint64_t room, lost = 0
    for w in range(p.word):
        room = p.capacity[w] - p.items[one * p.word + w]
        if two >= 0:
            room -= p.items[two * p.word + w]
        lost |= ~(room - p.items[item * p.word + w]) & p.guard[w]
    return lost == 0
