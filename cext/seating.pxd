# Seats: where a request goes, and what it takes there. What groups and cells are: groups.pxd, cells.pxd.

from libc.stdint cimport int64_t, uint32_t, uint64_t

from cext.cells cimport Bins, Cells
from cext.places cimport Places
from cext.state cimport Fleet


ctypedef struct Level:
    int64_t penalty, tier
    uint32_t shape, bin_shape


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


cdef class Seating(Places):
    cdef readonly Cells cells
    cdef dict choices         # mask of cells -> choice
    cdef object new_choice, nothing
    cdef int64_t soft_penalty
    cdef list entered         # seats since the first open mark
    cdef list starts          # len(entered) at each open mark
    cdef int64_t ask(self, Fleet* fleet, Bins bins, uint32_t shape, uint32_t broken) except -2
    cdef int64_t decide(self, Asked asked, Bins bins, uint32_t* shape) except -2
    cdef Seat seat_on(self, Asked asked, int64_t slot, uint32_t shape, tuple groups)
    cdef int shift_all(self, Seat seat, int sign) except -1
    cdef int shift(self, Seat seat, int sign) except -1
