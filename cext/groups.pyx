# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True
"""Where placement groups let their next member go: a mask of closed nodes for each group, kept while members come
and go. Equals `scheduler.group.Occupancy.allows` on every state.

**Edge** in the sense that scopes and groups are changed in place. A mask is made when it is first asked for, and anew
when nodes have changed their domains. Shapes and units: groups.pxd.
"""

from cext.state cimport NONE, check_slot
from cpython.dict cimport PyDict_DelItem, PyDict_GetItem, PyDict_SetItem
from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy, memset


cdef class Scope:
    """The domains of one kind: every node is in one, or in none."""

    def __cinit__(self):
        self.ids, self.names, self.vacant = {}, [], []

    def __dealloc__(self):
        cdef uint32_t domain
        for domain in range(self.domains_room):
            free(self.domains[domain].slots)
        free(self.domains)
        free(self.domain_of)
        free(self.nowhere)

    cdef int reserve(self, uint32_t slot) except -1:
        cdef uint32_t have = self.slots_room, room = have if have else 1024
        cdef void* larger
        if slot < have:
            return 0
        while room <= slot:
            room *= 2
        larger = realloc(self.domain_of, room * sizeof(uint32_t))
        if larger == NULL:
            raise MemoryError
        self.domain_of = <uint32_t*>larger
        larger = realloc(self.nowhere, room // 8)
        if larger == NULL:
            raise MemoryError
        self.nowhere = <uint64_t*>larger
        memset(self.domain_of + have, 0xFF, (room - have) * sizeof(uint32_t))  # NONE
        memset(self.nowhere + have // 64, 0xFF, (room - have) // 8)
        self.slots_room = room
        self.version += 1
        return 0

    def set_domain(self, int64_t slot, str name not None):
        """The node is in that domain from now on; empty: in none. Not while a group has members there."""
        cdef uint32_t old
        check_slot(slot)
        self.reserve(<uint32_t>slot)
        old = self.domain_of[slot]
        if (self.names[old] if old != NONE else "") == name:
            return
        self.version += 1
        if old != NONE:
            self.leave(<uint32_t>slot)
        if name:
            self.join(<uint32_t>slot, self.domain_named(name))

    def name_at(self, int64_t slot):
        """The node's domain; empty if it has none."""
        if not 0 <= slot < self.slots_room or self.domain_of[slot] == NONE:
            return ""
        return self.names[self.domain_of[slot]]

    cdef uint32_t domain_named(self, object name) except? 4294967295:
        cdef uint32_t domain, room
        cdef void* larger
        known = self.ids.get(name)
        if known is not None:
            return known
        if self.vacant:
            domain = self.vacant.pop()
            self.names[domain] = name
        else:
            domain = <uint32_t>len(self.names)
            if domain == self.domains_room:
                room = 2 * domain if domain else 64
                larger = realloc(self.domains, room * sizeof(Domain))
                if larger == NULL:
                    raise MemoryError
                self.domains = <Domain*>larger
                memset(self.domains + domain, 0, (room - domain) * sizeof(Domain))
                self.domains_room = room
            self.names.append(name)
        self.ids[name] = domain
        return domain

    cdef int join(self, uint32_t slot, uint32_t domain) except -1:
        cdef Domain* d = &self.domains[domain]
        cdef uint32_t room
        cdef void* larger
        if d.count == 0:
            d.one = slot
        elif d.count >= d.room:
            room = 2 * d.room if d.room else 8
            larger = realloc(d.slots, room * sizeof(uint32_t))
            if larger == NULL:
                raise MemoryError
            d.slots = <uint32_t*>larger
            if d.room == 0:
                d.slots[0] = d.one
            d.room = room
        if d.slots != NULL:
            d.slots[d.count] = slot
        d.count += 1
        self.domain_of[slot] = domain
        self.nowhere[slot // 64] &= ~(<uint64_t>1 << slot % 64)
        return 0

    cdef int leave(self, uint32_t slot) except -1:
        cdef uint32_t domain = self.domain_of[slot], at = 0
        cdef Domain* d = &self.domains[domain]
        d.count -= 1
        if d.slots != NULL:
            while d.slots[at] != slot:
                at += 1
            d.slots[at] = d.slots[d.count]
        self.domain_of[slot] = NONE
        self.nowhere[slot // 64] |= <uint64_t>1 << slot % 64
        if d.count == 0:
            free(d.slots)
            d.slots = NULL
            d.room = 0
            del self.ids[self.names[domain]]
            self.names[domain] = None
            self.vacant.append(domain)
        return 0


cdef class Group:
    """A placement group. `limit`: members that one domain may hold; `members`: a Counter that is changed here only."""

    def __cinit__(self, Scope scope not None, bint affinity, bint hard, int64_t limit, object members not None):
        if not isinstance(members, dict):
            raise TypeError("members must be a Counter")
        self.scope, self.affinity, self.hard, self.limit, self.members = scope, affinity, hard, limit, members

    def __dealloc__(self):
        free(self.closed)
        free(self.homes)

    cdef bint closes(self, int64_t count):
        """A domain with so many members takes no more."""
        return count >= self.limit or (self.affinity and count == 0 and len(self.members) > 0)

    cdef int mark(self, uint32_t domain, bint closed) except -1:
        cdef Domain* d = &self.scope.domains[domain]
        cdef const uint32_t* slots = d.slots if d.slots != NULL else &d.one
        cdef uint32_t i
        for i in range(d.count):
            if closed:
                self.closed[slots[i] // 64] |= <uint64_t>1 << slots[i] % 64
            else:
                self.closed[slots[i] // 64] &= ~(<uint64_t>1 << slots[i] % 64)
        return 0

    cdef int make(self) except -1:
        cdef uint32_t words = self.scope.slots_room // 64
        cdef void* block
        cdef bint away = self.affinity and len(self.members) > 0
        if words != self.words:
            block = realloc(self.closed, (words + 1) * 8)
            if block == NULL:
                raise MemoryError
            self.closed = <uint64_t*>block
            self.words = words
        if away:
            memset(self.closed, 0xFF, words * 8)
        elif words:
            memcpy(self.closed, self.scope.nowhere, words * 8)
        for name, count in self.members.items():
            known = self.scope.ids.get(name)
            if known is not None and self.closes(count) != away:
                self.mark(<uint32_t>known, not away)
        self.version = self.scope.version
        self.made = True
        return 0

    cdef int find_homes(self) except -1:
        cdef Domain* d
        cdef const uint32_t* slots
        cdef uint32_t i
        cdef int32_t found = 0
        self.homes_known = True
        self.home_count = -1
        if not self.affinity or not self.members:
            return 0
        if self.homes == NULL:
            self.homes = <int32_t*>malloc(HOMES_MAX * sizeof(int32_t))
            if self.homes == NULL:
                raise MemoryError
        for name, count in self.members.items():
            known = self.scope.ids.get(name)
            if known is None or self.closes(count):
                continue
            d = &self.scope.domains[<uint32_t>known]
            if found + <int64_t>d.count > HOMES_MAX:
                return 0
            slots = d.slots if d.slots != NULL else &d.one
            for i in range(d.count):
                self.homes[found] = <int32_t>slots[i]
                found += 1
        self.home_count = found
        return 0

    cdef int ready(self) except -1:
        """Mask and homes hold."""
        if not self.made or self.version != self.scope.version:
            self.make()
            self.homes_known = False
        if not self.homes_known:
            self.find_homes()
        return 0

    def count(self, int64_t slot, int by):
        """As `shift`."""
        check_slot(slot)
        self.shift(<uint32_t>slot, by)

    cdef int shift(self, uint32_t slot, int by) except -1:
        """So many members more are on the node; a node without a domain does not count."""
        cdef uint32_t domain = self.scope.domain_of[slot] if slot < self.scope.slots_room else NONE
        cdef int64_t before, after
        cdef PyObject* known
        if domain == NONE:
            return 0
        name = self.scope.names[domain]
        known = PyDict_GetItem(self.members, name)
        before = <object>known if known != NULL else 0
        after = before + by
        cdef bint were = len(self.members) > 0
        if after:
            PyDict_SetItem(self.members, name, after)
        elif known != NULL:
            PyDict_DelItem(self.members, name)
        self.homes_known = False
        if not self.made:
            return 0
        if self.version != self.scope.version or (self.affinity and were != (len(self.members) > 0)):
            self.made = False
        elif self.affinity or (before >= self.limit) != (after >= self.limit):
            self.mark(domain, self.closes(after))
        return 0

    def is_closed(self, int64_t slot):
        """Whether the node takes no more member."""
        check_slot(slot)
        self.ready()
        return slot >= <int64_t>self.words * 64 or self.closed[slot // 64] >> (slot % 64) & 1 == 1

    def forget(self):
        """Free what can be made again."""
        free(self.closed)
        free(self.homes)
        self.closed = NULL
        self.homes = NULL
        self.words = 0
        self.homes_known = False
        self.made = False
