# Traces and timings in one call, for benches. Units and shapes: state.pxd.

from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t

from cext.state cimport Fleet, Outcome

cdef extern from "linear.h" nogil:
    const uint64_t DECISION_HASH_START

    ctypedef struct Replayed:
        int64_t placed, failed, released, first_failure, used, used_peak, elapsed_ns
        uint64_t decision_hash

    Outcome replay_events(Fleet* f, const int32_t* events, size_t count, const int32_t* shape_of,
                          const int64_t* time_s, int32_t* at, int32_t* load, uint32_t* ticks_of, int32_t* used_after,
                          Replayed* result)
    Outcome replay_linear(const Fleet* f, const int32_t* events, size_t count, const int32_t* shape_of,
                          const int64_t* time_s, int32_t* at, int32_t* load, Replayed* result)
    Outcome scan_times(Fleet* f, uint32_t shape_count, uint32_t rounds, int64_t* scan_ns, int64_t* read_ns)
    double ticks_per_ns()
    uint64_t ticks_overhead()
