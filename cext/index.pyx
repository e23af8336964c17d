# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True
"""The best node for a shape without a rescan of the fleet; equals `scheduler.reference` on every state.

**Edge** in the sense that a FleetIndex is changed in place; its answers depend on its state alone, not on how it
came about. Shapes and units: index.pxd.
"""

from collections import namedtuple
from operator import index as as_int

import numpy as np

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdlib cimport free as free_block, malloc

_NORMS = {"linf": NORM_LINF, "l1": NORM_L1, "l2": NORM_L2, "worst": NORM_WORST, "dot": NORM_DOT,
          "potential": NORM_POTENTIAL}
NORMS = tuple(_NORMS)
LANES_DEFAULT = 4096  # shapes with a list of their own: 2 MB

LANES_MAX = 1 << 16  # bounds memory
TABLE_MAX = 1 << 30  # bytes of the table of who may go where
RANKED_AT_MOST = RANKED_MAX

Replay = namedtuple("Replay", ["placed", "failed", "released", "first_failure", "decision_hash", "used",
                               "used_peak", "elapsed_ns"])


cdef Fleet* _new_fleet(object multipliers, object shifts, object scored, object norm, object lanes_max) except NULL:
    cdef uint64_t[56] multiplier
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
    fleet = fleet_new(<int32_t>rows, multiplier, shift, flag, <Norm><int>_NORMS[norm], lanes_max)
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


cdef int _check_slot(int64_t slot) except -1:
    if not 0 <= slot < SLOTS_MAX:
        raise ValueError(f"slot {slot}, must be 0 to {SLOTS_MAX - 1}")
    return 0


cdef int _check_attr(int64_t attr) except -1:
    if not -1 <= attr < ATTRS_MAX:
        raise ValueError(f"attr {attr}, must be -1 to {ATTRS_MAX - 1}")
    return 0


cdef int _check_shapes(const int32_t[::1] shapes, uint32_t count) except -1:
    cdef Py_ssize_t i
    for i in range(shapes.shape[0]):
        if not 0 <= shapes[i] < <int64_t>count:
            raise ValueError(f"shapes[{i}] is {shapes[i]}, there are {count}")
    return 0


cdef object _checked_trace(FleetIndex index, const int32_t[::1] events, const int32_t[::1] shape_of,
                           const int32_t[::1] at):
    """The instances of each slot, int32[n_slot + 1]."""
    cdef Py_ssize_t i, instance, count = shape_of.shape[0]
    _check_shapes(shape_of, index.fleet.shape_count)
    if at.shape[0] != count:
        raise ValueError("shape_of and at must have one entry an instance")
    live_array, load_array = np.zeros(count + 1, dtype=np.uint8), np.zeros(index.fleet.slots + 1, dtype=np.int32)
    cdef uint8_t[::1] live = live_array
    cdef int32_t[::1] load = load_array
    for i in range(count):
        if at[i] != -1:
            if not (0 <= at[i] and is_node(index.fleet, <uint32_t>at[i])):
                raise ValueError(f"at[{i}] is {at[i]}, which has no node")
            live[i] = 1
            load[at[i]] += 1
    for i in range(events.shape[0]):
        instance = events[i] if events[i] >= 0 else ~events[i]
        if instance >= count:
            raise ValueError(f"events[{i}] is {events[i]}, there are {count} instances")
        if events[i] >= 0 and live[instance]:
            raise ValueError(f"events[{i}] places instance {instance}, which is placed")
        live[instance] = events[i] >= 0
    return load_array


cdef int _check(int64_t outcome, int64_t slot) except -1:
    if outcome >= -1:
        return 0
    if outcome == NO_MEMORY:
        raise MemoryError
    if outcome == NOT_A_NODE:
        raise ValueError(f"slot {slot} has no node")
    raise ValueError(f"slot {slot}: what is free would leave 64 bits")


cdef class _Slots:
    """Slots given as an int32 array or as any iterable of ints, as one block."""
    cdef int32_t* data
    cdef size_t count
    cdef object owner

    def __cinit__(self, object slots):
        cdef const int32_t[::1] view
        cdef size_t i
        if isinstance(slots, np.ndarray):
            view = slots
            self.owner = slots
            self.count = view.shape[0]
            self.data = <int32_t*>&view[0] if self.count else NULL
            return
        slots = tuple(slots)
        self.count = len(slots)
        self.data = <int32_t*>malloc((self.count + 1) * sizeof(int32_t))
        if self.data == NULL:
            raise MemoryError
        for i in range(self.count):
            self.data[i] = as_int(slots[i])

    def __dealloc__(self):
        if self.owner is None:
            free_block(self.data)


cdef class FleetIndex:
    """Nodes in slots, shapes, and who may go where; answers which node is best for a shape.

    The unit form of an amount x of resource r is min(max(x, 0) * multipliers[r] >> shifts[r], 2**28); terms of a
    score are the unit form of what is free less that of the demand, for the resources that are `scored`.
    potential=(resources, steps, values): the score is the rise of values[x0 // steps[0], x1 // steps[1], ..] of
    what is free, an axis for each of up to three resources; beyond its end the last value holds.
    ValueError: an argument is wrong, RuntimeError: another call is under way or a mark is open; nothing changed.
    """

    def __cinit__(self, object multipliers, object shifts, object scored=None, object norm="linf",
                  object potential=None, object lanes_max=LANES_DEFAULT):
        if (norm == "potential") != (potential is not None):
            raise ValueError("norm 'potential' and only that wants potential=(resources, steps, values)")
        self.fleet = _new_fleet(multipliers, shifts, scored, norm, lanes_max)
        if potential is not None:
            resources, steps, values = potential
            _set_potential(self.fleet, resources, steps, values)
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

    def _no_marks(self):
        self.check_free()
        if self.fleet.marks:
            raise RuntimeError("a mark is open: roll back or keep it first")

    # ---- nodes

    def set_node(self, int64_t slot, object free, int64_t attr, uint64_t rank):
        """The whole state of a node, new or known."""
        cdef int64_t[64] row
        self._no_marks()
        _check_slot(slot)
        _check_attr(attr)
        self.read_amounts(free, row, False)
        _check(set_node(self.fleet, <uint32_t>slot, row, <int32_t>attr, rank), slot)

    def set_nodes(self, const int64_t[:, ::1] free not None, const int32_t[::1] attr not None,
                  const uint64_t[::1] rank not None, int64_t first=0):
        """Nodes first.. of int64[n, n_resource]."""
        cdef int64_t[64] row
        cdef Py_ssize_t i, r, count = free.shape[0]
        self._no_marks()
        if free.shape[1] != self.fleet.rows or attr.shape[0] != count or rank.shape[0] != count:
            raise ValueError("free must be int64[n, n_resource], attr int32[n], rank uint64[n]")
        if not 0 <= first <= SLOTS_MAX - count:
            raise ValueError(f"slots {first} to {first + count}: there are at most {SLOTS_MAX}")
        for i in range(count):
            _check_attr(attr[i])
        for r in range(self.fleet.width):
            row[r] = 0
        for i in range(count):
            for r in range(self.fleet.rows):
                row[self.fleet.place[r]] = free[i, r]
            _check(set_node(self.fleet, <uint32_t>(first + i), row, attr[i], rank[i]), first + i)

    def set_attr(self, int64_t slot, int64_t attr):
        """Change a node's attr alone."""
        self.check_free()
        _check_slot(slot)
        _check_attr(attr)
        _check(set_attr(self.fleet, <uint32_t>slot, <int32_t>attr), slot)

    def remove_node(self, int64_t slot):
        """The node is gone; its slot may be used again."""
        self._no_marks()
        _check_slot(slot)
        _check(remove_node(self.fleet, <uint32_t>slot), slot)

    def __len__(self):
        return self.fleet.node_count

    def __contains__(self, int64_t slot):
        return 0 <= slot < SLOTS_MAX and is_node(self.fleet, <uint32_t>slot)

    # ---- shapes

    def add_shape(self, object demand, int64_t cset=0):
        """The id of a shape; the same for the same demand and constraints."""
        cdef int64_t[64] row
        cdef int64_t shape
        self.check_free()
        if not 0 <= cset < CSETS_MAX:
            raise ValueError(f"cset {cset}, must be 0 to {CSETS_MAX - 1}")
        self.read_amounts(demand, row, True)
        key = (PyBytes_FromStringAndSize(<char*>row, self.fleet.width * sizeof(int64_t)), cset)
        known = self.shape_ids.get(key)
        if known is not None:
            return known
        if self.fleet.shape_count >= SHAPES_MAX:
            raise ValueError(f"there are {SHAPES_MAX} shapes already: make a new index")
        if not reserve_eligible(self.fleet, <uint32_t>cset + 1, 0):
            raise MemoryError
        shape = add_shape(self.fleet, row, <int32_t>cset)
        _check(shape, -1)
        self.shape_ids[key] = shape
        return shape

    def set_eligible(self, int64_t cset, int64_t attr, bint eligible):
        """Whether the set of constraints lets a shape onto nodes of that attr; it does not until told."""
        self._no_marks()
        if not 0 <= cset < CSETS_MAX:
            raise ValueError(f"cset {cset}, must be 0 to {CSETS_MAX - 1}")
        if not 0 <= attr < ATTRS_MAX:
            raise ValueError(f"attr {attr}, must be 0 to {ATTRS_MAX - 1}")
        if max(<int64_t>self.fleet.csets_room, cset + 1) * max(<int64_t>self.fleet.attrs_room, attr + 1) > TABLE_MAX:
            raise ValueError(f"cset {cset}, attr {attr}: the table of pairs would exceed {TABLE_MAX} bytes")
        if not set_eligible(self.fleet, <uint32_t>cset, <uint32_t>attr, eligible):
            raise MemoryError

    # ---- decisions

    def best(self, int64_t shape):
        """The best node's slot, -1 if the shape fits nowhere."""
        self.check_shape(shape)
        cdef int64_t slot = best_node(self.fleet, <uint32_t>shape)
        if slot < -1:
            _check(slot, -1)
        return slot

    def place(self, int64_t shape):
        """The best node's slot, which loses the demand; -1 if the shape fits nowhere."""
        self.check_shape(shape)
        cdef int64_t slot = place_one(self.fleet, <uint32_t>shape)
        if slot < -1:
            _check(slot, -1)
        return slot

    def place_batch(self, const int32_t[::1] shapes not None):
        """int32[n]: the slots of shapes placed one after the other, each seen by the next; -1 = fits nowhere."""
        cdef Py_ssize_t i, count = shapes.shape[0]
        cdef int64_t slot = 0
        self.check_free()
        _check_shapes(shapes, self.fleet.shape_count)
        slots = np.empty(count, dtype=np.int32)
        cdef int32_t[::1] chosen = slots
        self.busy = True
        with nogil:
            for i in range(count):
                slot = place_one(self.fleet, <uint32_t>shapes[i])
                if slot < -1:
                    break
                chosen[i] = <int32_t>slot
        self.busy = False
        _check(slot, -1)
        return slots

    def release(self, int64_t slot, int64_t shape):
        """Give a shape's demand back to a node."""
        self.check_shape(shape)
        _check_slot(slot)
        _check(shift_shape(self.fleet, <uint32_t>slot, <uint32_t>shape, 1), slot)

    def take_shape(self, int64_t slot, int64_t shape):
        """Take a shape's demand from a node, whether it fits or not."""
        self.check_shape(shape)
        _check_slot(slot)
        _check(shift_shape(self.fleet, <uint32_t>slot, <uint32_t>shape, -1), slot)

    def take(self, int64_t slot, object amounts):
        """Take amounts from a node, whether they fit or not."""
        cdef int64_t[64] row
        self.check_free()
        _check_slot(slot)
        self.read_amounts(amounts, row, True)
        _check(shift_amounts(self.fleet, <uint32_t>slot, row, -1), slot)

    def give(self, int64_t slot, object amounts):
        """Give amounts back to a node."""
        cdef int64_t[64] row
        self.check_free()
        _check_slot(slot)
        self.read_amounts(amounts, row, True)
        _check(shift_amounts(self.fleet, <uint32_t>slot, row, 1), slot)

    def best_excluding(self, int64_t shape, object slots):
        """The best node but for the given slots, -1 if there is none."""
        self.check_shape(shape)
        cdef _Slots given = _Slots(slots)
        cdef int64_t slot = best_excluding(self.fleet, <uint32_t>shape, given.data, given.count)
        _check(slot, -1)
        return slot

    def best_among(self, int64_t shape, object slots):
        """The best node among the given slots, -1 if there is none."""
        self.check_shape(shape)
        cdef _Slots given = _Slots(slots)
        return best_among(self.fleet, <uint32_t>shape, given.data, given.count)

    def scan(self, int64_t shape):
        """As best(), by one scan over the states: for a shape that will not come again."""
        self.check_shape(shape)
        cdef int64_t slot = scan_one(self.fleet, <uint32_t>shape)
        _check(slot, -1)
        return slot

    # ---- explanations

    def rank(self, int64_t shape, int64_t count):
        """[(slot, key)] of the best nodes in order."""
        self.check_shape(shape)
        if not 1 <= count <= RANKED_MAX:
            raise ValueError(f"count is {count}, must be 1 to {RANKED_MAX}")
        slots, keys = np.empty(count, dtype=np.int32), np.empty(count, dtype=np.uint64)
        cdef int32_t[::1] slots_out = slots
        cdef uint64_t[::1] keys_out = keys
        cdef int64_t found
        self.busy = True
        with nogil:
            found = rank_nodes(self.fleet, <uint32_t>shape, <uint32_t>count, &slots_out[0], &keys_out[0])
        self.busy = False
        _check(found, -1)
        return list(zip(slots[:found].tolist(), keys[:found].tolist(), strict=True))

    def fitting_count(self, int64_t shape):
        """How many nodes a shape fits."""
        cdef uint64_t count
        self.check_shape(shape)
        self.busy = True
        with nogil:
            count = fitting_count(self.fleet, <uint32_t>shape)
        self.busy = False
        return count

    def key(self, int64_t shape, int64_t slot):
        """What nodes are compared by, smallest first: (key, what is free, scored resources first, rank)."""
        cdef uint32_t cls = self.class_at(slot)
        self.check_shape(shape)
        if not fits(self.fleet, cls, <uint32_t>shape):
            return None
        cdef const int64_t* row = free_of(self.fleet, cls)
        amounts = tuple([row[r] for r in range(self.fleet.width)])
        return key_of(self.fleet, cls, <uint32_t>shape), amounts, self.fleet.nodes[slot].rank

    def terms(self, int64_t shape, int64_t slot):
        """What stays free of each resource in unit form; negative: lacks."""
        cdef uint32_t cls = self.class_at(slot)
        self.check_shape(shape)
        cdef Py_ssize_t r, have = <Py_ssize_t>cls * self.fleet.width, want = shape * self.fleet.width
        return [self.fleet.units[have + self.fleet.place[r]] - self.fleet.want[want + self.fleet.place[r]]
                for r in range(self.fleet.rows)]

    cdef uint32_t class_at(self, int64_t slot) except? 4294967295:
        self.check_free()
        _check_slot(slot)
        if not is_node(self.fleet, <uint32_t>slot):
            raise ValueError(f"slot {slot} has no node")
        return self.fleet.nodes[slot].cls

    def free_at(self, int64_t slot):
        """A node's free amounts."""
        cdef const int64_t* row = free_of(self.fleet, self.class_at(slot))
        return tuple([row[self.fleet.place[r]] for r in range(self.fleet.rows)])

    def attr_at(self, int64_t slot):
        """A node's attr."""
        return self.fleet.classes[self.class_at(slot)].attr

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
        _check(outcome, -1)
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

    # ---- traces

    def replay(self, const int32_t[::1] events not None, const int32_t[::1] shape_of not None,
               int32_t[::1] at not None, *, object ns=None, object used=None, bint linear=False):
        """A whole trace: x >= 0 places instance x of shape_of[x], ~x releases it if it is placed.

        at int32[n_instance]: the slot of each instance or -1, read and written. ns float32[n_event]: the
        cost of each event is written, less that of the clock. used int32[n_event]: nodes in use after each
        event. linear: by scan, on a copy: the oracle.
        """
        cdef Replayed result
        cdef Outcome outcome
        cdef int32_t[::1] used_out, load
        cdef uint32_t[::1] ticks_out
        cdef const int32_t* none = NULL
        self.check_free()
        loads = _checked_trace(self, events, shape_of, at)
        if linear and (ns is not None or used is not None or np.asarray(at).max(initial=-1) >= 0):
            raise ValueError("a linear replay begins with nothing placed and measures the whole only")
        ticks_array = np.empty(events.shape[0] + 1, dtype=np.uint32)
        for name, array in (("ns", ns), ("used", used)):
            if array is not None and array.shape != (events.shape[0],):
                raise ValueError(f"{name} must have one entry an event")
        used_array = np.empty(0 if used is None else events.shape[0] + 1, dtype=np.int32)
        load, ticks_out, used_out = loads, ticks_array, used_array
        cdef uint32_t* ticks_at = NULL if ns is None else &ticks_out[0]
        cdef int32_t* used_at = NULL if used is None else &used_out[0]
        cdef const int32_t* events_at = &events[0] if events.shape[0] else NULL
        cdef const int32_t* shapes_at = &shape_of[0] if shape_of.shape[0] else NULL
        cdef int32_t* slots_at = &at[0] if at.shape[0] else NULL
        result.placed = result.failed = result.released = result.elapsed_ns = 0
        result.first_failure = -1
        result.decision_hash = DECISION_HASH_START
        result.used = result.used_peak = np.count_nonzero(loads)
        self.busy = True
        with nogil:
            if linear:
                outcome = replay_linear(self.fleet, events_at, events.shape[0], shapes_at, slots_at, &load[0], &result)
            else:
                outcome = replay(self.fleet, events_at, events.shape[0], shapes_at, slots_at, &load[0], ticks_at,
                                 used_at, &result)
        self.busy = False
        _check(outcome, -1)
        if ns is not None:
            overhead = min(<uint64_t>1000, ticks_overhead())
            ns[:] = np.maximum(ticks_array[: events.shape[0]].astype(np.float64) - overhead, 0) / ticks_per_ns()
        if used is not None:
            used[:] = used_array[: events.shape[0]]
        return Replay(result.placed, result.failed, result.released, result.first_failure, result.decision_hash,
                      result.used, result.used_peak, result.elapsed_ns)

    def time_scans(self, int64_t rounds):
        """(ns of one scan, ns of one read of the same bytes), means over `rounds` of each, shapes in turn."""
        cdef int64_t scan_ns = 0, read_ns = 0
        cdef Outcome outcome
        self.check_shape(0)
        if not 1 <= rounds < NONE:
            raise ValueError(f"rounds is {rounds}, must be 1 to {NONE - 1}")
        self.busy = True
        with nogil:
            outcome = time_scans(self.fleet, self.fleet.shape_count, <uint32_t>rounds, &scan_ns, &read_ns)
        self.busy = False
        _check(outcome, -1)
        return scan_ns / rounds, read_ns / rounds

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
