# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True
"""Vector bin packing without the GIL; equals `scheduler.binpack_reference` item for item.

**Pure** but for `free`, `room` and `chosen`, which are changed in place. Shapes and words: binpack.pxd.
"""

from libc.stdint cimport INT64_MAX, int32_t, int64_t, uint8_t, uint64_t
from libc.stdlib cimport calloc
from libc.stdlib cimport free as release

cdef enum:
    SHAKES = 600  # swaps tried after each throw-out: fewer leave the search in a rut, more are only slower
    ODD = 20  # one swap in so many may level loads; the others widen them, which leaves larger gaps


def find_homeless(const uint64_t[:, ::1] items not None, const uint64_t[::1] guard not None,
                  uint64_t[:, ::1] free not None, const uint8_t[:, ::1] eligible not None,
                  int32_t[::1] chosen not None):
    """The first item that fits into no bin as it is, -1 if there is none. Raises ValueError on a bad shape."""
    cdef Search search
    cdef Py_ssize_t item, bin
    _begin(&search, items, guard, free, eligible, chosen)
    with nogil:
        for item in range(search.n):
            for bin in range(search.m):
                if may(&search, item, bin) and fits(&search, item, bin):
                    break
            else:
                break
        else:
            item = -1
    return item


# --- greedy ---------------------------------------------------------------------------------------


def first_fit(const uint64_t[:, ::1] items not None, const uint64_t[::1] guard not None,
              uint64_t[:, ::1] free not None, const uint8_t[:, ::1] eligible not None,
              const int32_t[::1] order not None, int32_t[::1] chosen not None):
    """Put the items of `order`, one after the other, into the first bin that takes them; -1 if none does.

    Returns the steps it took. Raises ValueError on a bad shape, with nothing changed.
    """
    cdef Search search
    cdef Py_ssize_t i, item, bin, steps = 0
    _begin(&search, items, guard, free, eligible, chosen)
    for i in range(order.shape[0]):
        if not 0 <= order[i] < search.n:
            raise ValueError(f"order[{i}] is {order[i]}, there are {search.n} items")
    with nogil:
        for i in range(order.shape[0]):
            item = order[i]
            chosen[item] = -1
            for bin in range(search.m):
                steps += 1
                if may(&search, item, bin) and fits(&search, item, bin):
                    reduce_free(&search, item, bin)
                    chosen[item] = bin
                    break
    return steps


def fill_bins(const uint64_t[:, ::1] items not None, const uint64_t[::1] guard not None,
              uint64_t[:, ::1] free not None, const uint8_t[:, ::1] eligible not None,
              const int64_t[:, ::1] shares not None, int64_t[:, ::1] room not None,
              const int64_t[::1] weight not None, bint nearest, int64_t steps,
              int32_t[::1] chosen not None):
    """Fill one bin after the other, each time with the item that suits best what it has left.

    shares int64[n, d] and room int64[m, d] are parts of the largest capacity, up to 2**20; weight
    int64[d] up to 2**10. Suits best: the largest weighted dot product of share and room or, with
    `nearest`, the smallest weighted square distance; equal ones: the first item. Ends early, with items at
    -1, when `steps` are spent. Returns the steps it took. Raises ValueError on a bad shape.
    """
    cdef Search search
    cdef Py_ssize_t bin, item, best, left, d = weight.shape[0], r
    cdef int64_t score, best_score, spent = 0
    _begin(&search, items, guard, free, eligible, chosen)
    if (shares.shape[0] != search.n or shares.shape[1] != d or room.shape[0] != search.m
            or room.shape[1] != d):
        raise ValueError("shares and room must have a row an item or bin and a column a weight")
    left = search.n
    with nogil:
        for item in range(search.n):
            chosen[item] = -1
        for bin in range(search.m):
            while left and spent < steps:
                best, best_score = -1, 0
                for item in range(search.n):
                    if chosen[item] < 0 and may(&search, item, bin) and fits(&search, item, bin):
                        score = 0
                        for r in range(d):
                            score += suit(shares[item, r], room[bin, r], weight[r], nearest)
                        if best < 0 or score > best_score:
                            best, best_score = item, score
                spent += search.n
                if best < 0:
                    break
                reduce_free(&search, best, bin)
                chosen[best] = bin
                left -= 1
                for r in range(d):
                    room[bin, r] -= shares[best, r]
    return spent


cdef inline int64_t suit(int64_t share, int64_t room, int64_t weight, bint nearest) noexcept nogil:
    """At most 2**51 in absolute value, so 2**12 resources cannot overflow a sum."""
    if nearest:
        return -weight * (room - share) * (room - share)
    return weight * share * room


# --- search ---------------------------------------------------------------------------------------


def place_rest(const uint64_t[:, ::1] items not None, const uint64_t[::1] guard not None,
               uint64_t[:, ::1] free not None, const uint8_t[:, ::1] eligible not None,
               const int64_t[::1] size not None, int32_t[::1] chosen not None,
               int64_t steps, uint64_t seed):
    """Find room for the items at -1 by throwing out others, until all have a bin or `steps` are spent.

    `free` is what empty bins have and, after, what is left. Returns the steps it took; the packing is
    complete when no item is at -1. Raises ValueError on a bad shape or where the chosen items do not fit,
    MemoryError.

    Source: the ejection pool with penalty counters of Nagata and Braysy: A powerful route minimization
    heuristic for the vehicle routing problem with time windows, Operations Research Letters 37, 2009.
    """
    cdef Search search
    cdef int32_t* links
    cdef int64_t* sums
    cdef Py_ssize_t item
    _begin(&search, items, guard, free, eligible, chosen)
    if size.shape[0] != search.n:
        raise ValueError(f"size has {size.shape[0]} entries, there are {search.n} items")
    if search.n == 0:
        return 0
    search.size = &size[0]
    search.steps = steps
    search.random = seed | 1
    links = <int32_t*>calloc(3 * search.n + search.m, sizeof(int32_t))
    sums = <int64_t*>calloc(search.n + search.m, sizeof(int64_t))
    try:
        if links == NULL or sums == NULL:
            raise MemoryError(f"no memory for a search over {search.n} items and {search.m} bins")
        with nogil:
            item = arrange(&search, links, sums)
            if item < 0:
                run(&search)
        if item >= 0:
            raise ValueError(f"chosen[{item}] is {chosen[item]}, which has no room for it")
    finally:
        release(links)
        release(sums)
    return steps - search.steps


cdef Py_ssize_t arrange(Search* s, int32_t* links, int64_t* sums) noexcept nogil:
    """Set the search up from `chosen`; an item for which its bin has no room, or -1."""
    cdef Py_ssize_t item, bin
    s.after, s.before, s.pool, s.head = links, links + s.n, links + 2 * s.n, links + 3 * s.n
    s.cost, s.load = sums, sums + s.n
    s.pooled = 0
    for bin in range(s.m):
        s.head[bin] = -1
    for item in range(s.n):
        s.cost[item] = s.size[item]
        if s.chosen[item] < 0:
            s.pool[s.pooled] = item
            s.pooled += 1
        elif may(s, item, s.chosen[item]) and fits(s, item, s.chosen[item]):
            put(s, item, s.chosen[item])
        else:
            return item
    return -1


cdef void run(Search* s) noexcept nogil:
    cdef Py_ssize_t item
    while s.pooled and s.steps > 0:
        s.pooled -= 1
        item = s.pool[s.pooled]
        if not insert(s, item):
            s.cost[item] += 1
            throw_out(s, item)
            shake(s)


cdef bint insert(Search* s, Py_ssize_t item) noexcept nogil:
    """Put it into the first bin that takes it, from a random one around."""
    cdef Py_ssize_t tried, bin = below(s, s.m)
    for tried in range(s.m):
        if may(s, item, bin) and fits(s, item, bin):
            s.steps -= tried + 1
            put(s, item, bin)
            return True
        bin = bin + 1 if bin + 1 < s.m else 0
    s.steps -= s.m
    return False


cdef void throw_out(Search* s, Py_ssize_t item) noexcept nogil:
    """Put it in place of the one or two items of a bin that cost least; of equals a random one."""
    cdef Py_ssize_t one = -1, two = -1, first, second, bin
    cdef Py_ssize_t equals = 0
    cdef int64_t best = INT64_MAX, cost
    s.steps -= s.n
    for first in range(s.n):
        bin = s.chosen[first]
        if bin < 0 or s.cost[first] > best or not may(s, item, bin):
            continue
        if fits_without(s, item, bin, first):
            equals = 1 if s.cost[first] < best else equals + 1
            best = s.cost[first]
            if equals == 1 or below(s, equals) == 0:
                one = first
    for first in range(s.n):
        bin = s.chosen[first]
        if bin < 0 or s.cost[first] >= best or not may(s, item, bin):
            continue
        second = s.after[first]
        while second >= 0:
            s.steps -= 1
            cost = s.cost[first] + s.cost[second]
            if cost <= best and fits_without_two(s, item, bin, first, second):
                equals = 1 if cost < best else equals + 1
                best = cost
                if equals == 1 or below(s, equals) == 0:
                    one, two = first, second
            second = s.after[second]
    if one < 0:
        clear_room(s, item)
        return
    bin = s.chosen[one]
    expel(s, one)
    if two >= 0:
        expel(s, two)
    put(s, item, bin)


cdef void clear_room(Search* s, Py_ssize_t item) noexcept nogil:
    """Put it into a bin that takes it when empty, the first from a random one around; its items go until it fits.

    Where there is no such bin the item goes back to the pool, and the steps run out.
    """
    cdef Py_ssize_t tried, bin = below(s, s.m)
    for tried in range(s.m):
        if may(s, item, bin) and fits_empty(s, item, bin):
            while not fits(s, item, bin):
                expel(s, s.head[bin])
            put(s, item, bin)
            return
        bin = bin + 1 if bin + 1 < s.m else 0
    s.pool[s.pooled] = item
    s.pooled += 1


cdef void shake(Search* s) noexcept nogil:
    """Try random swaps and moves between bins; most may only widen the difference of the loads."""
    cdef Py_ssize_t tried, one, other, here, there
    cdef int64_t gain
    s.steps -= SHAKES
    for tried in range(SHAKES):
        one, other = below(s, s.n), below(s, s.n)
        here, there = s.chosen[one], s.chosen[other]
        if here < 0 or there < 0 or here == there:
            continue
        gain = s.size[other] - s.size[one]
        if gain * (s.load[here] - s.load[there] + gain) < 0 and below(s, ODD):
            continue
        if not may(s, one, there):
            continue
        if may(s, other, here) and fits_without(s, other, here, one) and fits_without(s, one, there, other):
            take(s, one)
            take(s, other)
            put(s, one, there)
            put(s, other, here)
        elif fits(s, one, there):
            take(s, one)
            put(s, one, there)


# --- bins and items -------------------------------------------------------------------------------


cdef inline bint may(const Search* s, Py_ssize_t item, Py_ssize_t bin) noexcept nogil:
    return s.eligible == NULL or s.eligible[item * s.m + bin] != 0


cdef inline bint fits(const Search* s, Py_ssize_t item, Py_ssize_t bin) noexcept nogil:
    cdef Py_ssize_t w
    cdef uint64_t lost = 0
    for w in range(s.word):
        lost |= ~(s.free[bin * s.word + w] - s.items[item * s.word + w]) & s.guard[w]
    return lost == 0


cdef inline bint fits_without(const Search* s, Py_ssize_t item, Py_ssize_t bin,
                              Py_ssize_t one) noexcept nogil:
    cdef Py_ssize_t w
    cdef uint64_t lost = 0
    for w in range(s.word):
        lost |= ~(s.free[bin * s.word + w] + s.items[one * s.word + w]
                  - s.items[item * s.word + w]) & s.guard[w]
    return lost == 0


cdef inline bint fits_without_two(const Search* s, Py_ssize_t item, Py_ssize_t bin, Py_ssize_t one,
                                  Py_ssize_t two) noexcept nogil:
    cdef Py_ssize_t w
    cdef uint64_t lost = 0
    for w in range(s.word):
        lost |= ~(s.free[bin * s.word + w] + s.items[one * s.word + w] + s.items[two * s.word + w]
                  - s.items[item * s.word + w]) & s.guard[w]
    return lost == 0


cdef bint fits_empty(const Search* s, Py_ssize_t item, Py_ssize_t bin) noexcept nogil:
    cdef Py_ssize_t w, other
    cdef uint64_t room
    for w in range(s.word):
        room = s.free[bin * s.word + w]
        other = s.head[bin]
        while other >= 0:
            room += s.items[other * s.word + w]
            other = s.after[other]
        if ~(room - s.items[item * s.word + w]) & s.guard[w]:
            return False
    return True


cdef inline void reduce_free(Search* s, Py_ssize_t item, Py_ssize_t bin) noexcept nogil:
    cdef Py_ssize_t w
    for w in range(s.word):
        s.free[bin * s.word + w] -= s.items[item * s.word + w]


cdef inline void put(Search* s, Py_ssize_t item, Py_ssize_t bin) noexcept nogil:
    reduce_free(s, item, bin)
    s.chosen[item] = bin
    s.load[bin] += s.size[item]
    s.before[item] = -1
    s.after[item] = s.head[bin]
    if s.head[bin] >= 0:
        s.before[s.head[bin]] = item
    s.head[bin] = item


cdef inline void take(Search* s, Py_ssize_t item) noexcept nogil:
    cdef Py_ssize_t w, bin = s.chosen[item]
    for w in range(s.word):
        s.free[bin * s.word + w] += s.items[item * s.word + w]
    s.chosen[item] = -1
    s.load[bin] -= s.size[item]
    if s.before[item] >= 0:
        s.after[s.before[item]] = s.after[item]
    else:
        s.head[bin] = s.after[item]
    if s.after[item] >= 0:
        s.before[s.after[item]] = s.before[item]


cdef inline void expel(Search* s, Py_ssize_t item) noexcept nogil:
    take(s, item)
    s.pool[s.pooled] = item
    s.pooled += 1


cdef inline Py_ssize_t below(Search* s, Py_ssize_t limit) noexcept nogil:
    """A random number of 0..limit-1. Source: Vigna, xorshift64*, ACM TOMS 42(4), 2016; upper bits scaled."""
    cdef uint64_t x = s.random
    x ^= x >> 12
    x ^= x << 25
    x ^= x >> 27
    s.random = x
    return <Py_ssize_t>((((x * <uint64_t>0x2545F4914F6CDD1D) >> 32) * <uint64_t>limit) >> 32)


cdef int _begin(Search* search, const uint64_t[:, ::1] items, const uint64_t[::1] guard,
                uint64_t[:, ::1] free, const uint8_t[:, ::1] eligible, int32_t[::1] chosen) except -1:
    cdef Py_ssize_t i
    search.n, search.m, search.word = items.shape[0], free.shape[0], guard.shape[0]
    if items.shape[1] != search.word or free.shape[1] != search.word:
        raise ValueError(f"items and free must be {search.word} words wide, as guard is")
    if chosen.shape[0] != search.n:
        raise ValueError(f"chosen has {chosen.shape[0]} entries, there are {search.n} items")
    if search.n and search.m == 0:
        raise ValueError("there is no bin")
    if search.n > 2**31 - 1 or search.m > 2**31 - 1:
        raise ValueError("items and bins are counted in 31 bits")
    for i in range(search.n):
        if not -1 <= chosen[i] < search.m:
            raise ValueError(f"chosen[{i}] is {chosen[i]}, there are {search.m} bins")
    search.items = &items[0, 0] if items.size else NULL
    search.guard = &guard[0] if search.word else NULL
    search.free = &free[0, 0] if free.size else NULL
    search.chosen = &chosen[0] if search.n else NULL
    search.eligible = NULL
    if eligible.size:
        if eligible.shape[0] != search.n or eligible.shape[1] != search.m:
            raise ValueError("eligible must have a row an item and a column a bin")
        search.eligible = &eligible[0, 0]
    return 0
