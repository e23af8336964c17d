# The node on which a request costs a fleet's devices the least. Specification: scheduler/gpu_reference.py.
#
# Units and shapes, everywhere in this module:
#   free     int64[n_resource]  what is free on a node, in the resource's unit; negative = overcommitted
#   left     int32[n_device]    thousandths that a device has left, 0 to 1000
#   model    uint8[n_device]    the number of the device's model, 0 to 63
#   models   uint64             a set of models, a bit each
#   slot     int                a node's place, chosen by the caller, 0 <= slot < SLOTS_MAX
#   attr     int                what a node is but for its amounts; -1 = takes nothing
#   cset     int                a set of constraints; eligible(cset, attr) says whether it may go there
#   room     int64              how much is free in all, for nodes of equal cost, smallest first
#   rank     uint64             the canonical order of nodes that are equal, smallest first; all different
#   cost     int64              weighted losses, in thousandths of a device times 65536; smaller is better
#
# A shape that is asked for has a row of cells, one a slot. A cell holds the cost until the node's stamp is
# another: each change of a node gives it a new one, a new workload gives one to all.

from libc.stdint cimport int32_t, int64_t, uint8_t, uint64_t

cdef enum:
    RESOURCES_MAX = 56     # as of cext.index
    DEVICES_MAX = 256      # of a node
    WHOLE = 1000           # thousandths of a device
    RATE_BITS = 32
    UNIT_BITS = 16
    UNFIT = -2             # a cell's device where the node does not take the shape
    SEVERAL = -1           # no device is chosen, or the first that can be used

cdef struct Shape:
    int64_t* need          # int64[n_resource]; INT64_MIN where nothing is asked for
    int64_t* take          # int64[n_resource]
    uint64_t models
    int32_t count, milli

# Typical shapes that want the same of devices: the ones from `first` to before `last`.
cdef struct Want:
    uint64_t models
    int32_t count, milli
    Py_ssize_t first, last

cdef struct Cell:
    int64_t cost
    uint64_t stamp         # of the node when it was judged; 0 = never
    int32_t device         # of a share; SEVERAL or UNFIT

cdef struct Burden:
    int64_t fragments, stranded, worth

cdef struct State:
    Py_ssize_t rows, width, slots
    int64_t* free          # int64[slots, rows]
    int32_t* left          # int32[slots, width]
    uint8_t* model         # uint8[slots, width]
    int32_t* devices       # int32[slots]; -1 = no node
    int32_t* attr          # int32[slots]
    int64_t* room          # int64[slots]
    uint64_t* rank         # uint64[slots]
    uint64_t* stamp        # uint64[slots]
    int64_t* before        # int64[slots]: the weighted burden as the node is; valid where before_stamp is stamp
    uint64_t* before_stamp # uint64[slots]
    Want* wants            # n_want
    Py_ssize_t want_count
    int64_t* need          # int64[n_typical, rows]; INT64_MIN where nothing is asked for
    int64_t* weight        # int64[n_typical]
    int64_t* prices        # int64[1001], rising
    int64_t* rates         # int64[rows]; 0 = not asked for
    int64_t[64] scarcity   # by model: what a thousandth is worth besides its price
    int64_t fragments_weight, stranded_weight, worth_weight


cdef class Row:
    cdef Cell* cells
    cdef Py_ssize_t slots
    cdef uint64_t used


cdef class DeviceIndex:
    cdef State state
    cdef list arrays                # owners of what the state points to
    cdef list shapes, rows_of       # _Shape and Row or None, by id
    cdef dict shape_ids
    cdef object eligible            # uint8[cset, attr]
    cdef uint64_t clock, uses
    cdef Py_ssize_t node_count, row_count, cells_max
    cdef bint busy                  # a call without the GIL is under way
    cdef int check_free(self) except -1
    cdef void judge_anew(self) noexcept
    cdef dict sort_typical(self, list typical)
    cdef int grow(self, Py_ssize_t slots, Py_ssize_t width) except -1
    cdef Shape* shape_at(self, Py_ssize_t shape) except NULL
    cdef Row row(self, Py_ssize_t shape)
    cdef int forget_row(self) except -1
    cdef Py_ssize_t ask(self, Py_ssize_t shape, Py_ssize_t cset, object slots, bint wanted) except -2
    cdef int check_slot(self, Py_ssize_t slot) except -1
