# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False
# distutils: extra_compile_args = -O3
"""Best fit over a fleet without the GIL; equals `scheduler.kernel` bit for bit.

**Pure** but for `place_batch`, which changes `free` and `chosen` in place. Shapes and units: bestfit.pxd.
"""

from libc.math cimport INFINITY
from libc.stdint cimport int64_t, uint8_t, uint64_t

cdef enum:
    BLOCK = 512  # nodes: scores of 4 KiB and a row's part of 4 KiB stay in the first-level cache


cdef void scan(const int64_t* free, Py_ssize_t n_resource, Py_ssize_t n_node,
               const int64_t* demand, const uint8_t* eligible, const double* scale,
               Py_ssize_t first, Py_ssize_t stop, Best* best) noexcept nogil:
    cdef double[BLOCK] score
    cdef Py_ssize_t base, count, i, r
    cdef const int64_t* row
    cdef int64_t want
    cdef double factor, share
    base = first
    while base < stop:
        count = min(<Py_ssize_t>BLOCK, stop - base)
        for i in range(count):
            score[i] = 0.0 if eligible[base + i] else INFINITY
        for r in range(n_resource):
            want = demand[r]
            factor = scale[r]
            row = free + r * n_node + base
            if want:
                for i in range(count):
                    # Unsigned, since it may wrap where the node does not fit and the share is unused.
                    share = <double><int64_t>(<uint64_t>row[i] - <uint64_t>want) * factor
                    share = share if row[i] >= want else INFINITY
                    score[i] = share if share > score[i] else score[i]
            elif factor > 0.0:
                for i in range(count):
                    share = <double>row[i] * factor
                    score[i] = share if share > score[i] else score[i]
        for i in range(count):
            if score[i] < best.score:
                best.score = score[i]
                best.node = base + i
        base += count


cdef Py_ssize_t search(const int64_t* free, Py_ssize_t n_resource, Py_ssize_t n_node,
                       const int64_t* demand, const uint8_t* eligible, const double* scale,
                       Py_ssize_t start) noexcept nogil:
    cdef Best best
    best.node = -1
    best.score = INFINITY
    scan(free, n_resource, n_node, demand, eligible, scale, start, n_node, &best)
    scan(free, n_resource, n_node, demand, eligible, scale, 0, start, &best)
    return best.node


def best_fit(const int64_t[:, ::1] free not None, const int64_t[::1] demand not None,
             const uint8_t[::1] eligible not None, const double[::1] scale not None,
             Py_ssize_t start):
    """The eligible node that fits and keeps the least, -1 if none. Raises ValueError on a bad shape."""
    cdef Py_ssize_t n_resource = free.shape[0], n_node = free.shape[1], node
    _check_fleet(n_resource, n_node, scale, start)
    if demand.shape[0] != n_resource or eligible.shape[0] != n_node:
        raise ValueError("demand and eligible must have the length of free's rows and columns")
    if n_resource == 0 or n_node == 0:
        return -1
    _check_demand(&demand[0], n_resource)
    with nogil:
        node = search(&free[0, 0], n_resource, n_node, &demand[0], &eligible[0], &scale[0], start)
    return node


def place_batch(int64_t[:, ::1] free not None, const int64_t[:, ::1] demands not None,
                const uint8_t[:, ::1] eligible not None, const int64_t[::1] eligible_row not None,
                const double[::1] scale not None, Py_ssize_t start, int64_t[::1] chosen not None):
    """Place requests one after the other, each seen by the next; reduces `free` in place.

    demands int64[n_request, n_resource]; request i may go where eligible[eligible_row[i]] is 1
    (uint8[n_class, n_node]); its node or -1 is written to chosen[i]. Raises ValueError on a bad shape, with
    nothing changed.
    """
    cdef Py_ssize_t n_resource = free.shape[0], n_node = free.shape[1], n_request = demands.shape[0]
    cdef Py_ssize_t i, r, node
    _check_fleet(n_resource, n_node, scale, start)
    if demands.shape[1] != n_resource or eligible.shape[1] != n_node:
        raise ValueError("demands and eligible must have the width of free's rows and columns")
    if eligible_row.shape[0] != n_request or chosen.shape[0] != n_request:
        raise ValueError("eligible_row and chosen must have one entry a request")
    for i in range(n_request):
        if not 0 <= eligible_row[i] < eligible.shape[0]:
            raise ValueError(f"eligible_row[{i}] is {eligible_row[i]}, there are {eligible.shape[0]} rows")
        _check_demand(&demands[i, 0] if n_resource else NULL, n_resource)
    if n_resource == 0 or n_node == 0:
        chosen[:] = -1
        return
    with nogil:
        for i in range(n_request):
            node = search(&free[0, 0], n_resource, n_node, &demands[i, 0], &eligible[eligible_row[i], 0],
                          &scale[0], start)
            chosen[i] = node
            if node >= 0:
                for r in range(n_resource):
                    # Cannot wrap: 0 <= demand <= free, or the demand is 0.
                    free[r, node] -= demands[i, r]


cdef int _check_fleet(Py_ssize_t n_resource, Py_ssize_t n_node, const double[::1] scale,
                      Py_ssize_t start) except -1:
    cdef Py_ssize_t r
    if scale.shape[0] != n_resource:
        raise ValueError(f"scale has {scale.shape[0]} entries, there are {n_resource} resources")
    if not 0 <= start < max(n_node, 1):
        raise ValueError(f"start is {start}, there are {n_node} nodes")
    for r in range(n_resource):
        if not 0.0 <= scale[r] < INFINITY:
            raise ValueError(f"scale[{r}] is {scale[r]}, must be finite and not negative")
    return 0


cdef int _check_demand(const int64_t* demand, Py_ssize_t n_resource) except -1:
    cdef Py_ssize_t r
    for r in range(n_resource):
        if demand[r] < 0:
            raise ValueError(f"demand[{r}] is {demand[r]}, must not be negative")
    return 0
