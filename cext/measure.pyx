# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True
"""A whole trace, or many scans, in one call on a FleetIndex: what benches and tests measure it by.

**Edge**: changes the index as the calls would, and reads a clock. Shapes and units: state.pxd.
"""

from collections import namedtuple

import numpy as np

from cext.index cimport FleetIndex
from cext.state cimport NONE, Outcome, check_outcome, check_shapes, is_node
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t

Replay = namedtuple("Replay", ["placed", "failed", "released", "first_failure", "decision_hash", "used",
                               "used_peak", "elapsed_ns"])


cdef object _checked_trace(FleetIndex index, const int32_t[::1] events, const int32_t[::1] shape_of,
                           const int32_t[::1] at):
    """The instances of each slot, int32[n_slot + 1]."""
    cdef Py_ssize_t i, instance, count = shape_of.shape[0]
    check_shapes(shape_of, index.fleet.shape_count)
    if at.shape[0] != count:
        raise ValueError("shape_of and at must have one entry an instance")
    live_array, load_array = np.zeros(count + 1, dtype=np.uint8), np.zeros(index.fleet.slots + 1, dtype=np.int32)
    cdef uint8_t[::1] live = live_array
    cdef int32_t[::1] load = load_array
    for i in range(count):
        if at[i] != -1:
            if not (0 <= at[i] and is_node(index.fleet, <uint32_t>at[i])):
                raise ValueError(f"at[{i}] is {at[i]}, which has no node")
            live[i] = 1
            load[at[i]] += 1
    for i in range(events.shape[0]):
        instance = events[i] if events[i] >= 0 else ~events[i]
        if instance >= count:
            raise ValueError(f"events[{i}] is {events[i]}, there are {count} instances")
        if events[i] >= 0 and live[instance]:
            raise ValueError(f"events[{i}] places instance {instance}, which is placed")
        live[instance] = events[i] >= 0
    return load_array


cdef int _check_times(FleetIndex index, const int64_t[::1] time_s, Py_ssize_t count) except -1:
    cdef Py_ssize_t i
    if not index.fleet.counts or not index.fleet.crowd.lifetimes or index.fleet.marks:
        raise ValueError("time_s wants an index with lifetimes and without a mark")
    if time_s.shape[0] != count:
        raise ValueError("time_s must have one entry an event")
    for i in range(count):
        if not 0 <= time_s[i] <= 1 << 40:
            raise ValueError(f"time_s[{i}] is {time_s[i]}, must be 0 to {1 << 40}")
    return 0


def replay(FleetIndex index not None, const int32_t[::1] events not None, const int32_t[::1] shape_of not None,
           int32_t[::1] at not None, *, object ns=None, object used=None, const int64_t[::1] time_s=None,
           bint linear=False):
    """A whole trace: x >= 0 places instance x of shape_of[x], ~x releases it if it is placed.

    at int32[n_instance]: the slot of each instance or -1, read and written. ns float32[n_event]: the
    cost of each event is written, less that of the clock. used int32[n_event]: nodes in use after each
    event. time_s int64[n_event]: when each is, with lifetimes. linear: by scan, on a copy: the oracle.
    """
    cdef Replayed result
    cdef Outcome outcome
    cdef int32_t[::1] used_out, load
    cdef uint32_t[::1] ticks_out
    cdef const int32_t* none = NULL
    index.check_free()
    loads = _checked_trace(index, events, shape_of, at)
    if linear and (ns is not None or used is not None or np.asarray(at).max(initial=-1) >= 0):
        raise ValueError("a linear replay begins with nothing placed and measures the whole only")
    if time_s is not None:
        _check_times(index, time_s, events.shape[0])
    ticks_array = np.empty(events.shape[0] + 1, dtype=np.uint32)
    for name, array in (("ns", ns), ("used", used)):
        if array is not None and array.shape != (events.shape[0],):
            raise ValueError(f"{name} must have one entry an event")
    used_array = np.empty(0 if used is None else events.shape[0] + 1, dtype=np.int32)
    load, ticks_out, used_out = loads, ticks_array, used_array
    cdef uint32_t* ticks_at = NULL if ns is None else &ticks_out[0]
    cdef int32_t* used_at = NULL if used is None else &used_out[0]
    cdef const int32_t* events_at = &events[0] if events.shape[0] else NULL
    cdef const int32_t* shapes_at = &shape_of[0] if shape_of.shape[0] else NULL
    cdef const int64_t* time_at = &time_s[0] if time_s is not None and time_s.shape[0] else NULL
    cdef int32_t* slots_at = &at[0] if at.shape[0] else NULL
    result.placed = result.failed = result.released = result.elapsed_ns = 0
    result.first_failure = -1
    result.decision_hash = DECISION_HASH_START
    result.used = result.used_peak = np.count_nonzero(loads)
    index.busy = True
    with nogil:
        if linear:
            outcome = replay_linear(index.fleet, events_at, events.shape[0], shapes_at, time_at, slots_at, &load[0],
                                    &result)
        else:
            outcome = replay_events(index.fleet, events_at, events.shape[0], shapes_at, time_at, slots_at, &load[0], ticks_at,
                             used_at, &result)
    index.busy = False
    check_outcome(outcome, -1)
    if ns is not None:
        overhead = min(<uint64_t>1000, ticks_overhead())
        ns[:] = np.maximum(ticks_array[: events.shape[0]].astype(np.float64) - overhead, 0) / ticks_per_ns()
    if used is not None:
        used[:] = used_array[: events.shape[0]]
    return Replay(result.placed, result.failed, result.released, result.first_failure, result.decision_hash,
                  result.used, result.used_peak, result.elapsed_ns)


def time_scans(FleetIndex index not None, int64_t rounds):
    """(ns of one scan, ns of one read of the same bytes), means over `rounds` of each, shapes in turn."""
    cdef int64_t scan_ns = 0, read_ns = 0
    cdef Outcome outcome
    index.check_shape(0)
    if not 1 <= rounds < NONE:
        raise ValueError(f"rounds is {rounds}, must be 1 to {NONE - 1}")
    index.busy = True
    with nogil:
        outcome = scan_times(index.fleet, index.fleet.shape_count, <uint32_t>rounds, &scan_ns, &read_ns)
    index.busy = False
    check_outcome(outcome, -1)
    return scan_ns / rounds, read_ns / rounds
