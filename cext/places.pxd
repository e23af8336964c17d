# Where requests may go: groups and nodes by name. What groups are: groups.pxd; slots and masks likewise.

from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t

from cext.cells cimport Bins
from cext.groups cimport Group
from cext.state cimport FleetState

cdef enum:
    GROUPS_MAX = 8  # of a request: scheduler.model
    PICKED_MAX = 4096  # nodes that are judged one by one; the index is asked with a mask if there are more


ctypedef const uint64_t* const_mask


# What one group, or the request itself, leaves: the mask of closed slots, and the only ones if they are few.
ctypedef struct Place:
    const uint64_t* mask
    const int32_t* only
    int32_t only_count  # -1: all


cdef class Places:
    cdef FleetState index
    cdef dict groups          # name -> Group
    cdef list made            # groups that have a mask
    cdef uint64_t* scratch    # a mask: slots that the request itself leaves out
    cdef uint32_t scratch_words
    cdef int32_t* only        # [PICKED_MAX]: of the request itself
    cdef int32_t* picked      # [PICKED_MAX]
    cdef Place[9] hard        # of the question under way: GROUPS_MAX + 1
    cdef Place[8] soft
    cdef int hard_count, soft_count
    cdef tuple group_of(self, tuple names)
    cdef int look_up(self, tuple groups) except -1
    cdef int narrow(self, object excluded, object among) except -1
    cdef int reserve_scratch(self, uint32_t words) except -1
    cdef int64_t pick(self, const Place* only, const_mask* masks, int count, Bins bins)
    cdef int gather(self, uint32_t broken, const_mask* masks, const Place** only)
