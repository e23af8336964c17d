# The room of NUMA cells, and bins: a node with a set of k of its cells, as a node of an index of its own.
#
# A set of cells is a mask: bit i = cell i. Slots are those of the nodes' index, bins those of theirs. Amounts of a
# bin are its node's, and in two rows more the least vcpu and memory_mib that a cell of the set has free.

from libc.stdint cimport int64_t, uint8_t, uint32_t

from cext.state cimport Fleet, FleetState

cdef enum:
    CELLS_MAX = 8  # of a request: scheduler.topology
    NODE_CELLS_MAX = 16
    BINS_MAX = 1 << 14  # of one node: 16 cells, 8 at once are 12,870


ctypedef struct Cell:
    int64_t vcpu, memory_mib


ctypedef struct CellRoom:
    Cell* cells      # NULL: the node has none
    uint32_t count


cdef class Bins:
    cdef readonly FleetState index
    cdef readonly int count      # cells of a bin
    cdef uint32_t* slot_of       # [bin]
    cdef uint32_t** of_slot      # [slot]: its bins, NULL: none
    cdef uint32_t* bin_counts    # [slot]
    cdef uint8_t* dirty          # [slot]: is in dirty_slots
    cdef uint32_t* dirty_slots   # [slots_room]
    cdef uint32_t* vacant        # [bins_room]
    cdef uint32_t slots_room, bins_room, bins_top, dirty_count, vacant_count
    cdef int reserve_slot(self, uint32_t slot) except -1
    cdef int reserve_bins(self, uint32_t count) except -1
    cdef int touch(self, uint32_t slot) except -1
    cdef int drop(self, uint32_t slot) except -1
    cdef int resize(self, uint32_t slot, uint32_t count) except -1
    cdef int put(self, Fleet* whole, uint32_t slot, const CellRoom* room) except -1


cdef class Cells:
    cdef FleetState whole        # the index of the nodes
    cdef CellRoom* rooms         # [slot]
    cdef uint32_t slots_room
    cdef list bins               # Bins or None, by the number of cells
    cdef list kept               # those that are not None
    cdef int touch(self, uint32_t slot) except -1
    cdef Bins ready(self, int count)
    cdef uint32_t choose(self, uint32_t slot, int count, int64_t vcpu, int64_t memory_mib)
    cdef int shift(self, uint32_t slot, uint32_t cells, int64_t vcpu, int64_t memory_mib, int sign) except -1
