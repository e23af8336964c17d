# Vector bin packing. Specification: scheduler/binpack_reference.py.
#
# A vector of amounts is held in one to d machine words, `word` of them: each resource is a field of
# its own width whose top bit, the guard, is 0 in demands. Free vectors have all guards set, so
#     free - demand        subtracts every resource at once, a guard absorbs the borrow of its field
#     guards still set     the demand fits in every resource
# Exact for any amounts of 0..2**63-1: a field is as wide as its resource's largest capacity needs, and
# what is free or fits never exceeds that. Words are counted from the front in every array.
#
#   items     uint64[n, word]   demands, guards clear
#   guard     uint64[word]      the guards
#   free      uint64[m, word]   what is free in each bin, guards set
#   eligible  uint8[n, m]       1 = the item may go to the bin; of no rows or columns = everywhere
#   chosen    int32[n]          the item's bin, -1 = none yet
#   size      int64[n]          how large an item is, relative to others; at least 1
#
# A step is one look at an item or bin: the cost of a search, the same on every machine.

from libc.stdint cimport int32_t, int64_t, uint8_t, uint64_t

# A search: bins with what is in them, the items in no bin, and what it has learnt.
# Invariant: free[b] + the demands of b's items is what b had at first; an item is in one bin's list
# or in the pool.
cdef struct Search:
    Py_ssize_t n, m, word
    const uint64_t* items
    const uint64_t* guard
    const uint8_t* eligible  # NULL: everywhere
    const int64_t* size
    uint64_t* free
    int32_t* chosen
    int32_t* after    # int32[n]: the next item in the same bin, -1 = the last
    int32_t* before   # int32[n]: the one before, -1 = the first
    int32_t* head     # int32[m]: a bin's first item, -1 = empty
    int32_t* pool     # int32[n]: items in no bin, the last is taken first
    Py_ssize_t pooled
    int64_t* cost     # int64[n]: what throwing the item out costs; grows each time it found no room
    int64_t* load     # int64[m]: sum of the sizes in the bin
    uint64_t random   # xorshift64*, never 0
    int64_t steps     # still to spend
