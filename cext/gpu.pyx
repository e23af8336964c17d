# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True
"""The node on which a request costs a fleet's devices the least; equals `scheduler.gpu_reference`.

**Edge** in the sense that a DeviceIndex is changed in place; its answers depend on its state alone, not on how
it came about. Shapes and units: gpu.pxd.
"""

from operator import index as as_int

import numpy as np

from libc.stdint cimport INT64_MIN, int32_t, int64_t, uint8_t, uint64_t
from libc.stdlib cimport calloc
from libc.stdlib cimport free as release
from libc.string cimport memcpy, memset

cdef extern from *:
    """
    typedef unsigned __int128 cumulet_wide;
    static inline int64_t served(int64_t have, int64_t rate, int bits, int64_t most)
    {
        cumulet_wide product = (cumulet_wide)(uint64_t)have * (uint64_t)rate >> bits;
        return product < (cumulet_wide)most ? (int64_t)product : most;
    }
    """
    int64_t served(int64_t have, int64_t rate, int bits, int64_t most) noexcept nogil

cdef enum:
    SLOTS_MAX = 1 << 24
    ATTRS_MAX = 1 << 20
    WEIGHT_MAX = 1000
    TYPICAL_MAX = 1024
    SCARCITY_MAX = 1 << 22
    SHARE_MAX = 1 << 16    # a weight: all together make no sum that leaves 64 bits
    CELLS_MAX = 1 << 22    # of all rows: 96 MiB; costs are found anew beyond it


# ---- what a node's devices are burdened with

cdef inline int32_t able_devices(const int32_t* left, const uint8_t* model, Py_ssize_t count,
                                 uint64_t models, int32_t milli, int64_t* sum) noexcept nogil:
    """How many devices have so much left and are of the models, and what those have left."""
    cdef Py_ssize_t d
    cdef int32_t found = 0
    cdef bint takes
    sum[0] = 0
    for d in range(count):
        takes = (models >> model[d] & 1) & (left[d] >= milli)
        found += takes
        sum[0] += left[d] if takes else 0
    return found


cdef inline bint amounts_fit(const int64_t* free, const int64_t* need, Py_ssize_t rows) noexcept nogil:
    cdef Py_ssize_t r
    cdef int lacks = 0
    for r in range(rows):
        lacks |= free[r] < need[r]
    return not lacks


cdef Burden burden_of(const State* s, const int64_t* free, const int32_t* left, const uint8_t* model,
                      Py_ssize_t count) noexcept nogil:
    """Fragments, stranded and worth of a node."""
    cdef Burden found
    cdef Py_ssize_t d, r, t, w
    cdef int64_t total = 0, used = 0, scarcest
    cdef const Want* want
    memset(&found, 0, sizeof(Burden))
    for d in range(count):
        total += left[d]
        found.worth += s.prices[left[d]] + s.scarcity[model[d]] * left[d]
    if not total:
        return found
    for w in range(s.want_count):
        want = &s.wants[w]
        if able_devices(left, model, count, want.models, want.milli, &used) < want.count:
            used = 0
        for t in range(want.first, want.last):
            found.fragments += s.weight[t] * (total - (used if amounts_fit(free, s.need + t * s.rows, s.rows)
                                                       else 0))
    scarcest = total
    for r in range(s.rows):
        if s.rates[r]:
            scarcest = served(free[r] if free[r] > 0 else 0, s.rates[r], RATE_BITS, scarcest)
    found.stranded = (total - scarcest) << UNIT_BITS
    return found


cdef inline int64_t weighed(const State* s, Burden burden) noexcept nogil:
    return (s.fragments_weight * burden.fragments + s.stranded_weight * burden.stranded
            - s.worth_weight * burden.worth)


cdef inline int64_t less(int64_t have, int64_t want) noexcept nogil:
    """have - want, at least INT64_MIN. want >= 0."""
    return have - want if have >= INT64_MIN + want else INT64_MIN


cdef inline int64_t cost_with(const State* s, const int64_t* free, int32_t* left, const uint8_t* model,
                              Py_ssize_t count, const Shape* shape, Py_ssize_t device) noexcept nogil:
    """The burden after a share of that device is taken; `left` is changed and put back."""
    cdef int64_t cost
    left[device] -= shape.milli
    cost = weighed(s, burden_of(s, free, left, model, count))
    left[device] += shape.milli
    return cost


cdef int64_t judge_share(const State* s, Py_ssize_t slot, const Shape* shape, const int64_t* free,
                         int32_t* device) noexcept nogil:
    """The least burden after the shape has a share of one device, and which device that is."""
    cdef const int32_t* left = s.left + slot * s.width
    cdef const uint8_t* model = s.model + slot * s.width
    cdef Py_ssize_t d, e, count = s.devices[slot]
    cdef int32_t[DEVICES_MAX] later
    cdef int64_t cost, best = 0
    memcpy(later, left, count * sizeof(int32_t))
    device[0] = UNFIT
    for d in range(count):
        if not (shape.models >> model[d] & 1) or left[d] < shape.milli:
            continue
        for e in range(d):
            if left[e] == left[d] and model[e] == model[d]:
                break
        else:
            cost = cost_with(s, free, later, model, count, shape, d)
            if device[0] == UNFIT or cost < best or (cost == best and left[d] < left[device[0]]):
                best = cost
                device[0] = <int32_t>d
    return best


cdef void judge(State* s, Py_ssize_t slot, const Shape* shape, Cell* cell) noexcept nogil:
    """Fill the cell: what the shape costs the node, and of which device it takes a share."""
    cdef const int64_t* have = s.free + slot * s.rows
    cdef const uint8_t* model = s.model + slot * s.width
    cdef Py_ssize_t r, d, count = s.devices[slot]
    cdef int64_t[RESOURCES_MAX] free
    cdef int32_t[DEVICES_MAX] left
    cdef int64_t used, later
    cdef int32_t wanted = shape.count
    cell.stamp = s.stamp[slot]
    cell.device = UNFIT
    if not amounts_fit(have, shape.need, s.rows):
        return
    memcpy(left, s.left + slot * s.width, count * sizeof(int32_t))
    if able_devices(left, model, count, shape.models, shape.milli, &used) < wanted:
        return
    for r in range(s.rows):
        free[r] = less(have[r], shape.take[r])
    if wanted == 1:
        later = judge_share(s, slot, shape, free, &cell.device)
    else:
        for d in range(count):
            if wanted and (shape.models >> model[d] & 1) and left[d] >= shape.milli:
                left[d] -= shape.milli
                wanted -= 1
        cell.device = SEVERAL
        later = weighed(s, burden_of(s, free, left, model, count))
    if s.before_stamp[slot] != s.stamp[slot]:
        s.before[slot] = weighed(s, burden_of(s, have, s.left + slot * s.width, model, count))
        s.before_stamp[slot] = s.stamp[slot]
    cell.cost = later - s.before[slot]


cdef inline bint is_open(const State* s, Py_ssize_t slot, const uint8_t* allowed,
                         Py_ssize_t attrs) noexcept nogil:
    return s.devices[slot] >= 0 and 0 <= s.attr[slot] < attrs and allowed[s.attr[slot]]


cdef inline bint is_before(const State* s, const Cell* cells, Py_ssize_t one, Py_ssize_t other) noexcept nogil:
    if cells[one].cost != cells[other].cost:
        return cells[one].cost < cells[other].cost
    if s.room[one] != s.room[other]:
        return s.room[one] < s.room[other]
    return s.rank[one] < s.rank[other]


cdef Py_ssize_t best_slot(State* s, const Shape* shape, Cell* cells, const uint8_t* allowed, Py_ssize_t attrs,
                          const uint8_t* marked, bint wanted) noexcept nogil:
    """The best slot, -1 if there is none. `marked`: if not NULL, only slots count whose mark is `wanted`."""
    cdef Py_ssize_t slot, best = -1
    for slot in range(s.slots):
        if not is_open(s, slot, allowed, attrs) or (marked != NULL and marked[slot] != wanted):
            continue
        if cells[slot].stamp != s.stamp[slot]:
            judge(s, slot, shape, &cells[slot])
        if cells[slot].device != UNFIT and (best < 0 or is_before(s, cells, slot, best)):
            best = slot
    return best


# ---- shapes and rows

cdef class _Shape:
    """Owns a shape's arrays."""
    cdef Shape shape
    cdef int64_t[:, ::1] amounts

    def __cinit__(self, object amounts, int32_t count, int32_t milli, uint64_t models):
        cdef Py_ssize_t r
        self.amounts = np.zeros((2, max(len(amounts), 1)), dtype=np.int64)
        self.shape.need, self.shape.take = &self.amounts[0, 0], &self.amounts[1, 0]
        self.shape.count, self.shape.milli = count, milli
        self.shape.models = models
        for r in range(len(amounts)):
            self.amounts[1, r] = as_int(amounts[r])
            if self.amounts[1, r] < 0:
                raise ValueError(f"amounts[{r}] is {amounts[r]}, must not be negative")
            self.amounts[0, r] = self.amounts[1, r] if self.amounts[1, r] else INT64_MIN
        if not 0 <= count <= DEVICES_MAX or not (0 if not count else 1) <= milli <= WHOLE:
            raise ValueError(f"{count} devices with {milli} thousandths each: must be 0 to {DEVICES_MAX}"
                             f" with 1 to {WHOLE}")


cdef class Row:
    def __cinit__(self, Py_ssize_t slots):
        self.slots = slots
        self.cells = <Cell*>calloc(max(slots, 1), sizeof(Cell))
        if self.cells == NULL:
            raise MemoryError

    def __dealloc__(self):
        release(self.cells)


cdef class DeviceIndex:
    """A fleet's nodes with their devices. Every method that is given what cannot be raises ValueError."""

    def __init__(self, Py_ssize_t rows, int64_t fragments=0, int64_t stranded=0, int64_t worth=0,
                 Py_ssize_t cells_max=CELLS_MAX):
        if not 1 <= rows <= RESOURCES_MAX:
            raise ValueError(f"rows is {rows}, must be 1 to {RESOURCES_MAX}")
        if not (0 <= fragments <= WEIGHT_MAX and 0 <= stranded <= WEIGHT_MAX and 0 <= worth <= WEIGHT_MAX):
            raise ValueError(f"weights {fragments}, {stranded}, {worth} must be 0 to {WEIGHT_MAX}")
        self.state.fragments_weight = fragments
        self.state.stranded_weight = stranded
        self.state.worth_weight = worth
        self.state.rows = rows
        self.cells_max = cells_max
        self.shapes, self.rows_of, self.shape_ids = [], [], {}
        self.eligible = np.zeros((1, 1), dtype=np.uint8)
        self.clock = 0
        self.arrays = [None, None]
        self.grow(16, 1)
        self.set_workload((), [0] * (WHOLE + 1), [0] * rows)

    def __len__(self):
        return self.node_count

    # ---- state

    cdef int check_free(self) except -1:
        if self.busy:
            raise RuntimeError("a call is under way in another thread")
        return 0

    cdef int grow(self, Py_ssize_t slots, Py_ssize_t width) except -1:
        """Room for so many slots and so many devices of each; what is there stays."""
        cdef Py_ssize_t had = self.state.slots, was = self.state.width
        old = self.arrays[0]
        new = {
            "free": np.zeros((slots, self.state.rows), np.int64), "left": np.zeros((slots, width), np.int32),
            "model": np.zeros((slots, width), np.uint8), "devices": np.full(slots, -1, np.int32),
            "attr": np.zeros(slots, np.int32), "room": np.zeros(slots, np.int64),
            "rank": np.zeros(slots, np.uint64), "stamp": np.zeros(slots, np.uint64),
            "before": np.zeros(slots, np.int64), "before_stamp": np.zeros(slots, np.uint64),
        }
        if old is not None:
            for name, array in old.items():
                new[name][:had] = array if name not in ("left", "model") else 0
                if name in ("left", "model"):
                    new[name][:had, :was] = array
        self.arrays[0] = new
        self.state.slots, self.state.width = slots, width
        self.state.free = <int64_t*>_address(new["free"])
        self.state.left = <int32_t*>_address(new["left"])
        self.state.model = <uint8_t*>_address(new["model"])
        self.state.devices = <int32_t*>_address(new["devices"])
        self.state.attr = <int32_t*>_address(new["attr"])
        self.state.room = <int64_t*>_address(new["room"])
        self.state.rank = <uint64_t*>_address(new["rank"])
        self.state.stamp = <uint64_t*>_address(new["stamp"])
        self.state.before = <int64_t*>_address(new["before"])
        self.state.before_stamp = <uint64_t*>_address(new["before_stamp"])
        self.rows_of = [None] * len(self.shapes)
        self.row_count = 0
        return 0

    def set_workload(self, object typical, object prices, object rates):
        """What is typical: (amounts, count, milli, models, weight) each; worth of shares; rates of amounts."""
        self.check_free()
        if len(typical) > TYPICAL_MAX:
            raise ValueError(f"{len(typical)} typical shapes, at most {TYPICAL_MAX}")
        if len(prices) != WHOLE + 1 or len(rates) != self.state.rows or any(rate < 0 for rate in rates):
            raise ValueError(f"prices must be {WHOLE + 1}, rates {self.state.rows} and not negative")
        held = {"prices": np.array(prices, np.int64), "rates": np.array(rates, np.int64)}
        held.update(self.sort_typical(sorted(typical, key=_want_of)))
        self.arrays[1] = held
        self.state.prices = <int64_t*>_address(held["prices"])
        self.state.rates = <int64_t*>_address(held["rates"])
        self.judge_anew()

    cdef void judge_anew(self) noexcept:
        """What shapes cost is another everywhere."""
        cdef Py_ssize_t slot
        self.clock += 1
        for slot in range(self.state.slots):
            self.state.stamp[slot] = self.clock

    def set_scarcity(self, object scarcity):
        """What a thousandth of a device is worth besides its price, by model; 0 for those beyond."""
        cdef Py_ssize_t model
        self.check_free()
        if len(scarcity) > 64 or any(not 0 <= each <= SCARCITY_MAX for each in scarcity):
            raise ValueError(f"scarcity: at most 64 models, each must be 0 to {SCARCITY_MAX}")
        for model in range(64):
            self.state.scarcity[model] = scarcity[model] if model < len(scarcity) else 0
        self.judge_anew()

    cdef dict sort_typical(self, list typical):
        """Set what is typical, which is sorted by what is wanted of devices; the arrays that hold it."""
        cdef Py_ssize_t at
        cdef _Shape one
        cdef Want* want = NULL
        held = {
            "wants": np.zeros((len(typical) + 1, sizeof(Want)), np.uint8),
            "need": np.zeros((len(typical) + 1, self.state.rows), np.int64),
            "weight": np.zeros(len(typical) + 1, np.int64),
        }
        self.state.want_count = 0
        self.state.wants = <Want*>_address(held["wants"])
        self.state.need = <int64_t*>_address(held["need"])
        self.state.weight = <int64_t*>_address(held["weight"])
        for at in range(len(typical)):
            amounts, count, milli, models, weight = typical[at]
            one = _Shape(tuple(amounts), count, milli, models)
            if one.amounts.shape[1] != self.state.rows or not count or not 0 <= weight <= SHARE_MAX:
                self.state.want_count = 0
                raise ValueError(f"typical shape {at} must have {self.state.rows} amounts and a device")
            memcpy(self.state.need + at * self.state.rows, one.shape.need, self.state.rows * sizeof(int64_t))
            self.state.weight[at] = weight
            if want == NULL or _want_of(typical[at]) != _want_of(typical[at - 1]):
                want = &self.state.wants[self.state.want_count]
                want.models, want.count, want.milli, want.first = models, count, milli, at
                self.state.want_count += 1
            want.last = at + 1
        return held

    def set_node(self, Py_ssize_t slot, object free, object devices, int32_t attr, int64_t room, uint64_t rank):
        """Set a node, new or known. `devices`: (model, thousandths left) each."""
        cdef Py_ssize_t r, d
        cdef int64_t left, model
        self.check_free()
        if not 0 <= slot < SLOTS_MAX or attr >= ATTRS_MAX:
            raise ValueError(f"slot {slot} or attr {attr} is beyond the limits {SLOTS_MAX}, {ATTRS_MAX}")
        if len(free) != self.state.rows or len(devices) > DEVICES_MAX:
            raise ValueError(f"slot {slot}: {self.state.rows} amounts and at most {DEVICES_MAX} devices")
        for model, left in devices:
            if not 0 <= model < 64 or left > WHOLE:
                raise ValueError(f"slot {slot}: model {model} must be 0 to 63, {left} at most {WHOLE}")
        if slot >= self.state.slots or len(devices) > self.state.width:
            self.grow(max(self.state.slots, 2 * slot + 2), max(self.state.width, len(devices)))
        for r in range(self.state.rows):
            self.state.free[slot * self.state.rows + r] = as_int(free[r])
        d = slot * self.state.width
        for model, left in devices:
            self.state.model[d] = <uint8_t>model
            self.state.left[d] = <int32_t>max(left, 0)
            d += 1
        self.node_count += self.state.devices[slot] < 0
        self.state.devices[slot] = <int32_t>len(devices)
        self.state.attr[slot], self.state.room[slot], self.state.rank[slot] = attr, room, rank
        self.clock += 1
        self.state.stamp[slot] = self.clock

    def remove_node(self, Py_ssize_t slot):
        """The node is gone, if it was there."""
        self.check_free()
        if 0 <= slot < self.state.slots and self.state.devices[slot] >= 0:
            self.state.devices[slot] = -1
            self.node_count -= 1

    def set_eligible(self, Py_ssize_t cset, Py_ssize_t attr, bint eligible):
        """Whether requests of those constraints may go where the attribute is."""
        self.check_free()
        if not (0 <= cset < ATTRS_MAX and 0 <= attr < ATTRS_MAX):
            raise ValueError(f"cset {cset} and attr {attr} must be 0 to {ATTRS_MAX - 1}")
        csets, attrs = self.eligible.shape
        if cset >= csets or attr >= attrs:
            wider = np.zeros((max(csets, 2 * cset + 1), max(attrs, 2 * attr + 1)), np.uint8)
            wider[:csets, :attrs] = self.eligible
            self.eligible = wider
        self.eligible[cset, attr] = eligible

    def add_shape(self, object amounts, int32_t count=0, int32_t milli=0, uint64_t models=<uint64_t>-1):
        """The id of a shape, new or known."""
        self.check_free()
        key = (tuple(amounts), count, milli, models)
        found = self.shape_ids.get(key)
        if found is None:
            if len(key[0]) != self.state.rows:
                raise ValueError(f"{len(key[0])} amounts, must be {self.state.rows}")
            self.shapes.append(_Shape(key[0], count, milli, models))
            self.rows_of.append(None)
            found = self.shape_ids[key] = len(self.shapes) - 1
        return found

    # ---- questions

    cdef Shape* shape_at(self, Py_ssize_t shape) except NULL:
        self.check_free()
        if not 0 <= shape < len(self.shapes):
            raise ValueError(f"shape {shape} is not one of {len(self.shapes)}")
        return &(<_Shape>self.shapes[shape]).shape

    cdef Row row(self, Py_ssize_t shape):
        """The shape's row; the one that was not asked for the longest leaves where there are too many."""
        cdef Row found = self.rows_of[shape]
        if found is None:
            if self.row_count and (self.row_count + 1) * self.state.slots > self.cells_max:
                self.forget_row()
            found = self.rows_of[shape] = Row(self.state.slots)
            self.row_count += 1
        self.uses += 1
        found.used = self.uses
        return found

    cdef int forget_row(self) except -1:
        cdef Row row
        cdef Py_ssize_t at, oldest = -1
        cdef uint64_t used = 0
        for at in range(len(self.rows_of)):
            row = self.rows_of[at]
            if row is not None and (oldest < 0 or row.used < used):
                oldest, used = at, row.used
        self.rows_of[oldest] = None
        self.row_count -= 1
        return 0

    cdef Py_ssize_t ask(self, Py_ssize_t shape, Py_ssize_t cset, object slots, bint wanted) except -2:
        cdef Shape* asked = self.shape_at(shape)
        cdef Row row = self.row(shape)
        cdef const uint8_t[::1] allowed
        cdef uint8_t[::1] marks
        cdef uint8_t* marked = NULL
        cdef Py_ssize_t slot, attrs = self.eligible.shape[1]
        if not 0 <= cset < self.eligible.shape[0]:
            return -1
        if slots is not None:
            marks = np.zeros(self.state.slots, np.uint8)
            marked = &marks[0]
            for slot in slots:
                if 0 <= slot < self.state.slots:
                    marks[slot] = 1
        allowed = self.eligible[cset]
        self.busy = True
        with nogil:
            slot = best_slot(&self.state, asked, row.cells, &allowed[0], attrs, marked, wanted)
        self.busy = False
        return slot

    def best(self, Py_ssize_t shape, Py_ssize_t cset):
        """The slot where the shape costs the least, -1 if it fits nowhere."""
        return self.ask(shape, cset, None, False)

    def best_excluding(self, Py_ssize_t shape, Py_ssize_t cset, object slots):
        """The best node but for the given slots, -1 if there is none."""
        return self.ask(shape, cset, slots, False)

    def best_among(self, Py_ssize_t shape, Py_ssize_t cset, object slots):
        """The best node among the given slots, -1 if there is none."""
        return self.ask(shape, cset, slots, True)

    def able(self, Py_ssize_t shape, Py_ssize_t cset):
        """The slots that take the shape, rising."""
        cdef Shape* asked = self.shape_at(shape)
        cdef State* s = &self.state
        cdef const uint8_t[::1] allowed
        cdef Py_ssize_t slot, attrs = self.eligible.shape[1]
        cdef int64_t used
        if not 0 <= cset < self.eligible.shape[0]:
            return []
        allowed = self.eligible[cset]
        found = []
        for slot in range(s.slots):
            if (is_open(s, slot, &allowed[0], attrs) and amounts_fit(s.free + slot * s.rows, asked.need, s.rows)
                    and able_devices(s.left + slot * s.width, s.model + slot * s.width, s.devices[slot],
                                     asked.models, asked.milli, &used) >= asked.count):
                found.append(slot)
        return found

    cdef int check_slot(self, Py_ssize_t slot) except -1:
        self.check_free()
        if not 0 <= slot < self.state.slots or self.state.devices[slot] < 0:
            raise ValueError(f"slot {slot} has no node")
        return 0

    def choose(self, Py_ssize_t shape, Py_ssize_t slot):
        """(cost, the devices that are taken) on that node; None if it does not take the shape."""
        cdef Shape* asked = self.shape_at(shape)
        cdef State* s = &self.state
        cdef Py_ssize_t d
        cdef Cell cell
        self.check_slot(slot)
        judge(s, slot, asked, &cell)
        if cell.device == UNFIT:
            return None
        if cell.device >= 0:
            return cell.cost, (cell.device,)
        able = [d for d in range(s.devices[slot]) if (asked.models >> s.model[slot * s.width + d] & 1)
                and s.left[slot * s.width + d] >= asked.milli]
        return cell.cost, tuple(able[:asked.count])

    def loss(self, Py_ssize_t slot, object amounts, object takes):
        """(fragments, stranded, worth) that the node loses with amounts and (device, thousandths) each."""
        cdef State* s = &self.state
        cdef int64_t[RESOURCES_MAX] free
        cdef int32_t[DEVICES_MAX] left
        cdef Py_ssize_t r, device
        cdef int64_t milli
        cdef Burden was, later
        self.check_slot(slot)
        if len(amounts) != s.rows:
            raise ValueError(f"{len(amounts)} amounts, must be {s.rows}")
        for r in range(s.rows):
            if amounts[r] < 0:
                raise ValueError(f"amounts[{r}] is {amounts[r]}, must not be negative")
            free[r] = less(s.free[slot * s.rows + r], amounts[r])
        memcpy(left, s.left + slot * s.width, s.devices[slot] * sizeof(int32_t))
        for device, milli in takes:
            if not 0 <= device < s.devices[slot] or not 0 <= milli <= left[device]:
                raise ValueError(f"slot {slot}: device {device} cannot give {milli}")
            left[device] -= <int32_t>milli
        was = burden_of(s, s.free + slot * s.rows, s.left + slot * s.width, s.model + slot * s.width,
                        s.devices[slot])
        later = burden_of(s, free, left, s.model + slot * s.width, s.devices[slot])
        return later.fragments - was.fragments, later.stranded - was.stranded, was.worth - later.worth


def _want_of(object typical):
    """What a typical shape wants of devices."""
    return typical[1:4]


cdef size_t _address(object array):
    return <size_t>array.ctypes.data
