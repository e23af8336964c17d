# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True
"""What shares of a device are worth, without the GIL; equals `scheduler.gpu_prices`.

**Pure**: changes none of its arguments.
"""

from libc.stdint cimport int32_t, int64_t
from libc.string cimport memcpy, memset

cdef extern from *:
    """
    static inline int above(int64_t a, int64_t b, int64_t c, int64_t d)
    {
        return (__int128)a * b > (__int128)c * d;
    }
    """
    bint above(int64_t a, int64_t b, int64_t c, int64_t d) noexcept nogil  # a * b > c * d

cdef enum:
    WHOLE = 1000           # thousandths of a device
    UNIT_BITS = 16
    SHARES_MAX = 64        # different ones
    COUNT_MAX = 1 << 30    # of a share: no sum leaves 64 bits
    ROUNDS = 300
    STEP = 10
    TOP = 1 << 24          # the dearest share while prices are sought


def find_prices(object sizes, object counts, int rounds=ROUNDS):
    """The worth of 0 to 1000 thousandths, times 65536. `sizes`: different. Raises ValueError."""
    cdef int32_t[SHARES_MAX] size
    cdef int64_t[SHARES_MAX] count
    cdef int64_t[WHOLE + 1] best
    cdef int32_t unit = 0
    cdef Py_ssize_t i, n = len(sizes)
    if n > SHARES_MAX or len(counts) != n:
        raise ValueError(f"{n} sizes and {len(counts)} counts: at most {SHARES_MAX}, and as many of each")
    for i in range(n):
        size[i], count[i] = sizes[i], counts[i]
        if not 1 <= size[i] <= WHOLE or not 1 <= count[i] <= COUNT_MAX:
            raise ValueError(f"sizes[{i}] is {size[i]}, counts[{i}] is {count[i]}: 1 to {WHOLE}, {COUNT_MAX}")
    if not n:
        return [0] * WHOLE + [WHOLE << UNIT_BITS]
    for i in range(n):
        unit = common(unit, size[i])
    with nogil:
        seek(size, count, n, unit, rounds, best)
    return [best[i // unit] * (<int64_t>WHOLE << UNIT_BITS) // best[WHOLE // unit] for i in range(WHOLE + 1)]


cdef int32_t common(int32_t a, int32_t b) noexcept nogil:
    """The greatest common divisor; b is above 0."""
    while a:
        a, b = b % a, a
    return b


cdef void seek(int32_t* size, const int64_t* count, Py_ssize_t n, int32_t unit, int rounds,
               int64_t* best) noexcept nogil:
    """`best` int64[WHOLE // unit + 1]. All sizes are multiples of `unit`, so only multiples are looked at."""
    cdef int64_t[SHARES_MAX] price
    cdef int64_t[WHOLE + 1] values
    cdef int64_t total, best_total = -1
    cdef Py_ssize_t i, round_, top = WHOLE // unit
    for i in range(n):
        price[i] = <int64_t>TOP * size[i] // WHOLE
        size[i] //= unit
    memset(best, 0, (top + 1) * sizeof(int64_t))
    best[top] = 1
    for round_ in range(rounds):
        value_all(size, price, n, top, values)
        total = 0
        for i in range(n):
            total += price[i] * count[i]
        if above(total, best[top], best_total, values[top]):
            best_total = total
            memcpy(best, values, (top + 1) * sizeof(int64_t))
        lower(size, count, n, top, values, price)


cdef void value_all(const int32_t* size, const int64_t* price, Py_ssize_t n, Py_ssize_t top,
                    int64_t* values) noexcept nogil:
    """The most that shares within 0 to `top` are worth."""
    cdef Py_ssize_t i, room
    cdef int64_t most
    values[0] = 0
    for room in range(1, top + 1):
        most = values[room - 1]
        for i in range(n):
            if size[i] <= room and values[room - size[i]] + price[i] > most:
                most = values[room - size[i]] + price[i]
        values[room] = most


cdef void lower(const int32_t* size, const int64_t* count, Py_ssize_t n, Py_ssize_t top, const int64_t* values,
                int64_t* price) noexcept nogil:
    """Prices fall by how much of what is asked for the dearest device holds; the dearest is TOP again."""
    cdef int64_t[SHARES_MAX] held
    cdef int64_t most = 0, dearest = 0
    cdef Py_ssize_t i, room = top
    memset(held, 0, sizeof(held))
    while room:
        for i in range(n):
            if size[i] <= room and values[room] == values[room - size[i]] + price[i]:
                held[i] += 1
                room -= size[i]
                break
        else:
            room -= 1
    for i in range(n):
        held[i] = <int64_t>TOP * held[i] // count[i]
        most = max(most, held[i])
    most = most if most else 1
    for i in range(n):
        price[i] -= price[i] * held[i] // (STEP * most)
        dearest = max(dearest, price[i])
    for i in range(n):
        price[i] = price[i] * TOP // dearest
