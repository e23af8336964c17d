# Domains of nodes (a node, its rack, its zone) and the nodes that a placement group closes, as one bit a slot.
#
# Slots are those of the nodes' index. A mask is uint64[words]: bit s is set where slot s takes no more member.

from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t

cdef enum:
    HOMES_MAX = 1024  # slots of a group's domains that are listed; more of them are asked for by mask


ctypedef struct Domain:
    uint32_t* slots     # its nodes; NULL: `one` is the only one
    uint32_t one, count, room


cdef class Scope:
    cdef dict ids             # name -> domain
    cdef list names           # by domain; None: not in use
    cdef list vacant          # domains that are not in use
    cdef Domain* domains      # [domains_room]
    cdef uint32_t* domain_of  # [slots_room]; NONE: no domain
    cdef uint64_t* nowhere    # a mask: slots without a domain
    cdef uint32_t domains_room, slots_room
    cdef uint64_t version     # grows whenever a slot changes its domain
    cdef int reserve(self, uint32_t slot) except -1
    cdef int join(self, uint32_t slot, uint32_t domain) except -1
    cdef int leave(self, uint32_t slot) except -1
    cdef uint32_t domain_named(self, object name) except? 4294967295


cdef class Group:
    cdef Scope scope
    cdef readonly bint hard
    cdef bint affinity
    cdef int64_t limit
    cdef readonly object members  # Counter: name of a domain -> members, only those with some
    cdef uint64_t* closed         # the mask; NULL: not made
    cdef uint64_t version         # of the scope, when the mask was made
    cdef uint32_t words
    cdef bint made                # the mask holds
    cdef int32_t* homes           # [HOMES_MAX]; NULL: never listed
    cdef int32_t home_count       # -1: not listed; slots where the group must go if it is one of affinity
    cdef bint homes_known
    cdef bint closes(self, int64_t count)
    cdef int mark(self, uint32_t domain, bint closed) except -1
    cdef int make(self) except -1
    cdef int find_homes(self) except -1
    cdef int ready(self) except -1
    cdef int shift(self, uint32_t slot, int by) except -1
