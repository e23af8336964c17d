# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True
"""Where a request may go: the places that its groups and the nodes that it names leave.

**Edge** in the sense that Places are changed in place; answers depend on their state alone. Units: places.pxd.
"""

from operator import index as as_int

from cext.state cimport MASKS_MAX, FleetState, check_slot
from cpython.dict cimport PyDict_GetItem
from cpython.object cimport PyObject
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memset

MASKS_KEPT = 1024  # of groups: 13 MB at 100,000 nodes; the others' are made anew when they are asked for
assert GROUPS_MAX + 1 <= MASKS_MAX


cdef inline bint has_bit(const uint64_t* mask, uint32_t bit):
    return mask[bit // 64] >> bit % 64 & 1


cdef class Places:
    """The placement groups of an index's nodes."""

    def __cinit__(self, FleetState index not None, *args):
        self.index = index
        self.groups, self.made = {}, []
        self.picked = <int32_t*>malloc(PICKED_MAX * sizeof(int32_t))
        self.only = <int32_t*>malloc(PICKED_MAX * sizeof(int32_t))
        if self.picked == NULL or self.only == NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self.scratch)
        free(self.picked)
        free(self.only)

    # ---- groups

    def set_groups(self, object groups not None):
        """Name to Group: all that there are from now on."""
        if not all(isinstance(group, Group) for group in groups.values()):
            raise TypeError("groups must be of Group")
        self.groups = dict(groups)
        self.made = [group for group in self.groups.values() if (<Group>group).closed != NULL]

    cdef tuple group_of(self, tuple names):
        """The groups; None if one is unknown. At most GROUPS_MAX."""
        cdef PyObject* found
        cdef list groups = []
        if len(names) > GROUPS_MAX:
            raise ValueError(f"{len(names)} groups, at most {GROUPS_MAX}")
        for name in names:
            found = PyDict_GetItem(self.groups, name)
            if found == NULL:
                return None
            groups.append(<Group>found)
        return tuple(groups)

    def known(self, tuple names not None):
        """Those of the groups that are known."""
        return tuple([self.groups[name] for name in names if name in self.groups])

    def count(self, tuple names not None, int64_t slot, int by):
        """So many members more are on the node, in each of the groups that is known."""
        cdef Group group
        check_slot(slot)
        for name in names:
            found = self.groups.get(name)
            if found is not None:
                group = <Group>found
                group.shift(<uint32_t>slot, by)

    def admitted(self, tuple names not None, object excluded, object slots):
        """Those of the slots that hard groups and excluded slots leave, in their order."""
        cdef tuple groups = self.group_of(names)
        cdef int i
        cdef bint open_
        found = []
        if groups is None:
            return found
        self.look_up(groups)
        self.narrow(excluded, None)
        for slot in slots:
            check_slot(slot)
            open_ = True
            for i in range(self.hard_count):
                open_ &= not has_bit(self.hard[i].mask, slot)
            if open_:
                found.append(slot)
        return found

    cdef int look_up(self, tuple groups) except -1:
        """What each of the groups leaves, hard and soft ones apart."""
        cdef Group group
        cdef Place place
        self.hard_count = self.soft_count = 0
        if len(self.made) + len(groups) > MASKS_KEPT:
            for group in self.made:
                group.forget()
            self.made.clear()
        for group in groups:
            if group.closed == NULL:
                self.made.append(group)
            group.ready()
            if <uint64_t>group.words * 64 < self.index.fleet.slots:
                raise ValueError("there are nodes whose domains were not set")
            place = Place(group.closed, group.homes, group.home_count)
            if group.hard:
                self.hard[self.hard_count] = place
                self.hard_count += 1
            else:
                self.soft[self.soft_count] = place
                self.soft_count += 1
        return 0

    cdef int narrow(self, object excluded, object among) except -1:
        """Slots that are left out, and the only ones if `among` is not None: one more hard place."""
        cdef uint32_t words = self.index.fleet.slots // 64 + 1, only_count = 0
        cdef int64_t slot
        self.reserve_scratch(words)
        memset(self.scratch, 0 if among is None else 0xFF, words * sizeof(uint64_t))
        for one in among or ():
            slot = as_int(one)
            if 0 <= slot < self.index.fleet.slots and has_bit(self.scratch, <uint32_t>slot):
                self.scratch[slot // 64] &= ~(<uint64_t>1 << slot % 64)
                if only_count < PICKED_MAX:
                    self.only[only_count] = <int32_t>slot
                only_count += 1
        for one in excluded:
            slot = as_int(one)
            if 0 <= slot < self.index.fleet.slots:
                self.scratch[slot // 64] |= <uint64_t>1 << slot % 64
        listed = among is not None and only_count <= PICKED_MAX
        self.hard[self.hard_count] = Place(self.scratch, self.only, <int32_t>only_count if listed else -1)
        self.hard_count += 1
        return 0

    cdef int reserve_scratch(self, uint32_t words) except -1:
        if words <= self.scratch_words:
            return 0
        free(self.scratch)
        self.scratch_words = 0
        self.scratch = <uint64_t*>malloc(2 * words * sizeof(uint64_t))
        if self.scratch == NULL:
            raise MemoryError
        self.scratch_words = 2 * words
        return 0

    # ---- places

    cdef int64_t pick(self, const Place* only, const_mask* masks, int count, Bins bins):
        """Those of the only slots (or their bins) that no mask closes, into `picked`; -1: they are too many."""
        cdef int64_t found = 0
        cdef uint32_t slot, each
        cdef int32_t i
        cdef int m
        cdef bint open_
        for i in range(only.only_count):
            slot = <uint32_t>only.only[i]
            open_ = True
            for m in range(count):
                open_ &= not has_bit(masks[m], slot)
            if not open_:
                continue
            if bins is None:
                if found == PICKED_MAX:
                    return -1
                self.picked[found] = <int32_t>slot
                found += 1
            elif slot < bins.slots_room:
                if found + bins.bin_counts[slot] > PICKED_MAX:
                    return -1
                for each in range(bins.bin_counts[slot]):
                    self.picked[found] = <int32_t>bins.of_slot[slot][each]
                    found += 1
        return found

    cdef int gather(self, uint32_t broken, const_mask* masks, const Place** only):
        """How many masks hold where all but the `broken` soft groups are obeyed; the shortest list that holds."""
        cdef const Place* place
        cdef int i, count = 0
        only[0] = NULL
        for i in range(self.hard_count + self.soft_count):
            if i >= self.hard_count and broken >> (i - self.hard_count) & 1:
                continue
            place = &self.hard[i] if i < self.hard_count else &self.soft[i - self.hard_count]
            masks[count] = place.mask
            count += 1
            if place.only_count >= 0 and (only[0] == NULL or place.only_count < only[0].only_count):
                only[0] = place
        return count

    def where(self, tuple names not None, tuple given_up not None, object excluded):
        """Where a request may go that obeys all groups but `given_up`: the slots that are left out, and the only
        ones or None. None: a group is unknown.
        """
        cdef tuple groups = self.group_of(names)
        cdef const_mask[9] masks
        cdef const Place* only
        cdef uint32_t slot
        cdef int i, count
        cdef bint closed
        if groups is None:
            return None
        self.look_up(self.group_of(tuple([name for name in names if name not in given_up])))
        if excluded:
            self.narrow(excluded, None)
        count = self.gather(0, masks, &only)
        i = <int>self.pick(only, masks, count, None) if only != NULL else -1
        if i >= 0:
            return (), [self.picked[at] for at in range(i)]
        left_out = set()
        for slot in range(self.index.fleet.slots if count else 0):
            closed = False
            for i in range(count):
                closed |= has_bit(masks[i], slot)
            if closed:
                left_out.add(slot)
        return left_out, None
