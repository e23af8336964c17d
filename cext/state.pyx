# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True
"""The state of a fleet: its nodes, shapes and journal, for `cext.index`, which answers questions to it.

**Edge** in the sense that a FleetState is changed in place. Shapes and units: state.pxd.
"""

from operator import index as as_int

import numpy as np

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdlib cimport malloc

_NORMS = {"linf": NORM_LINF, "l1": NORM_L1, "l2": NORM_L2, "worst": NORM_WORST, "dot": NORM_DOT,
          "potential": NORM_POTENTIAL, "slots": NORM_SLOTS}
NORMS = tuple(_NORMS)
LANES_DEFAULT = 4096  # shapes with a list of their own: 2 MB
LANES_MAX = 1 << 16  # bounds memory
TABLE_MAX = 1 << 30  # bytes of the table of who may go where
LEVEL_LAST = LEVELS - 1  # of what lasts longest, or nobody knows how long
TIME_MAX = 1 << 40  # seconds: 35,000 years
COUNT_MAX = 1 << 32  # at once; sums of 2**30 such stay within 64 bits


cdef Fleet* _new_fleet(object multipliers, object shifts, object scored, object norm, object lanes_max,
                       object largest, FleetState crowd_of) except NULL:
    cdef uint64_t[56] multiplier
    cdef int64_t[56] most
    cdef uint8_t[56] shift, flag
    cdef Py_ssize_t r, rows = len(multipliers)
    cdef Fleet* fleet
    if norm not in _NORMS:
        raise ValueError(f"norm {norm!r} is unknown, there is: {', '.join(NORMS)}")
    if not 1 <= rows <= RESOURCES_MAX:
        raise ValueError(f"{rows} resources, must be 1 to {RESOURCES_MAX}")
    if len(shifts) != rows or (scored is not None and len(scored) != rows):
        raise ValueError("multipliers, shifts and scored must have one entry a resource")
    if not 1 <= lanes_max <= LANES_MAX:
        raise ValueError(f"lanes_max is {lanes_max}, must be 1 to {LANES_MAX}")
    for r in range(rows):
        if not 1 <= multipliers[r] < 2**63:
            raise ValueError(f"multipliers[{r}] is {multipliers[r]}, must be 1 to 2**63 - 1")
        if not 0 <= shifts[r] < 64:
            raise ValueError(f"shifts[{r}] is {shifts[r]}, must be 0 to 63")
        multiplier[r] = multipliers[r]
        shift[r] = shifts[r]
        flag[r] = scored is None or bool(scored[r])
    if largest is not None:
        if len(largest) != rows:
            raise ValueError(f"largest has {len(largest)} entries, there are {rows} resources")
        for r in range(rows):
            if not 0 <= largest[r] < 2**63:
                raise ValueError(f"largest[{r}] is {largest[r]}, must be 0 to 2**63 - 1")
            most[r] = largest[r]
    fleet = fleet_new(<int32_t>rows, multiplier, shift, flag, <Norm><int>_NORMS[norm], lanes_max,
                      NULL if largest is None else most, NULL if crowd_of is None else crowd_of.fleet.crowd)
    if fleet == NULL:
        raise MemoryError
    return fleet


cdef int _set_potential(Fleet* fleet, object resources, object steps, object values) except -1:
    cdef int32_t[::1] flat
    cdef Py_ssize_t i, count = len(resources)
    table = np.ascontiguousarray(values, dtype=np.int32)
    if not 1 <= count <= PLACES_MAX or len(steps) != count or table.ndim != count or table.size == 0:
        raise ValueError(f"potential: one step and one axis for each of 1 to {PLACES_MAX} resources")
    if abs(table.astype(np.int64)).max() >= POTENTIAL_MAX:
        raise ValueError(f"potential: values must be within {POTENTIAL_MAX}")
    for i in range(count):
        if not 0 <= resources[i] < fleet.rows or not 1 <= steps[i] < 2**63:
            raise ValueError(f"potential: resource {resources[i]} with step {steps[i]} is out of range")
    fleet.potential = <int32_t*>malloc(table.size * sizeof(int32_t))
    if fleet.potential == NULL:
        raise MemoryError
    flat = table.reshape(-1)
    for i in range(flat.shape[0]):
        fleet.potential[i] = flat[i]
    fleet.potential_rows = <int32_t>count
    for i in range(count):
        fleet.potential_row[i] = fleet.place[<Py_ssize_t>resources[i]]
        fleet.potential_step[i] = steps[i]
        fleet.potential_size[i] = table.shape[i]
    return 0


cdef int check_slot(int64_t slot) except -1:
    if not 0 <= slot < SLOTS_MAX:
        raise ValueError(f"slot {slot}, must be 0 to {SLOTS_MAX - 1}")
    return 0


cdef int64_t _time(object at_s) except -1:
    """FOREVER for None."""
    if at_s is None:
        return FOREVER
    if not 0 <= at_s <= TIME_MAX:
        raise ValueError(f"time {at_s} s, must be 0 to {TIME_MAX}")
    return at_s


cdef int check_attr(int64_t attr) except -1:
    if not -1 <= attr < ATTRS_MAX:
        raise ValueError(f"attr {attr}, must be -1 to {ATTRS_MAX - 1}")
    return 0


cdef int check_shapes(const int32_t[::1] shapes, uint32_t count) except -1:
    cdef Py_ssize_t i
    for i in range(shapes.shape[0]):
        if not 0 <= shapes[i] < <int64_t>count:
            raise ValueError(f"shapes[{i}] is {shapes[i]}, there are {count}")
    return 0


cdef int check_outcome(int64_t outcome, int64_t slot) except -1:
    if outcome >= -1:
        return 0
    if outcome == NO_MEMORY:
        raise MemoryError
    if outcome == NOT_A_NODE:
        raise ValueError(f"slot {slot} has no node")
    raise ValueError(f"slot {slot}: what is free would leave 64 bits")


cdef class FleetState:
    """Nodes in slots, shapes, and who may go where.

    The unit form of an amount x of resource r is min(max(x, 0) * multipliers[r] >> shifts[r], 2**28); terms of a
    score are the unit form of what is free less that of the demand, for the resources that are `scored`.
    potential=(resources, steps, values): the score is the rise of values[x0 // steps[0], x1 // steps[1], ..] of
    what is free, an axis for each of up to three resources; beyond its end the last value holds.
    Norm `slots` wants `largest`, the most that a node has of each resource; or `crowd_of`, an index of that norm
    with the same resources before any others, whose nodes and instances say what is typical here, too. With
    `lifetimes` a shape is kept off nodes that would be empty before it, as long as the nodes are not nearly full.
    ValueError: an argument is wrong, RuntimeError: another call is under way or a mark is open; nothing changed.
    """

    def __cinit__(self, object multipliers, object shifts, object scored=None, object norm="linf",
                  object potential=None, object lanes_max=LANES_DEFAULT, object largest=None,
                  FleetState crowd_of=None, bint lifetimes=False):
        if (norm == "potential") != (potential is not None):
            raise ValueError("norm 'potential' and only that wants potential=(resources, steps, values)")
        if (norm == "slots") != ((largest is None) != (crowd_of is None)):
            raise ValueError("norm 'slots' and only that wants largest or crowd_of")
        if crowd_of is not None and not (crowd_of.fleet.counts and crowd_of.fleet.rows <= len(multipliers)):
            raise ValueError("crowd_of must have the first of the resources, and a crowd of its own")
        if lifetimes and largest is None:
            raise ValueError("lifetimes want norm 'slots' with largest")
        self.fleet = _new_fleet(multipliers, shifts, scored, norm, lanes_max, largest, crowd_of)
        if lifetimes:
            self.fleet.crowd.lifetimes = True
        self.crowd_of = crowd_of
        if potential is not None:
            resources, steps, values = potential
            _set_potential(self.fleet, resources, steps, values)
        self.kind_ids = {}
        self.shape_ids = {}
        self.marks = []

    def __dealloc__(self):
        fleet_free(self.fleet)

    # ---- checks

    cdef int check_free(self) except -1:
        if self.busy:
            raise RuntimeError("the index is in use by another thread")
        return 0

    cdef int check_shape(self, int64_t shape) except -1:
        if self.busy:
            raise RuntimeError("the index is in use by another thread")
        if not 0 <= shape < self.fleet.shape_count:
            raise ValueError(f"shape {shape} is unknown, there are {self.fleet.shape_count}")
        return 0

    cdef int read_amounts(self, object amounts, int64_t* row, bint demand) except -1:
        """Into internal order."""
        cdef Py_ssize_t r
        cdef int64_t amount
        if len(amounts) != self.fleet.rows:
            raise ValueError(f"{len(amounts)} amounts, there are {self.fleet.rows} resources")
        for r in range(self.fleet.width):
            row[r] = 0
        for r in range(self.fleet.rows):
            try:
                amount = as_int(amounts[r])
            except OverflowError:
                raise ValueError(f"amount {r} is {amounts[r]}, must have 64 bits") from None
            if demand and amount < 0:
                raise ValueError(f"amount {r} is {amount}, must not be negative")
            row[self.fleet.place[r]] = amount
        return 0

    cdef int check_no_marks(self) except -1:
        self.check_free()
        if self.fleet.marks:
            raise RuntimeError("a mark is open: roll back or keep it first")
        return 0

    # ---- nodes

    def set_node(self, int64_t slot, object free, int64_t attr, uint64_t rank, object size=None,
                 object until_s=None):
        """The whole state of a node, new or known.

        `size`: what it has when nothing runs on it (norm `slots`); `until_s`: when what runs there will have
        gone, None: unknown (with lifetimes).
        """
        cdef int64_t[64] row, whole
        self.check_no_marks()
        check_slot(slot)
        check_attr(attr)
        self.read_amounts(free, row, False)
        if self.fleet.crowd:
            self.read_amounts(size, whole, False)
        if self.fleet.counts and self.fleet.crowd.lifetimes:
            check_outcome(set_until(self.fleet, <uint32_t>slot, _time(until_s)), slot)
        check_outcome(set_node(self.fleet, <uint32_t>slot, row, <int32_t>attr, rank, whole), slot)

    def set_nodes(self, const int64_t[:, ::1] free not None, const int32_t[::1] attr not None,
                  const uint64_t[::1] rank not None, int64_t first=0):
        """Nodes first.. of int64[n, n_resource], on which nothing runs."""
        cdef int64_t[64] row
        cdef Py_ssize_t i, r, count = free.shape[0]
        self.check_no_marks()
        if free.shape[1] != self.fleet.rows or attr.shape[0] != count or rank.shape[0] != count:
            raise ValueError("free must be int64[n, n_resource], attr int32[n], rank uint64[n]")
        if not 0 <= first <= SLOTS_MAX - count:
            raise ValueError(f"slots {first} to {first + count}: there are at most {SLOTS_MAX}")
        for i in range(count):
            check_attr(attr[i])
        for r in range(self.fleet.width):
            row[r] = 0
        for i in range(count):
            for r in range(self.fleet.rows):
                row[self.fleet.place[r]] = free[i, r]
            check_outcome(set_node(self.fleet, <uint32_t>(first + i), row, attr[i], rank[i], row), first + i)

    def set_attr(self, int64_t slot, int64_t attr):
        """Change a node's attr alone."""
        self.check_free()
        check_slot(slot)
        check_attr(attr)
        check_outcome(set_attr(self.fleet, <uint32_t>slot, <int32_t>attr), slot)

    def remove_node(self, int64_t slot):
        """The node is gone; its slot may be used again."""
        self.check_no_marks()
        check_slot(slot)
        check_outcome(remove_node(self.fleet, <uint32_t>slot), slot)

    def __len__(self):
        return self.fleet.node_count

    def __contains__(self, int64_t slot):
        return 0 <= slot < SLOTS_MAX and is_node(self.fleet, <uint32_t>slot)

    # ---- shapes

    def add_shape(self, object demand, int64_t cset=0, int64_t level=LEVELS - 1):
        """The id of a shape; the same for the same demand, constraints and level of the time that it lasts."""
        cdef int64_t[64] row
        cdef int64_t shape
        self.check_free()
        if not 0 <= cset < CSETS_MAX:
            raise ValueError(f"cset {cset}, must be 0 to {CSETS_MAX - 1}")
        if not 1 <= level < LEVELS:
            raise ValueError(f"level {level}, must be 1 to {LEVELS - 1}")
        self.read_amounts(demand, row, True)
        key = (PyBytes_FromStringAndSize(<char*>row, self.fleet.width * sizeof(int64_t)), cset, level)
        known = self.shape_ids.get(key)
        if known is not None:
            return known
        if self.fleet.shape_count >= SHAPES_MAX:
            raise ValueError(f"there are {SHAPES_MAX} shapes already: make a new index")
        if not reserve_eligible(self.fleet, <uint32_t>cset + 1, 0):
            raise MemoryError
        shape = add_shape(self.fleet, row, <int32_t>cset, <uint32_t>self.kind_of(row) if self.fleet.counts else NONE,
                          <uint8_t>level)
        check_outcome(shape, -1)
        self.shape_ids[key] = shape
        return shape

    cdef int64_t kind_of(self, const int64_t* row) except -1:
        """The kind of a demand in internal order, made when there is none."""
        cdef int64_t kind
        key = PyBytes_FromStringAndSize(<char*>row, self.fleet.width * sizeof(int64_t))
        known = self.kind_ids.get(key)
        if known is not None:
            return known
        kind = add_kind(self.fleet.crowd, row)
        check_outcome(kind, -1)
        self.kind_ids[key] = kind
        return kind

    def add_kind(self, object demand):
        """The id of a demand for `count`; norm `slots` with a crowd of its own."""
        cdef int64_t[64] row
        self.check_free()
        if not self.fleet.counts:
            raise ValueError("this index counts nothing")
        self.read_amounts(demand, row, True)
        return self.kind_of(row)

    def set_time(self, int64_t at_s):
        """It is so late now; with lifetimes. Looks at every node."""
        self.check_no_marks()
        if not self.fleet.counts or not self.fleet.crowd.lifetimes:
            raise ValueError("time does not count here")
        check_outcome(set_time(self.fleet, _time(at_s)), -1)

    def count(self, int64_t kind, int64_t change):
        """So many instances of a kind more (or less) are there, which no place or release tells of."""
        self.check_no_marks()
        if not self.fleet.counts or not 0 <= kind < self.fleet.crowd.kind_count:
            raise ValueError(f"kind {kind} is unknown")
        if not -COUNT_MAX <= change <= COUNT_MAX:
            raise ValueError(f"change is {change}, must be within {COUNT_MAX}")
        count_kind(self.fleet.crowd, <uint32_t>kind, change)

    def set_eligible(self, int64_t cset, int64_t attr, bint eligible):
        """Whether the set of constraints lets a shape onto nodes of that attr; it does not until told."""
        self.check_no_marks()
        if not 0 <= cset < CSETS_MAX:
            raise ValueError(f"cset {cset}, must be 0 to {CSETS_MAX - 1}")
        if not 0 <= attr < ATTRS_MAX:
            raise ValueError(f"attr {attr}, must be 0 to {ATTRS_MAX - 1}")
        if max(<int64_t>self.fleet.csets_room, cset + 1) * max(<int64_t>self.fleet.attrs_room, attr + 1) > TABLE_MAX:
            raise ValueError(f"cset {cset}, attr {attr}: the table of pairs would exceed {TABLE_MAX} bytes")
        if not set_eligible(self.fleet, <uint32_t>cset, <uint32_t>attr, eligible):
            raise MemoryError

    cdef uint32_t class_at(self, int64_t slot) except? 4294967295:
        self.check_free()
        check_slot(slot)
        if not is_node(self.fleet, <uint32_t>slot):
            raise ValueError(f"slot {slot} has no node")
        return self.fleet.nodes[slot].cls

    def free_at(self, int64_t slot):
        """A node's free amounts."""
        cdef const int64_t* row = free_of(self.fleet, self.class_at(slot))
        return tuple([row[self.fleet.place[r]] for r in range(self.fleet.rows)])

    def until_at(self, int64_t slot):
        """When what runs on a node will have gone; None: unknown."""
        self.class_at(slot)
        if not self.fleet.until_s or self.fleet.until_s[slot] == FOREVER:
            return None
        return self.fleet.until_s[slot]

    def attr_at(self, int64_t slot):
        """A node's attr."""
        cdef int32_t attr = self.fleet.classes[self.class_at(slot)].attr
        return attr if attr < 0 else attr & ATTR_MASK

    def free(self):
        """int64[n_slot, n_resource]: a copy of what is free; 0 where there is no node."""
        cdef Py_ssize_t slot, r
        cdef const int64_t* row
        self.check_free()
        amounts = np.zeros((self.fleet.slots, self.fleet.rows), dtype=np.int64)
        cdef int64_t[:, ::1] out = amounts
        for slot in range(self.fleet.slots):
            if self.fleet.nodes[slot].cls != NONE:
                row = free_of(self.fleet, self.fleet.nodes[slot].cls)
                for r in range(self.fleet.rows):
                    out[slot, r] = row[self.fleet.place[r]]
        return amounts

    # ---- journal

    def mark(self):
        """From here on changes can be undone: place, release, take, give and set_attr."""
        self.check_free()
        self.marks.append(self.fleet.change_count)
        self.fleet.marks += 1
        return len(self.marks) - 1

    def rollback(self, int64_t mark):
        """Undo what came after the mark; it and later ones are closed."""
        self._check_mark(mark)
        cdef size_t count = self.marks[mark]
        cdef Outcome outcome
        self.busy = True
        with nogil:
            outcome = undo(self.fleet, count)
        self.busy = False
        check_outcome(outcome, -1)
        self._close(mark)

    def keep(self, int64_t mark):
        """What came after the mark stays; it and later ones are closed."""
        self._check_mark(mark)
        self._close(mark)

    def _check_mark(self, int64_t mark):
        self.check_free()
        if not 0 <= mark < len(self.marks):
            raise ValueError(f"mark {mark} is not open, there are {len(self.marks)}")

    def _close(self, int64_t mark):
        del self.marks[mark:]
        self.fleet.marks = <uint32_t>len(self.marks)
        if not self.marks:
            keep_changes(self.fleet)

    # ---- about itself

    @property
    def memory_bytes(self):
        return self.fleet.bytes

    @property
    def counters(self):
        """For tuning: living classes, classes made and lists built since the beginning."""
        return {"classes": self.fleet.classes_alive, "created": self.fleet.created, "refills": self.fleet.refills}

    @property
    def filters(self):
        """The instruction set in use; may be set to another of `filters_usable()`."""
        return self.fleet.filters.name.decode()

    @filters.setter
    def filters(self, str name):
        self.check_free()
        for i in range(filters_usable()):
            if FILTERS[i].name.decode() == name:
                self.fleet.filters = &FILTERS[i]
                return
        raise ValueError(f"filters {name!r}, this machine has: {', '.join(usable_filters())}")


def usable_filters():
    """The instruction sets that this machine can run, the widest last."""
    return tuple([FILTERS[i].name.decode() for i in range(filters_usable())])
