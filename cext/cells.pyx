# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True
"""NUMA cells of all nodes and the index of their bins: where k cells have room, and which ones they are.

**Edge** in the sense that Cells are changed in place. A node fits exactly if one of its bins does, it is scored as
any other, and of equal nodes the one with the fuller cells wins. Bins of nodes that have changed are made anew when
the next question comes. Shapes and units: cells.pxd.
"""

from operator import index as as_int

from cext.state cimport (
    EMPTY_BIT, NONE, SLOTS_MAX, Fleet, FleetState, check_outcome, check_slot, free_of, is_node, remove_node, set_node,
)
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memset


cdef extern from *:
    bint __builtin_add_overflow(int64_t a, int64_t b, int64_t* sum) nogil
    bint __builtin_sub_overflow(int64_t a, int64_t b, int64_t* difference) nogil


cdef void* grown(void* block, size_t have, size_t room, size_t each) except NULL:
    """A block of `room` elements with the first `have` of the old one, then zeros."""
    cdef char* larger = <char*>realloc(block, room * each)
    if larger == NULL:
        raise MemoryError
    memset(larger + have * each, 0, (room - have) * each)
    return larger


cdef uint32_t room_for(uint32_t have, uint32_t want):
    cdef uint32_t room = have if have else 64
    while room < want:
        room *= 2
    return room


cdef uint32_t sets_of(uint32_t cells, uint32_t count):
    """How many sets of `count` of the cells there are; both at most NODE_CELLS_MAX."""
    cdef uint32_t sets = 1, i
    if count > cells:
        return 0
    for i in range(count):
        sets = sets * (cells - i) // (i + 1)
    return sets


cdef bint next_set(uint32_t* chosen, uint32_t count, uint32_t cells):
    """The next set in lexicographic order; False after the last."""
    cdef uint32_t at = count, i
    while at and chosen[at - 1] == cells - count + at - 1:
        at -= 1
    if not at:
        return False
    chosen[at - 1] += 1
    for i in range(at, count):
        chosen[i] = chosen[i - 1] + 1
    return True


cdef class Bins:
    """Bins of `count` cells in an index that has the nodes' rows and two more."""

    def __cinit__(self, FleetState index not None, int count):
        self.index = index
        self.count = count

    def __dealloc__(self):
        cdef uint32_t slot
        for slot in range(self.slots_room):
            free(self.of_slot[slot])
        free(self.of_slot)
        free(self.bin_counts)
        free(self.dirty)
        free(self.dirty_slots)
        free(self.slot_of)
        free(self.vacant)

    cdef int reserve_slot(self, uint32_t slot) except -1:
        cdef uint32_t have = self.slots_room, room
        if slot < have:
            return 0
        room = room_for(have, slot + 1)
        self.bin_counts = <uint32_t*>grown(self.bin_counts, have, room, sizeof(uint32_t))
        self.dirty = <uint8_t*>grown(self.dirty, have, room, sizeof(uint8_t))
        self.dirty_slots = <uint32_t*>grown(self.dirty_slots, have, room, sizeof(uint32_t))
        self.of_slot = <uint32_t**>grown(self.of_slot, have, room, sizeof(uint32_t*))
        self.slots_room = room
        return 0

    cdef int reserve_bins(self, uint32_t count) except -1:
        cdef uint32_t have = self.bins_room, room
        if self.bins_top + count <= have:
            return 0
        if self.bins_top + count > SLOTS_MAX:
            raise ValueError(f"more than {SLOTS_MAX} sets of {self.count} cells")
        room = room_for(have, self.bins_top + count)
        self.slot_of = <uint32_t*>grown(self.slot_of, have, room, sizeof(uint32_t))
        self.vacant = <uint32_t*>grown(self.vacant, have, room, sizeof(uint32_t))
        self.bins_room = room
        return 0

    cdef int touch(self, uint32_t slot) except -1:
        """The node's bins are out of date."""
        self.reserve_slot(slot)
        if not self.dirty[slot]:
            self.dirty[slot] = 1
            self.dirty_slots[self.dirty_count] = slot
            self.dirty_count += 1
        return 0

    cdef int drop(self, uint32_t slot) except -1:
        """The node has no bins any more."""
        cdef uint32_t i, bin_
        for i in range(self.bin_counts[slot]):
            bin_ = self.of_slot[slot][i]
            if is_node(self.index.fleet, bin_):
                check_outcome(remove_node(self.index.fleet, bin_), bin_)
            self.vacant[self.vacant_count] = bin_
            self.vacant_count += 1
        free(self.of_slot[slot])
        self.of_slot[slot] = NULL
        self.bin_counts[slot] = 0
        return 0

    cdef int resize(self, uint32_t slot, uint32_t count) except -1:
        """Give the node so many bins."""
        cdef uint32_t i, bin_
        self.drop(slot)
        self.reserve_bins(count)
        self.of_slot[slot] = <uint32_t*>malloc((count + 1) * sizeof(uint32_t))
        if self.of_slot[slot] == NULL:
            raise MemoryError
        for i in range(count):
            if self.vacant_count:
                self.vacant_count -= 1
                bin_ = self.vacant[self.vacant_count]
            else:
                bin_ = self.bins_top
                self.bins_top += 1
            self.slot_of[bin_] = slot
            self.of_slot[slot][i] = bin_
        self.bin_counts[slot] = count
        return 0

    cdef int put(self, Fleet* whole, uint32_t slot, const CellRoom* room) except -1:
        """Set a node's bins by what it and its cells have now."""
        cdef Fleet* bins = self.index.fleet
        cdef uint32_t count = 0, cls, number = 0, i
        cdef uint32_t[16] chosen
        cdef int64_t[64] row, size
        cdef int32_t r, vcpu_row = bins.place[whole.rows], memory_row = bins.place[whole.rows + 1]
        cdef const int64_t* left
        cdef int32_t attr
        cdef int64_t vcpu, memory_mib
        if room.cells != NULL and is_node(whole, slot):
            count = sets_of(room.count, <uint32_t>self.count)
        if count != self.bin_counts[slot]:
            self.resize(slot, count)
        if not count:
            return 0
        cls = whole.nodes[slot].cls
        left = free_of(whole, cls)
        attr = whole.classes[cls].attr
        attr = attr if attr < 0 else attr & ~EMPTY_BIT
        for r in range(bins.width):
            row[r] = size[r] = 0
        for r in range(whole.rows):
            row[bins.place[r]] = left[whole.place[r]]
            if whole.crowd != NULL:
                size[bins.place[r]] = whole.size[<size_t>slot * <size_t>whole.width + <size_t>whole.place[r]]
        for i in range(<uint32_t>self.count):
            chosen[i] = i
        while True:
            vcpu, memory_mib = room.cells[chosen[0]].vcpu, room.cells[chosen[0]].memory_mib
            for i in range(1, <uint32_t>self.count):
                vcpu = min(vcpu, room.cells[chosen[i]].vcpu)
                memory_mib = min(memory_mib, room.cells[chosen[i]].memory_mib)
            row[vcpu_row] = size[vcpu_row] = vcpu
            row[memory_row] = size[memory_row] = memory_mib
            check_outcome(set_node(bins, self.of_slot[slot][number], row, attr,
                                   whole.nodes[slot].rank & ~<uint64_t>(BINS_MAX - 1) | number, size), slot)
            number += 1
            if not next_set(chosen, <uint32_t>self.count, room.count):
                return 0


cdef class Cells:
    """What the NUMA cells of the nodes have left. `whole`: the index of the nodes.

    ValueError: an argument is wrong; nothing changed.
    """

    def __cinit__(self, FleetState whole not None):
        self.whole = whole
        self.bins, self.kept = [None] * (CELLS_MAX + 1), []

    def __dealloc__(self):
        cdef uint32_t slot
        for slot in range(self.slots_room):
            free(self.rooms[slot].cells)
        free(self.rooms)

    def set_cells(self, int64_t slot, object cells):
        """A node's cells, as (vcpu, memory_mib) each; none: it has no cells, or is not there."""
        cdef list amounts = [(as_int(vcpu), as_int(memory_mib)) for vcpu, memory_mib in cells]
        cdef uint32_t count = <uint32_t>len(amounts), i
        cdef Cell* made = NULL
        check_slot(slot)
        if count > NODE_CELLS_MAX:
            raise ValueError(f"slot {slot}: {count} cells, at most {NODE_CELLS_MAX}")
        if not count and (slot >= self.slots_room or self.rooms[slot].cells == NULL):
            return
        if slot >= self.slots_room:
            self._reserve(<uint32_t>slot)
        if count:
            made = <Cell*>calloc(count, sizeof(Cell))
            if made == NULL:
                raise MemoryError
        try:
            for i in range(count):
                made[i].vcpu, made[i].memory_mib = amounts[i]
        except OverflowError:
            free(made)
            raise ValueError(f"slot {slot}: what cells have left must have 64 bits") from None
        free(self.rooms[slot].cells)
        self.rooms[slot].cells = made
        self.rooms[slot].count = count
        self.touch(<uint32_t>slot)

    def _reserve(self, uint32_t slot):
        cdef uint32_t room = room_for(self.slots_room, slot + 1)
        self.rooms = <CellRoom*>grown(self.rooms, self.slots_room, room, sizeof(CellRoom))
        self.slots_room = room

    def cells_at(self, int64_t slot):
        """What a node's cells have left, as (vcpu, memory_mib) each."""
        if not 0 <= slot < self.slots_room:
            return []
        cdef CellRoom room = self.rooms[slot]
        return [(room.cells[i].vcpu, room.cells[i].memory_mib) for i in range(room.count)]

    def add_bins(self, FleetState index not None, int count):
        """Sets of `count` cells are asked for from now on; `index` is empty and has two rows more than the nodes'."""
        cdef uint32_t slot
        if not 1 <= count <= CELLS_MAX:
            raise ValueError(f"{count} cells, must be 1 to {CELLS_MAX}")
        if self.bins[count] is not None or index.fleet.rows != self.whole.fleet.rows + 2 or len(index):
            raise ValueError(f"sets of {count} cells want an empty index of their own with two rows more")
        cdef Bins made = Bins(index, count)
        for slot in range(self.slots_room):
            if self.rooms[slot].cells != NULL:
                made.touch(slot)
        self.bins[count] = made
        self.kept.append(made)

    def index_of(self, int count):
        """The index of the sets of `count` cells; None: they were not asked for."""
        return (<Bins>self.bins[count]).index if self.bins[count] is not None else None

    def touch_slot(self, int64_t slot):
        """What the node is or has free was changed."""
        check_slot(slot)
        self.touch(<uint32_t>slot)

    cdef int touch(self, uint32_t slot) except -1:
        cdef Bins bins
        if slot >= self.slots_room:
            return 0
        for bins in self.kept:
            if self.rooms[slot].cells != NULL or (slot < bins.slots_room and bins.bin_counts[slot]):
                bins.touch(slot)
        return 0

    cdef Bins ready(self, int count):
        """The bins, up to date."""
        cdef Bins bins = self.bins[count]
        cdef uint32_t slot
        while bins.dirty_count:
            slot = bins.dirty_slots[bins.dirty_count - 1]
            bins.put(self.whole.fleet, slot, &self.rooms[slot])
            bins.dirty_count -= 1
            bins.dirty[slot] = 0
        return bins

    cdef uint32_t choose(self, uint32_t slot, int count, int64_t vcpu, int64_t memory_mib):
        """Of the cells with room, those with the least vcpu, then memory, then the first; 0: too few have."""
        cdef uint32_t taken = 0, i
        cdef int best, number
        cdef const CellRoom* room = &self.rooms[slot]
        for number in range(count):
            best = -1
            for i in range(room.count):
                if taken >> i & 1 or room.cells[i].vcpu < vcpu or room.cells[i].memory_mib < memory_mib:
                    continue
                if best < 0 or room.cells[i].vcpu < room.cells[best].vcpu or (
                        room.cells[i].vcpu == room.cells[best].vcpu
                        and room.cells[i].memory_mib < room.cells[best].memory_mib):
                    best = <int>i
            if best < 0:
                return 0
            taken |= <uint32_t>1 << best
        return taken

    cdef int shift(self, uint32_t slot, uint32_t cells, int64_t vcpu, int64_t memory_mib, int sign) except -1:
        """Give (sign 1) or take (-1) amounts of each of the cells; those that the node has not are left out."""
        cdef uint32_t i
        cdef Cell[16] after
        cdef CellRoom room
        cdef bint overflows = False
        if slot >= self.slots_room:
            return 0
        room = self.rooms[slot]
        for i in range(room.count):
            after[i] = room.cells[i]
            if cells >> i & 1:
                if sign > 0:
                    overflows |= __builtin_add_overflow(room.cells[i].vcpu, vcpu, &after[i].vcpu)
                    overflows |= __builtin_add_overflow(room.cells[i].memory_mib, memory_mib, &after[i].memory_mib)
                else:
                    overflows |= __builtin_sub_overflow(room.cells[i].vcpu, vcpu, &after[i].vcpu)
                    overflows |= __builtin_sub_overflow(room.cells[i].memory_mib, memory_mib, &after[i].memory_mib)
        if overflows:
            raise ValueError(f"slot {slot}: what cells have left would leave 64 bits")
        for i in range(room.count):
            room.cells[i] = after[i]
        return 0
