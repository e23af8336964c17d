# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True
"""The best node for a shape without a rescan of the fleet; equals `scheduler.reference` on every state.

**Edge** in the sense that a FleetIndex is changed in place; its answers depend on its state alone, not on how it
came about. Shapes and units: state.pxd.
"""

from operator import index as as_int

import numpy as np

from cext.state import NORMS, usable_filters

from cext.state cimport (
    Fleet, FleetState, RANKED_MAX, best_among, best_excluding, best_node, check_outcome, check_shapes, check_slot,
    fits, fitting_count, free_of, key_of, levels_late, place_one, rank_nodes, refresh, room_lost, scan_one, shift_amounts,
    shift_shape,
)
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t
from libc.stdlib cimport free as free_block, malloc

RANKED_AT_MOST = RANKED_MAX


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


cdef class FleetIndex(FleetState):
    """Answers which node is best for a shape. For what it is made with see `FleetState`."""

    # ---- decisions

    def best(self, int64_t shape):
        """The best node's slot, -1 if the shape fits nowhere."""
        self.check_shape(shape)
        cdef int64_t slot = best_node(self.fleet, <uint32_t>shape)
        if slot < -1:
            check_outcome(slot, -1)
        return slot

    def place(self, int64_t shape):
        """The best node's slot, which loses the demand; -1 if the shape fits nowhere."""
        self.check_shape(shape)
        cdef int64_t slot = place_one(self.fleet, <uint32_t>shape)
        if slot < -1:
            check_outcome(slot, -1)
        return slot

    def place_batch(self, const int32_t[::1] shapes not None):
        """int32[n]: the slots of shapes placed one after the other, each seen by the next; -1 = fits nowhere."""
        cdef Py_ssize_t i, count = shapes.shape[0]
        cdef int64_t slot = 0
        self.check_free()
        check_shapes(shapes, self.fleet.shape_count)
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
        check_outcome(slot, -1)
        return slots

    def release(self, int64_t slot, int64_t shape):
        """Give a shape's demand back to a node."""
        self.check_shape(shape)
        check_slot(slot)
        check_outcome(shift_shape(self.fleet, <uint32_t>slot, <uint32_t>shape, 1), slot)

    def take_shape(self, int64_t slot, int64_t shape):
        """Take a shape's demand from a node, whether it fits or not."""
        self.check_shape(shape)
        check_slot(slot)
        check_outcome(shift_shape(self.fleet, <uint32_t>slot, <uint32_t>shape, -1), slot)

    def take(self, int64_t slot, object amounts):
        """Take amounts from a node, whether they fit or not."""
        cdef int64_t[64] row
        self.check_free()
        check_slot(slot)
        self.read_amounts(amounts, row, True)
        check_outcome(shift_amounts(self.fleet, <uint32_t>slot, row, -1), slot)

    def give(self, int64_t slot, object amounts):
        """Give amounts back to a node."""
        cdef int64_t[64] row
        self.check_free()
        check_slot(slot)
        self.read_amounts(amounts, row, True)
        check_outcome(shift_amounts(self.fleet, <uint32_t>slot, row, 1), slot)

    def best_excluding(self, int64_t shape, object slots):
        """The best node but for the given slots, -1 if there is none."""
        self.check_shape(shape)
        cdef _Slots given = _Slots(slots)
        cdef int64_t slot = best_excluding(self.fleet, <uint32_t>shape, given.data, given.count)
        check_outcome(slot, -1)
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
        check_outcome(slot, -1)
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
        check_outcome(found, -1)
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
        refresh(self.fleet)
        cdef const int64_t* row = free_of(self.fleet, cls)
        amounts = tuple([row[r] for r in range(self.fleet.width)])
        return key_of(self.fleet, cls, <uint32_t>shape), amounts, self.fleet.nodes[slot].rank

    def levels_late(self, int64_t shape, int64_t slot):
        """By how many levels of time the shape would outlive what runs on the node, where that counts."""
        cdef uint32_t cls = self.class_at(slot)
        self.check_shape(shape)
        if not self.fleet.crowd:
            raise ValueError("only norm 'slots' knows of time")
        refresh(self.fleet)
        return levels_late(self.fleet, cls, <uint32_t>shape)

    def room_lost(self, int64_t shape, int64_t slot):
        """What placing the shape takes of the room for typical shapes, in 1/2**24 of a node's; norm `slots`."""
        cdef uint32_t cls = self.class_at(slot)
        self.check_shape(shape)
        if not self.fleet.crowd:
            raise ValueError("only norm 'slots' tells what room is worth")
        refresh(self.fleet)
        return room_lost(self.fleet, cls, <uint32_t>shape) if fits(self.fleet, cls, <uint32_t>shape) else None

    def terms(self, int64_t shape, int64_t slot):
        """What stays free of each resource in unit form; negative: lacks."""
        cdef uint32_t cls = self.class_at(slot)
        self.check_shape(shape)
        cdef Py_ssize_t r, have = <Py_ssize_t>cls * self.fleet.width, want = shape * self.fleet.width
        return [self.fleet.units[have + self.fleet.place[r]] - self.fleet.want[want + self.fleet.place[r]]
                for r in range(self.fleet.rows)]
