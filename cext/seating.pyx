# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True
"""Where a request goes: the questions to the index in the order of what is preferred, and what a seat takes.

**Edge** in the sense that a Seating is changed in place; its answers depend on its state alone. Static constraints
and preferences are levels; hard groups and excluded nodes are left out; soft groups are first obeyed and then given
up, so nodes are asked for in order of their penalty, and among equal penalties the index decides.
"""

from operator import index as as_int

from cext.state cimport (
    DONE, MASKS_MAX, Fleet, FleetState, Outcome, best_among, best_node, best_unmasked, check_outcome, check_slot, key_of, node_before,
    shift_shape,
)
from cython cimport no_gc
from cpython.dict cimport PyDict_GetItem
from cpython.object cimport PyObject
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memset

MASKS_KEPT = 1024  # of groups: 13 MB at 100,000 nodes; the others' are made anew when they are asked for
assert GROUPS_MAX + 1 <= MASKS_MAX


cdef extern from *:
    int __builtin_popcount(uint32_t bits) nogil


cdef inline bint has_bit(const uint64_t* mask, uint32_t bit):
    return mask[bit // 64] >> bit % 64 & 1


cdef class Asked:
    """What a request asks for but for groups and nodes by name; the same for all that ask for the same.

    `levels`: (penalty, tier, shape, shape in the index of the bins) in order, of different (penalty, tier).
    `vcpu`, `memory_mib`: the part of each of `cells`; cells=0: it asks for none.
    """

    def __cinit__(self, object levels not None, int cells=0, int64_t vcpu=0, int64_t memory_mib=0):
        cdef uint32_t i = 0
        if list(levels) != sorted(levels) or len({one[:2] for one in levels}) < len(levels):
            raise ValueError("levels must be in order, each of its own (penalty, tier)")
        self.cells, self.vcpu, self.memory_mib = cells, vcpu, memory_mib
        self.levels = <Level*>calloc(len(levels) + 1, sizeof(Level))
        if self.levels == NULL:
            raise MemoryError
        for penalty, tier, shape, bin_shape in levels:
            self.levels[i] = Level(penalty, tier, shape, bin_shape)
            i += 1
        self.level_count = i

    def __dealloc__(self):
        free(self.levels)


@no_gc  # nothing that a seat refers to refers to seats
cdef class Seat:
    """A node's slot, the shape that is taken there, and what is taken by name (`choice`). Made by a Seating."""

    def __class_getitem__(cls, choice):
        return cls


cdef class Seating:
    """The index of the nodes, their cells, and the groups: finds seats, and takes and gives what they hold.

    `new_choice((cell, ..))` makes what a seat on cells takes by name, `nothing` is that of one without.
    `soft_penalty`: of a soft group that is not obeyed.
    """

    def __class_getitem__(cls, choice):
        return cls

    def __cinit__(self, FleetState index not None, Cells cells not None, object new_choice, object nothing,
                  int64_t soft_penalty):
        self.index, self.cells = index, cells
        self.groups, self.made, self.choices = {}, [], {}
        self.new_choice, self.nothing, self.soft_penalty = new_choice, nothing, soft_penalty
        self.entered, self.starts = [], []
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
        """Name to Group: all that there are from now on. Not while a mark is open."""
        if self.starts:
            raise RuntimeError("a mark is open: roll back or keep it first")
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

    # ---- questions

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

    cdef int64_t ask(self, Fleet* fleet, Bins bins, uint32_t shape, uint32_t broken) except -2:
        """The best node (or bin) where all but the `broken` soft groups are obeyed; -1: none."""
        cdef const_mask[9] masks
        cdef const Place* only
        cdef int64_t found
        cdef int count = self.gather(broken, masks, &only)
        found = self.pick(only, masks, count, bins) if only != NULL else -1
        if found >= 0:
            found = best_among(fleet, shape, self.picked, <size_t>found)
        elif count:
            found = best_unmasked(fleet, shape, masks, <uint32_t>count, NULL if bins is None else bins.slot_of)
        else:
            found = best_node(fleet, shape)
        if found < -1:
            check_outcome(found, -1)
        return found

    cdef int64_t decide(self, Asked asked, Bins bins, uint32_t* shape) except -2:
        """Every level with every set of soft groups that are given up, in order of (penalty, tier)."""
        cdef Fleet* fleet = self.index.fleet if bins is None else bins.index.fleet
        cdef uint32_t[9] at
        cdef int broken, least
        cdef uint32_t given_up, mine
        cdef int64_t penalty, tier, found, best = -1
        cdef uint64_t key, best_key = 0
        cdef const Level* level
        for broken in range(self.soft_count + 1):
            at[broken] = 0
        while best < 0:
            least = -1
            penalty = tier = 0
            for broken in range(self.soft_count + 1):
                if at[broken] == asked.level_count:
                    continue
                level = &asked.levels[at[broken]]
                found = level.penalty + broken * self.soft_penalty
                if least < 0 or found < penalty or (found == penalty and level.tier < tier):
                    least, penalty, tier = broken, found, level.tier
            if least < 0:
                return -1
            for broken in range(least, self.soft_count + 1):
                if at[broken] == asked.level_count:
                    continue
                level = &asked.levels[at[broken]]
                if level.penalty + broken * self.soft_penalty != penalty or level.tier != tier:
                    continue
                at[broken] += 1
                mine = level.shape if bins is None else level.bin_shape
                for given_up in range(<uint32_t>1 << self.soft_count):
                    if __builtin_popcount(given_up) != broken:
                        continue
                    found = self.ask(fleet, bins, mine, given_up)
                    if found < 0:
                        continue
                    key = key_of(fleet, fleet.nodes[found].cls, mine)
                    if best < 0 or node_before(fleet, key, <uint32_t>found, best_key, <uint32_t>best):
                        best, best_key, shape[0] = found, key, level.shape
        return best

    def find(self, Asked asked not None, tuple names not None, object excluded=(), object among=None):
        """The seat that a request gets; None: no node takes it.

        `names`: of its groups; `excluded`: slots; `among`: the only slots.
        """
        cdef tuple groups = ()
        cdef Bins bins = None
        cdef int64_t found
        cdef uint32_t shape = 0
        self.hard_count = self.soft_count = 0
        if names:
            groups = self.group_of(names)
            if groups is None:
                return None
            self.look_up(groups)
        if excluded or among is not None:
            self.narrow(excluded, among)
        if asked.cells:
            if self.cells.bins[asked.cells] is None:
                return None
            bins = self.cells.ready(asked.cells)
        found = self.decide(asked, bins, &shape)
        if found < 0:
            return None
        return self.seat_on(asked, found if bins is None else bins.slot_of[found], shape, groups)

    cdef Seat seat_on(self, Asked asked, int64_t slot, uint32_t shape, tuple groups):
        cdef Seat seat = Seat.__new__(Seat)
        seat.slot, seat.shape, seat.groups, seat.choice = slot, shape, groups, self.nothing
        if not asked.cells:
            return seat
        seat.cells = self.cells.choose(<uint32_t>slot, asked.cells, asked.vcpu, asked.memory_mib)
        if not seat.cells:
            raise AssertionError(f"slot {slot} has a bin that fits, and no cells")
        seat.vcpu, seat.memory_mib = asked.vcpu, asked.memory_mib
        choice = self.choices.get(seat.cells)
        if choice is None:
            numbers = tuple([i for i in range(32) if seat.cells >> i & 1])
            choice = self.choices[seat.cells] = self.new_choice(numbers)
        seat.choice = choice
        return seat

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

    # ---- seats

    def seat(self, int64_t slot, int64_t shape, tuple names, object choice, tuple cells=(), int64_t vcpu=0,
             int64_t memory_mib=0):
        """A seat that was not found here. `cells`: numbers; `vcpu`, `memory_mib`: what is taken of each."""
        cdef Seat seat = Seat.__new__(Seat)
        cdef int number
        seat.slot, seat.shape, seat.groups, seat.choice = slot, shape, self.known(names), choice
        seat.vcpu, seat.memory_mib = vcpu, memory_mib
        for number in cells:
            if 0 <= number < 32:
                seat.cells |= <uint32_t>1 << number
        return seat

    def enter(self, Seat seat not None):
        """Take what the seat takes; until the innermost open mark is rolled back, if one is open."""
        self.shift_all(seat, -1)
        if self.starts:
            self.entered.append(seat)

    def leave(self, Seat seat not None):
        """The inverse of `enter`. Not while a mark is open."""
        if self.starts:
            raise RuntimeError("a mark is open: roll back or keep it first")
        self.shift_all(seat, 1)

    cdef int shift_all(self, Seat seat, int sign) except -1:
        """Take (-1) or give back (1) everything, or nothing."""
        cdef Outcome outcome
        self.index.check_shape(seat.shape)
        check_slot(seat.slot)
        self.shift(seat, sign)
        outcome = shift_shape(self.index.fleet, <uint32_t>seat.slot, <uint32_t>seat.shape, sign)
        if outcome != DONE:
            self.shift(seat, -sign)
            check_outcome(outcome, seat.slot)
        return 0

    cdef int shift(self, Seat seat, int sign) except -1:
        """Everything but the index: cells, which refuse what leaves 64 bits, and groups."""
        cdef Group group
        if seat.cells:
            self.cells.shift(<uint32_t>seat.slot, seat.cells, seat.vcpu, seat.memory_mib, sign)
        self.cells.touch(<uint32_t>seat.slot)
        for group in seat.groups:
            group.shift(<uint32_t>seat.slot, -sign)
        return 0

    def mark(self):
        """From here on what is entered can be taken out."""
        self.starts.append(len(self.entered))
        return self.index.mark()

    def rollback(self, int64_t mark):
        """Take out what was entered since the mark; it and later ones are closed."""
        cdef Py_ssize_t at
        self.index.rollback(mark)
        for at in range(len(self.entered) - 1, self.starts[mark] - 1, -1):
            self.shift(<Seat>self.entered[at], 1)
        del self.entered[self.starts[mark]:]
        del self.starts[mark:]

    def keep(self, int64_t mark):
        """What was entered since the mark stays; it and later ones are closed."""
        self.index.keep(mark)
        del self.starts[mark:]
        if not self.starts:
            self.entered.clear()
