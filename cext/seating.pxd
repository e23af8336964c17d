# Seats: where a request goes, and what it takes there. What groups and cells are: groups.pxd, cells.pxd.

from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t

from cext.cells cimport Bins, Cells
from cext.groups cimport Group
from cext.state cimport Fleet, FleetState

cdef enum:
    GROUPS_MAX = 8  # of a request: scheduler.model
    PICKED_MAX = 4096  # nodes that are judged one by one; the index is asked with a mask if there are more


ctypedef const uint64_t* const_mask


ctypedef struct Level:
    int64_t penalty, tier
    uint32_t shape, bin_shape


# What one group, or the request itself, leaves: the mask of closed slots, and the only ones if they are few.
ctypedef struct Place:
    const uint64_t* mask
    const int32_t* only
    int32_t only_count  # -1: all


cdef class Asked:
    cdef Level* levels        # by (penalty, tier), all different
    cdef uint32_t level_count
    cdef readonly int cells   # 0: the request floats over the node
    cdef int64_t vcpu, memory_mib  # on each of the cells


cdef class Seat:
    cdef readonly int64_t slot, shape
    cdef readonly object choice
    cdef tuple groups         # of Group
    cdef uint32_t cells       # mask; 0: none
    cdef int64_t vcpu, memory_mib  # on each of them


cdef class Seating:
    cdef FleetState index
    cdef readonly Cells cells
    cdef dict groups          # name -> Group
    cdef list made            # groups that have a mask
    cdef dict choices         # mask of cells -> choice
    cdef object new_choice, nothing
    cdef int64_t soft_penalty
    cdef list entered         # seats since the first open mark
    cdef list starts          # len(entered) at each open mark
    cdef uint64_t* scratch    # a mask: slots that the request itself leaves out
    cdef uint32_t scratch_words
    cdef int32_t* picked      # [PICKED_MAX]
    cdef int32_t* only        # [PICKED_MAX]: of the request itself
    cdef Place[9] hard        # of the question under way: GROUPS_MAX + 1
    cdef Place[8] soft
    cdef int hard_count, soft_count
    cdef tuple group_of(self, tuple names)
    cdef int look_up(self, tuple groups) except -1
    cdef int narrow(self, object excluded, object among) except -1
    cdef int reserve_scratch(self, uint32_t words) except -1
    cdef int64_t pick(self, const Place* only, const_mask* masks, int count, Bins bins)
    cdef int gather(self, uint32_t broken, const_mask* masks, const Place** only)
    cdef int64_t ask(self, Fleet* fleet, Bins bins, uint32_t shape, uint32_t broken) except -2
    cdef int64_t decide(self, Asked asked, Bins bins, uint32_t* shape) except -2
    cdef Seat seat_on(self, Asked asked, int64_t slot, uint32_t shape, tuple groups)
    cdef int shift_all(self, Seat seat, int sign) except -1
    cdef int shift(self, Seat seat, int sign) except -1
