# A fleet's nodes, shapes and journal. Specification: scheduler/reference.py; C: cext/*.h.
#
# Units and shapes, everywhere in this module:
#   free     int64[n_resource]  what is free on a node, in the resource's unit; negative = overcommitted
#   demand   int64[n_resource]  what a shape takes, >= 0; 0 = not asked for, does not constrain
#   slot     int                a node's place, chosen by the caller, 0 <= slot < SLOTS_MAX
#   attr     int                what a node is but for its amounts; -1 = takes nothing
#   cset     int                a set of constraints; eligible(cset, attr) says whether it may go there
#   size     int64[n_resource]  what a node has when nothing runs on it; norm `slots` only
#   kind     int                id of the demand of what runs; norm `slots` only
#   until_s  int64              when what runs on a node will have gone; FOREVER = unknown; with lifetimes only
#   level    int                of the time that an instance lasts: 1 an hour, 2 ten, 3 a hundred, 4 more or unknown
#   rank     uint64             the canonical order of nodes that are equal, smallest first; all different
#   shape    int                id of a (demand, cset), counted from 0
#
# Functions of the core hold no Python object and need no GIL. Results below 0 are Outcome or -1 = fits nowhere.

from libc.stdint cimport int16_t, int32_t, int64_t, uint8_t, uint32_t, uint64_t

cdef extern from "setup_fleet.h" nogil:
    const int RESOURCES_MAX, RANKED_MAX, MASKS_MAX, PLACES_MAX, POTENTIAL_MAX, LEVELS, EMPTY_BIT, ATTR_MASK
    const int64_t FOREVER
    const uint32_t SLOTS_MAX, SHAPES_MAX, ATTRS_MAX, CSETS_MAX, NONE

    ctypedef enum Norm:
        NORM_LINF, NORM_L1, NORM_L2, NORM_WORST, NORM_DOT, NORM_POTENTIAL, NORM_SLOTS
    ctypedef enum Outcome:
        DONE, NO_MEMORY, NOT_A_NODE, OVERFLOWS

    ctypedef struct Node:
        uint64_t rank
        uint32_t cls
    ctypedef struct Class:
        int32_t attr
        uint32_t count
    ctypedef struct Shape:
        int32_t cset
    ctypedef struct Filters:
        const char* name
    ctypedef struct Crowd:
        uint32_t kind_count
        bint stale, idle, lifetimes
        int64_t now_s
    ctypedef struct Fleet:
        Crowd* crowd
        bint counts
        int64_t* until_s
        int32_t rows, scored, width
        Norm norm
        int32_t* place
        int32_t* potential_row
        int64_t* potential_step
        int64_t* potential_size
        int32_t potential_rows
        int32_t* potential
        int64_t* size  # [slot][width], with a crowd
        Node* nodes
        uint32_t slots, node_count, classes_alive, shape_count, lanes, marks
        uint32_t csets_room, attrs_room
        Class* classes
        int64_t* free
        int32_t* units
        int32_t* want
        int64_t* demand
        Shape* shapes
        size_t change_count, bytes
        uint64_t refills, created
        const Filters* filters

    const Filters* FILTERS
    int filters_usable()
    Fleet* fleet_new(int32_t rows, const uint64_t* multiplier, const uint8_t* shift, const uint8_t* scored,
                     Norm norm, uint32_t lanes_max, const int64_t* largest, Crowd* crowd)
    void fleet_free(Fleet* f)
    bint is_node(const Fleet* f, uint32_t slot)
    int64_t add_shape(Fleet* f, const int64_t* demand, int32_t cset, uint32_t kind, uint8_t level)
    int64_t add_kind(Crowd* c, const int64_t* demand)
    void count_kind(Crowd* c, uint32_t kind, int64_t change)
    void refresh(Fleet* f)
    int levels_late(const Fleet* f, uint32_t cls, uint32_t shape)
    uint64_t room_lost(const Fleet* f, uint32_t cls, uint32_t shape)
    bint reserve_eligible(Fleet* f, uint32_t csets, uint32_t attrs)
    bint set_eligible(Fleet* f, uint32_t cset, uint32_t attr, bint eligible)
    Outcome set_node(Fleet* f, uint32_t slot, const int64_t* amounts, int32_t attr, uint64_t rank,
                     const int64_t* size)
    Outcome set_until(Fleet* f, uint32_t slot, int64_t until_s)
    Outcome set_time(Fleet* f, int64_t now_s)
    Outcome set_attr(Fleet* f, uint32_t slot, int32_t attr)
    Outcome remove_node(Fleet* f, uint32_t slot)
    Outcome shift_shape(Fleet* f, uint32_t slot, uint32_t shape, int sign)
    Outcome shift_amounts(Fleet* f, uint32_t slot, const int64_t* amounts, int sign)
    Outcome undo(Fleet* f, size_t count)
    void keep_changes(Fleet* f)
    int64_t best_node(Fleet* f, uint32_t shape)
    int64_t place_one(Fleet* f, uint32_t shape)
    int64_t scan_one(Fleet* f, uint32_t shape)
    int64_t best_excluding(Fleet* f, uint32_t shape, const int32_t* slots, size_t count)
    int64_t best_unmasked(Fleet* f, uint32_t shape, const uint64_t** masks, uint32_t count, const uint32_t* mask_bit)
    bint node_before(const Fleet* f, uint64_t key_a, uint32_t a, uint64_t key_b, uint32_t b)
    int64_t best_among(Fleet* f, uint32_t shape, const int32_t* slots, size_t count)
    uint64_t fitting_count(const Fleet* f, uint32_t shape)
    int64_t rank_nodes(Fleet* f, uint32_t shape, uint32_t count, int32_t* slots, uint64_t* keys)
    bint fits(const Fleet* f, uint32_t cls, uint32_t shape)
    uint64_t key_of(const Fleet* f, uint32_t cls, uint32_t shape)
    const int64_t* free_of(const Fleet* f, uint32_t cls)


cdef class FleetState:
    cdef Fleet* fleet
    cdef bint busy      # a call without the GIL is under way
    cdef dict shape_ids  # (demand as bytes, cset) -> shape
    cdef dict kind_ids   # demand as bytes -> kind
    cdef FleetState crowd_of  # whose crowd it is; keeps it alive
    cdef list marks      # the journal's length at each open mark
    cdef int check_free(self) except -1
    cdef int check_shape(self, int64_t shape) except -1
    cdef uint32_t class_at(self, int64_t slot) except? 4294967295
    cdef int read_amounts(self, object amounts, int64_t* row, bint demand) except -1
    cdef int64_t kind_of(self, const int64_t* row) except -1
    cdef int check_no_marks(self) except -1


cdef int check_slot(int64_t slot) except -1
cdef int check_attr(int64_t attr) except -1
cdef int check_shapes(const int32_t[::1] shapes, uint32_t count) except -1
cdef int check_outcome(int64_t outcome, int64_t slot) except -1
