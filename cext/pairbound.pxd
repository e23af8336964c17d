# A lower bound for packing into bins that are all the same, by which items fit beside which.
# Specification: `pair_bound_reference` in scheduler/binpack_reference.py. Vectors are words as in binpack.pxd:
#   items     uint64[n, word]   demands, guards clear
#   guard     uint64[word]      the guards
#   capacity  uint64[word]      of an empty bin, guards set; every item fits

from libc.stdint cimport int32_t, uint8_t, uint64_t

# The kept items, and which of them fit beside which. Invariant: no three of them fit into one bin.
cdef struct Pairs:
    Py_ssize_t n, word, kept
    const uint64_t* items
    const uint64_t* guard
    const uint64_t* capacity
    int32_t* keeps    # int32[kept]: the items
    uint8_t* joins    # uint8[n, n], symmetric, of positions in `keeps`
    int32_t* partner  # int32[kept]: a right copy's left one, -1 = none
    int32_t* near     # int32[kept]: a left copy's right one; before that, neighbours of the next item
    uint8_t* seen     # uint8[kept]: right copies that were tried in this round
