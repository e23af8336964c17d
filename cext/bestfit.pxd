# Best fit over a fleet held as a structure of arrays. Specification: scheduler/kernel.py.
#
# Units and shapes, everywhere in this module:
#   free      int64[n_resource, n_node]  what is free, in the resource's unit; negative = overcommitted
#   demand    int64[n_resource]          what one request takes; 0 = not asked for, does not constrain
#   eligible  uint8[n_node]              1 = no constraint but resources can speak against the node
#   scale     double[n_resource]         weight / the fleet's largest amount; finite, not negative
#   start     0 <= start < n_node        equal scores go to the first node from here on, cyclically
#
# A row of `free` is contiguous over nodes, so that one resource is a linear read.

from libc.stdint cimport int64_t, uint8_t

# The state of a search: the best node so far and its score. No node yet: -1 and infinity.
cdef struct Best:
    Py_ssize_t node
    double score

# Search nodes first..stop-1. Invariant: `best` is the earliest node of all that were searched with
# the smallest score. Touches nothing but `best`.
cdef void scan(const int64_t* free, Py_ssize_t n_resource, Py_ssize_t n_node,
               const int64_t* demand, const uint8_t* eligible, const double* scale,
               Py_ssize_t first, Py_ssize_t stop, Best* best) noexcept nogil

# Search all nodes from `start` around to it; the node or -1.
cdef Py_ssize_t search(const int64_t* free, Py_ssize_t n_resource, Py_ssize_t n_node,
                       const int64_t* demand, const uint8_t* eligible, const double* scale,
                       Py_ssize_t start) noexcept nogil
