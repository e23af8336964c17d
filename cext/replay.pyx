# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True
"""Replay of a trace against a fleet of equal nodes, over classes of nodes with equal free amounts.

**Pure** but for the fleet that `Replay` holds and the arrays that `run` fills. A placement compares classes,
not nodes, so its cost does not grow with the fleet. Scores equal `scheduler.packing` bit for bit.
"""

from libc.stdint cimport INT64_MAX, int32_t, int64_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcmp, memcpy, memset

import numpy as np

cdef enum:
    R_MAX = 8  # resources of a trace; a row of free amounts is one cache line

SHAPES_MAX = 4096  # scores of a class for every shape are kept: 32 KiB a class
NODES_MAX = 1 << 27
AMOUNT_MAX = 1 << 40
LEAN_MAX = 1 << 22  # times AMOUNT_MAX it stays an int64
RULES = ("first", "linf", "l1", "l2", "worst", "slots")

cdef int FIRST = 0, LINF = 1, L1 = 2, L2 = 3, WORST = 4, SLOTS = 5


cdef struct Class:
    int64_t[R_MAX] free
    int64_t end  # bucket of the time until which its nodes are expected to be in use
    int32_t root  # smallest member, the root of their pairing heap; -1 = none
    int32_t live  # its place among the classes with members; -1 = none
    int32_t version  # of the weights that its scores were made with


cdef class Replay:
    """Nodes `[0, n_node)` of one capacity int64[r]; shapes are rows of demand int64[n_shape, r].

    rule: one of RULES. With `ties_by_node` equal scores go to the smallest node of all; otherwise to the
    class with the smallest (L1, free amounts), and its smallest node. Raises ValueError on a bad value.
    """

    cdef int n_resource, n_shape, n_column, n_typical, rule, ties_by_node
    cdef int64_t n_node
    cdef int64_t[R_MAX] capacity, allocated
    cdef int64_t* demand  # [n_shape, n_resource]
    cdef int64_t* typical  # [n_typical, n_resource]
    cdef int64_t* weight  # [n_typical]
    cdef int64_t lean, lean_idle, idle, empty_last, extension_weight, extension_limit
    cdef int32_t version
    cdef Class* classes
    cdef int64_t* scores  # [n_class_max, n_column]; INT64_MAX where it does not fit
    cdef int64_t n_class, n_class_max
    cdef int32_t* table  # open addressing, -1 = free
    cdef int64_t table_size
    cdef int32_t* live  # classes with members
    cdef int64_t n_live
    cdef int32_t* best  # per column: its best class, -1 = none fits, -2 = to be searched
    cdef int32_t* class_of  # per node
    cdef int32_t* child  # the pairing heaps, per node
    cdef int32_t* sibling
    cdef int32_t* before  # the left sibling, or the parent of a first child; -1 of a root
    cdef int64_t used

    def __cinit__(self, const int64_t[::1] capacity not None, const int64_t[:, ::1] demand not None,
                  int64_t n_node, str rule, bint ties_by_node=False):
        cdef Py_ssize_t r, s
        if not 1 <= capacity.shape[0] <= R_MAX or demand.shape[1] != capacity.shape[0]:
            raise ValueError(f"capacity must have 1 to {R_MAX} entries, and demand as many columns")
        if not 1 <= demand.shape[0] <= SHAPES_MAX:
            raise ValueError(f"demand has {demand.shape[0]} rows, must have 1 to {SHAPES_MAX}")
        if not 1 <= n_node <= NODES_MAX:
            raise ValueError(f"n_node is {n_node}, must be 1 to {NODES_MAX}")
        if rule not in RULES:
            raise ValueError(f"rule {rule!r} is unknown, there is: {', '.join(RULES)}")
        for r in range(capacity.shape[0]):
            if not 1 <= capacity[r] <= AMOUNT_MAX:
                raise ValueError(f"capacity[{r}] is {capacity[r]}, must be 1 to {AMOUNT_MAX}")
        self.n_resource, self.n_shape, self.n_node = capacity.shape[0], demand.shape[0], n_node
        self.n_column = self.n_shape * (2 if rule == "slots" else 1)
        self.rule, self.ties_by_node = RULES.index(rule), ties_by_node or rule == "first"
        _check_demand(demand)
        self._allocate()
        for r in range(self.n_resource):
            self.capacity[r] = capacity[r]
            for s in range(self.n_shape):
                self.demand[s * self.n_resource + r] = demand[s, r]
        self._fill()

    cdef int _allocate(self) except -1:
        cdef int64_t n = self.n_node
        self.n_class_max, self.table_size = 1024, 4096
        self.demand = <int64_t*>malloc(self.n_shape * self.n_resource * sizeof(int64_t))
        self.best = <int32_t*>malloc(self.n_column * sizeof(int32_t))
        self.classes = <Class*>malloc(self.n_class_max * sizeof(Class))
        self.scores = <int64_t*>malloc(self.n_class_max * self.n_column * sizeof(int64_t))
        self.live = <int32_t*>malloc(self.n_class_max * sizeof(int32_t))
        self.table = <int32_t*>malloc(self.table_size * sizeof(int32_t))
        self.class_of = <int32_t*>malloc(n * sizeof(int32_t))
        self.child = <int32_t*>malloc(n * sizeof(int32_t))
        self.sibling = <int32_t*>malloc(n * sizeof(int32_t))
        self.before = <int32_t*>malloc(n * sizeof(int32_t))
        if not (self.demand and self.best and self.classes and self.scores and self.live and self.table
                and self.class_of and self.child and self.sibling and self.before):
            raise MemoryError()
        memset(self.table, 0xFF, self.table_size * sizeof(int32_t))
        return 0

    cdef int _fill(self) except -1:
        """Every node starts empty, in one class."""
        cdef int64_t[R_MAX] amounts
        cdef int32_t node, empty
        memcpy(amounts, self.capacity, sizeof(amounts))
        for node in range(self.n_column):
            self.best[node] = -2
        empty = self._class(amounts, 0)
        if empty < 0:
            raise MemoryError()
        for node in range(<int32_t>self.n_node - 1, -1, -1):
            self._join(node, empty)
        return 0

    def __dealloc__(self):
        for pointer in (<uint64_t>self.demand, <uint64_t>self.typical, <uint64_t>self.weight,
                        <uint64_t>self.classes, <uint64_t>self.scores, <uint64_t>self.table,
                        <uint64_t>self.live, <uint64_t>self.best, <uint64_t>self.class_of,
                        <uint64_t>self.child, <uint64_t>self.sibling, <uint64_t>self.before):
            free(<void*><uint64_t>pointer)

    @property
    def nodes_in_use(self):
        return self.used

    @property
    def class_count(self):
        """Classes with members."""
        return self.n_live

    def allocated_amounts(self):
        """What is placed now, in all: int64[r]."""
        return np.array([self.allocated[r] for r in range(self.n_resource)], dtype=np.int64)

    def free_amounts(self):
        """Per node: int64[n_node, r]."""
        cdef int64_t[:, ::1] amounts = np.empty((self.n_node, self.n_resource), dtype=np.int64)
        cdef int64_t node
        cdef int r
        for node in range(self.n_node):
            for r in range(self.n_resource):
                amounts[node, r] = self.classes[self.class_of[node]].free[r]
        return np.asarray(amounts)

    def set_slots(self, const int64_t[:, ::1] typical not None, const int64_t[::1] weight not None,
                  int64_t lean, int64_t empty_last, int64_t lean_idle=0, int64_t idle=0):
        """The potential of rule `slots` from now on: `scheduler.packing.PackingTable`'s fields.

        `lean_idle` replaces `lean` while less than `idle`/1024 of the nodes in use is allocated.
        """
        cdef Py_ssize_t f, r
        if typical.shape[1] != self.n_resource or typical.shape[0] != weight.shape[0]:
            raise ValueError("typical must have a column a resource and a row a weight")
        _check_demand(typical)
        _check_weights(typical, weight, self.capacity, lean, empty_last)
        if not 0 <= lean_idle <= LEAN_MAX or not 0 <= idle <= 1024:
            raise ValueError(f"lean_idle is {lean_idle}, must be 0 to {LEAN_MAX}; idle is {idle}, to 1024")
        free(self.typical)
        free(self.weight)
        self.typical = <int64_t*>malloc((typical.shape[0] * self.n_resource + 1) * sizeof(int64_t))
        self.weight = <int64_t*>malloc((typical.shape[0] + 1) * sizeof(int64_t))
        if not self.typical or not self.weight:
            self.n_typical = 0
            raise MemoryError()
        self.n_typical, self.lean, self.empty_last = typical.shape[0], lean, empty_last
        for f in range(self.n_typical):
            self.weight[f] = weight[f]
            for r in range(self.n_resource):
                self.typical[f * self.n_resource + r] = typical[f, r]
        self.lean_idle, self.idle = lean_idle, idle
        self.version += 1
        for f in range(self.n_live):
            self._score_class(self.live[f])
        for f in range(self.n_column):
            self.best[f] = -2

    def set_extension(self, int64_t weight, int64_t limit):
        """Add `weight` to a score for each bucket of time by which the request would outlive its node.

        Not while more than `limit` of the first resource is allocated: near full, packing is what counts.
        """
        if not 0 <= weight <= AMOUNT_MAX:
            raise ValueError(f"weight is {weight}, must be 0 to {AMOUNT_MAX}")
        self.extension_weight, self.extension_limit = weight, limit

    def run(self, const int32_t[::1] events not None, const int32_t[::1] shape_of not None,
            int32_t[:, ::1] node_of not None, int32_t[::1] in_use not None, bint stop_at_failure=False,
            const int64_t[::1] start=None, const int64_t[::1] end=None):
        """Apply events: i >= 0 places the copies of instance i, ~i releases them. Returns how many were applied.

        node_of int32[n_instance, copies] must be -1 at first and is kept from call to call; in_use[e] is the
        number of nodes in use after event e. A copy that fits nowhere stays -1; with `stop_at_failure` the
        run ends before that event counts (copies placed until then stay). start and end are
        buckets of time per instance (for `set_extension`). Raises ValueError with nothing changed.
        """
        cdef int64_t done
        cdef const int64_t* starts = NULL
        cdef const int64_t* ends = NULL
        _check_events(events, shape_of, node_of, in_use, self.n_shape, self.n_node)
        if start is not None and end is not None:
            if start.shape[0] != shape_of.shape[0] or end.shape[0] != shape_of.shape[0]:
                raise ValueError("start and end must have an entry an instance")
            if start.shape[0]:
                starts, ends = &start[0], &end[0]
        if events.shape[0] == 0 or node_of.shape[1] == 0:
            return events.shape[0]
        with nogil:
            done = self._run(&events[0], events.shape[0], &shape_of[0], &node_of[0, 0], node_of.shape[1],
                             &in_use[0], stop_at_failure, starts, ends)
        if done < 0:
            raise MemoryError()
        return done

    cdef int64_t _run(self, const int32_t* events, int64_t n_event, const int32_t* shape_of, int32_t* node_of,
                      int64_t copies, int32_t* in_use, bint stop, const int64_t* start,
                      const int64_t* end) noexcept nogil:
        cdef int64_t e, i, copy
        cdef int32_t* where
        cdef int32_t node
        for e in range(n_event):
            i = events[e] if events[e] >= 0 else ~events[e]
            where = node_of + i * copies
            for copy in range(copies):
                if events[e] < 0:
                    if where[copy] >= 0:
                        if self._move(where[copy], shape_of[i], -1, 0) < 0:
                            return -1
                        where[copy] = -1
                    continue
                node = self._choose(shape_of[i], start[i] if start else 0, end[i] if end else 0)
                if node < 0:
                    if stop:
                        return e
                    continue
                if self._move(node, shape_of[i], 1, end[i] if end else 0) < 0:
                    return -1
                where[copy] = node
            in_use[e] = <int32_t>self.used
        return n_event

    cdef int32_t _choose(self, int32_t shape, int64_t now, int64_t end) noexcept nogil:
        """The node for a shape, -1 if none fits."""
        cdef int32_t best
        if self.rule == SLOTS and self._is_idle():
            shape += self.n_shape
        if self.extension_weight and self.allocated[0] <= self.extension_limit:
            best = self._search_extending(shape, now, end)
        elif self.ties_by_node or self.best[shape] == -2:
            best = self._search(shape)
            self.best[shape] = best
        else:
            best = self.best[shape]
        return -1 if best < 0 else self.classes[best].root

    cdef bint _is_idle(self) noexcept nogil:
        cdef int r
        for r in range(self.n_resource):
            if self.allocated[r] >= self.used * (self.capacity[r] * self.idle // 1024):
                return False
        return True

    cdef int32_t _search(self, int32_t shape) noexcept nogil:
        cdef int64_t k, score, least = INT64_MAX
        cdef int32_t best = -1, c
        for k in range(self.n_live):
            c = self.live[k]
            score = self.scores[<int64_t>c * self.n_column + shape]
            if score < least or (score == least and best >= 0 and self._before(c, best)):
                least, best = score, c
        return best

    cdef int32_t _search_extending(self, int32_t shape, int64_t now, int64_t end) noexcept nogil:
        cdef int64_t k, score, until, least = INT64_MAX
        cdef int32_t best = -1, c
        for k in range(self.n_live):
            c = self.live[k]
            score = self.scores[<int64_t>c * self.n_column + shape]
            if score == INT64_MAX:
                continue
            until = max(self.classes[c].end, now)
            if end > until:
                score += (end - until) * self.extension_weight
            if score < least or (score == least and self._before(c, best)):
                least, best = score, c
        return best

    cdef bint _before(self, int32_t a, int32_t b) noexcept nogil:
        """Which of two classes with equal scores goes first."""
        cdef int64_t left, right
        cdef int r
        if self.ties_by_node:
            return self.classes[a].root < self.classes[b].root
        left, right = self._l1(self.classes[a].free), self._l1(self.classes[b].free)
        if left != right:
            return left < right
        for r in range(self.n_resource):
            if self.classes[a].free[r] != self.classes[b].free[r]:
                return self.classes[a].free[r] < self.classes[b].free[r]
        return self.classes[a].end < self.classes[b].end

    cdef int _move(self, int32_t node, int32_t shape, int sign, int64_t end) noexcept nogil:
        """Take a shape's demand from a node (sign 1) or give it back (-1); -1 when memory runs out."""
        cdef int64_t[R_MAX] amounts
        cdef int32_t source = self.class_of[node], target
        cdef int r
        cdef int64_t until = max(self.classes[source].end, end)
        cdef bint was_empty = self._is_empty(self.classes[source].free), empty
        memset(amounts, 0, sizeof(amounts))
        for r in range(self.n_resource):
            amounts[r] = self.classes[source].free[r] - sign * self.demand[shape * self.n_resource + r]
            self.allocated[r] += sign * self.demand[shape * self.n_resource + r]
        empty = self._is_empty(amounts)
        target = self._class(amounts, 0 if empty else end if was_empty else until)
        if target < 0:
            return -1
        self.used += <int>was_empty - <int>empty
        self._leave(node, source)
        self._join(node, target)
        return 0

    cdef bint _is_empty(self, const int64_t* amounts) noexcept nogil:
        return memcmp(amounts, self.capacity, self.n_resource * sizeof(int64_t)) == 0

    # Classes

    cdef uint64_t _hash(self, const int64_t* amounts, int64_t end) noexcept nogil:
        cdef uint64_t h = <uint64_t>end
        cdef int r
        for r in range(self.n_resource):
            h = (h ^ <uint64_t>amounts[r]) * <uint64_t>0x9E3779B97F4A7C15
            h ^= h >> 29
        return h

    cdef int32_t _class(self, const int64_t* amounts, int64_t end) noexcept nogil:
        """The class of these amounts, made when there is none; -1 when memory runs out."""
        cdef int64_t slot = self._hash(amounts, end) & <uint64_t>(self.table_size - 1)
        cdef Class* known
        while self.table[slot] >= 0:
            known = &self.classes[self.table[slot]]
            if known.end == end and not memcmp(known.free, amounts, self.n_resource * sizeof(int64_t)):
                if known.version != self.version:
                    self._score_class(self.table[slot])
                return self.table[slot]
            slot = (slot + 1) & (self.table_size - 1)
        if self.n_class == self.n_class_max:
            if self._grow() < 0:
                return -1
            return self._class(amounts, end)
        self.table[slot] = <int32_t>self.n_class
        known = &self.classes[self.n_class]
        memset(known, 0, sizeof(Class))
        memcpy(known.free, amounts, self.n_resource * sizeof(int64_t))
        known.end, known.root, known.live = end, -1, -1
        self._score_class(<int32_t>self.n_class)
        self.n_class += 1
        return <int32_t>(self.n_class - 1)

    cdef int _grow(self) noexcept nogil:
        cdef int64_t size = self.n_class_max * 2, c, slot
        cdef int32_t* table = <int32_t*>malloc(4 * size * sizeof(int32_t))
        cdef void* classes = realloc(self.classes, size * sizeof(Class))
        cdef void* scores = realloc(self.scores, size * self.n_column * sizeof(int64_t))
        cdef void* live = realloc(self.live, size * sizeof(int32_t))
        if classes:
            self.classes = <Class*>classes
        if scores:
            self.scores = <int64_t*>scores
        if live:
            self.live = <int32_t*>live
        if not (table and classes and scores and live):
            free(table)
            return -1
        free(self.table)
        self.table, self.table_size, self.n_class_max = table, 4 * size, size
        memset(table, 0xFF, 4 * size * sizeof(int32_t))
        for c in range(self.n_class):
            slot = self._hash(self.classes[c].free, self.classes[c].end) & <uint64_t>(4 * size - 1)
            while table[slot] >= 0:
                slot = (slot + 1) & (4 * size - 1)
            table[slot] = <int32_t>c
        return 0

    # Scores

    cdef void _score_class(self, int32_t c) noexcept nogil:
        cdef int64_t[R_MAX] after
        cdef const int64_t* amounts = self.classes[c].free
        cdef int64_t* scores = self.scores + <int64_t>c * self.n_column
        cdef int64_t potential = self._potential(amounts) if self.rule == SLOTS else 0
        cdef int s, r
        cdef bint fits, empty = self._is_empty(amounts)
        for s in range(self.n_shape):
            fits = True
            for r in range(self.n_resource):
                after[r] = amounts[r] - self.demand[s * self.n_resource + r]
                fits = fits and after[r] >= 0
            scores[s] = self._score(potential, after, empty) if fits else INT64_MAX
            if self.rule == SLOTS:
                scores[s + self.n_shape] = INT64_MAX if not fits else (
                    scores[s] + self._linf(after, self.lean_idle) - self._linf(after, self.lean))
        self.classes[c].version = self.version

    cdef int64_t _score(self, int64_t potential, const int64_t* after, bint empty) noexcept nogil:
        if self.rule == SLOTS:
            return (potential - self._potential(after) + self._linf(after, self.lean)
                    + (self.empty_last if empty else 0))
        if self.rule == LINF:
            return self._linf(after, 1 << 20)
        if self.rule == L1:
            return self._l1(after)
        if self.rule == L2:
            return self._l2(after)
        if self.rule == WORST:
            return (<int64_t>1 << 40 if empty else 0) - self._l1(after)
        return 0

    cdef int64_t _potential(self, const int64_t* amounts) noexcept nogil:
        """How many of each typical shape fit, weighted."""
        cdef int64_t total = 0, count
        cdef const int64_t* want = self.typical
        cdef int f, r
        for f in range(self.n_typical):
            count = INT64_MAX
            for r in range(self.n_resource):
                if want[r] > 0:
                    count = min(count, amounts[r] // want[r])
            total += self.weight[f] * count
            want += self.n_resource
        return total

    cdef int64_t _linf(self, const int64_t* amounts, int64_t scale) noexcept nogil:
        cdef int64_t largest = 0
        cdef int r
        for r in range(self.n_resource):
            largest = max(largest, amounts[r] * scale // self.capacity[r])
        return largest

    cdef int64_t _l1(self, const int64_t* amounts) noexcept nogil:
        cdef int64_t total = 0
        cdef int r
        for r in range(self.n_resource):
            total += (amounts[r] << 20) // self.capacity[r]
        return total

    cdef int64_t _l2(self, const int64_t* amounts) noexcept nogil:
        cdef int64_t total = 0, share
        cdef int r
        for r in range(self.n_resource):
            share = (amounts[r] << 20) // self.capacity[r]
            total += share * share
        return total

    # Members of a class: a pairing heap, so that its smallest node is at hand and any node may leave.

    cdef int32_t _meld(self, int32_t a, int32_t b) noexcept nogil:
        if a < 0:
            return b
        if b < 0:
            return a
        if b < a:
            a, b = b, a
        self.sibling[b] = self.child[a]
        if self.child[a] >= 0:
            self.before[self.child[a]] = b
        self.before[b] = a
        self.child[a] = b
        return a

    cdef int32_t _pair_children(self, int32_t node) noexcept nogil:
        """One heap of a node's children: melded in pairs, then from the last pair to the first."""
        cdef int32_t first = self.child[node], pairs = -1, a, b, rest, root = -1
        self.child[node] = -1
        while first >= 0:
            a = first
            b = self.sibling[a]
            first = self.sibling[b] if b >= 0 else -1
            self.sibling[a] = self.before[a] = -1
            if b >= 0:
                self.sibling[b] = self.before[b] = -1
                a = self._meld(a, b)
            self.sibling[a] = pairs
            pairs = a
        while pairs >= 0:
            rest = self.sibling[pairs]
            self.sibling[pairs] = -1
            root = self._meld(root, pairs)
            pairs = rest
        return root

    cdef void _join(self, int32_t node, int32_t c) noexcept nogil:
        cdef Class* target = &self.classes[c]
        self.child[node] = self.sibling[node] = self.before[node] = -1
        self.class_of[node] = c
        if target.root < 0:
            target.live = <int32_t>self.n_live
            self.live[self.n_live] = c
            self.n_live += 1
            self._offer(c)
        target.root = self._meld(target.root, node)

    cdef void _offer(self, int32_t c) noexcept nogil:
        """A class got members: it may be the best of some shapes."""
        cdef int64_t* scores = self.scores + <int64_t>c * self.n_column
        cdef int64_t least
        cdef int s
        for s in range(self.n_column):
            if scores[s] == INT64_MAX or self.best[s] == -2 or self.ties_by_node:
                continue
            least = INT64_MAX if self.best[s] < 0 else self.scores[<int64_t>self.best[s] * self.n_column + s]
            if scores[s] < least or (scores[s] == least and self._before(c, self.best[s])):
                self.best[s] = c

    cdef void _leave(self, int32_t node, int32_t c) noexcept nogil:
        cdef Class* source = &self.classes[c]
        cdef int32_t rest = self._pair_children(node), left = self.before[node]
        cdef int s
        if left < 0:
            source.root = rest
        else:
            if self.child[left] == node:
                self.child[left] = self.sibling[node]
            else:
                self.sibling[left] = self.sibling[node]
            if self.sibling[node] >= 0:
                self.before[self.sibling[node]] = left
            source.root = self._meld(source.root, rest)
        if source.root < 0:
            self.n_live -= 1
            self.live[source.live] = self.live[self.n_live]
            self.classes[self.live[source.live]].live = source.live
            source.live = -1
            for s in range(self.n_column):
                if self.best[s] == c:
                    self.best[s] = -2


cdef int _check_demand(const int64_t[:, ::1] demand) except -1:
    cdef Py_ssize_t s, r
    cdef int64_t largest
    for s in range(demand.shape[0]):
        largest = 0
        for r in range(demand.shape[1]):
            if not 0 <= demand[s, r] <= AMOUNT_MAX:
                raise ValueError(f"demand[{s}, {r}] is {demand[s, r]}, must be 0 to {AMOUNT_MAX}")
            largest = max(largest, demand[s, r])
        if not largest:
            raise ValueError(f"demand[{s}] wants nothing")
    return 0


cdef int _check_events(const int32_t[::1] events, const int32_t[::1] shape_of, const int32_t[:, ::1] node_of,
                       const int32_t[::1] in_use, int64_t n_shape, int64_t n_node) except -1:
    cdef int64_t n = shape_of.shape[0], e, i
    if node_of.shape[0] != n or in_use.shape[0] != events.shape[0]:
        raise ValueError("node_of must have a row an instance, in_use an entry an event")
    for i in range(n):
        if not 0 <= shape_of[i] < n_shape:
            raise ValueError(f"shape_of[{i}] is {shape_of[i]}, there are {n_shape} shapes")
        for e in range(node_of.shape[1]):
            if not -1 <= node_of[i, e] < n_node:
                raise ValueError(f"node_of[{i}, {e}] is {node_of[i, e]}, there are {n_node} nodes")
    for e in range(events.shape[0]):
        i = events[e] if events[e] >= 0 else ~events[e]
        if i >= n:
            raise ValueError(f"events[{e}] names instance {i}, there are {n}")
    return 0


cdef int _check_weights(const int64_t[:, ::1] typical, const int64_t[::1] weight, const int64_t* capacity,
                        int64_t lean, int64_t empty_last) except -1:
    """No sum of potentials may wrap."""
    cdef Py_ssize_t f, r
    cdef int64_t count
    if not 0 <= lean <= LEAN_MAX or not 0 <= empty_last <= AMOUNT_MAX:
        raise ValueError(f"lean is {lean}, must be 0 to {LEAN_MAX}; empty_last is {empty_last}, to {AMOUNT_MAX}")
    if weight.shape[0] > SHAPES_MAX:
        raise ValueError(f"there are {weight.shape[0]} typical shapes, at most {SHAPES_MAX} are allowed")
    for f in range(weight.shape[0]):
        count = AMOUNT_MAX
        for r in range(typical.shape[1]):
            if typical[f, r] > 0:
                count = min(count, capacity[r] // typical[f, r])
        if not 0 <= weight[f] <= AMOUNT_MAX // max(count, 1):
            raise ValueError(f"weight[{f}] is {weight[f]}, must be 0 to {AMOUNT_MAX // max(count, 1)}")
    return 0
