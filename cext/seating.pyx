# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True
"""Where a request goes: the questions to the index in the order of what is preferred, and what a seat takes.

**Edge** in the sense that a Seating is changed in place; its answers depend on its state alone. Static constraints
and preferences are levels; hard groups and excluded nodes are left out; soft groups are first obeyed and then given
up, so nodes are asked for in order of their penalty, and among equal penalties the index decides.
"""

from cext.cells cimport Bins, Cells
from cext.groups cimport Group
from cext.places cimport Place, Places, const_mask
from cext.state cimport (
    DONE, Fleet, FleetState, Outcome, best_among, best_node, best_unmasked, check_outcome, check_slot, key_of,
    node_before, shift_shape,
)
from cython cimport no_gc
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free

cdef extern from *:
    int __builtin_popcount(uint32_t bits) nogil


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


cdef class Seating(Places):
    """The index of the nodes, their cells, and the groups: finds seats, and takes and gives what they hold.

    `new_choice((cell, ..))` makes what a seat on cells takes by name, `nothing` is that of one without.
    `soft_penalty`: of a soft group that is not obeyed.
    """

    def __class_getitem__(cls, choice):
        return cls

    def __cinit__(self, FleetState index not None, Cells cells not None, object new_choice, object nothing,
                  int64_t soft_penalty):
        self.cells, self.choices = cells, {}
        self.new_choice, self.nothing, self.soft_penalty = new_choice, nothing, soft_penalty
        self.entered, self.starts = [], []

    def set_groups(self, object groups not None):
        """Name to Group: all that there are from now on. Not while a mark is open."""
        if self.starts:
            raise RuntimeError("a mark is open: roll back or keep it first")
        Places.set_groups(self, groups)

    # ---- questions

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
