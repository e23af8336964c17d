/* A whole trace in one call, with the cost of every event where it is asked for. */
#ifndef CUMULET_REPLAY_H
#define CUMULET_REPLAY_H

#include <time.h>

#include "search.h"

typedef struct {
    int64_t placed, failed, released;
    int64_t first_failure;  /* event, -1: none */
    uint64_t decision_hash; /* over the slots in the order of decisions */
    int64_t used, used_peak; /* nodes with an instance */
    int64_t elapsed_ns;
} Replayed;

static inline int64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* A counter that is read in few ns and not ahead of what is measured; see ticks_per_ns. */
static inline uint64_t ticks(void)
{
#if defined(__x86_64__)
    unsigned processor;
    uint64_t now = __builtin_ia32_rdtscp(&processor);
    __builtin_ia32_lfence();
    return now;
#else
    return (uint64_t)now_ns();
#endif
}

static inline double ticks_per_ns(void)
{
    int64_t start_ns = now_ns(), stop_ns;
    uint64_t start = ticks(), stop;
    do {
        stop_ns = now_ns();
        stop = ticks();
    } while (stop_ns - start_ns < 20000000);
    return (double)(stop - start) / (double)(stop_ns - start_ns);
}

/* The smallest cost of a reading: what an event that does nothing would be charged. */
static inline uint64_t ticks_overhead(void)
{
    uint64_t least = UINT64_MAX, last = ticks();
    for (int i = 0; i < 10000; i++) {
        uint64_t now = ticks();
        least = now - last < least ? now - last : least;
        last = now;
    }
    return least;
}

static inline uint64_t hash_decision(uint64_t hash, int64_t slot)
{
    return (hash ^ (uint64_t)(slot + 1)) * UINT64_C(1099511628211);
}

#define DECISION_HASH_START UINT64_C(1469598103934665603)

static inline void count_used(Replayed *result, int32_t *load, int64_t slot, int change)
{
    if (change > 0)
        result->used += load[slot]++ == 0;
    else
        result->used -= --load[slot] == 0;
    if (result->used > result->used_peak)
        result->used_peak = result->used;
}

/* events: x >= 0 places instance x of shape shape_of[x], ~x releases it (nothing if it was not placed).
 * at: each instance's slot or -1, before and after. load: instances of each slot. ticks_of (a cost for
 * each event) and used_after may be NULL; time_s of each event too, where lifetimes do not count. The arrays were
 * checked. */
static inline Outcome replay_events(Fleet *f, const int32_t *events, size_t count, const int32_t *shape_of,
                                    const int64_t *time_s, int32_t *at, int32_t *load, uint32_t *ticks_of,
                                    int32_t *used_after, Replayed *result)
{
    uint64_t last = ticks_of ? ticks() : 0;
    int64_t start_ns = now_ns();
    for (size_t i = 0; i < count; i++) {
        int32_t x = events[i] >= 0 ? events[i] : ~events[i];
        if (time_s && time_s[i] != f->crowd->now_s) {
            Outcome outcome = set_time(f, time_s[i]);
            if (outcome != DONE)
                return outcome;
        }
        if (events[i] >= 0) {
            int64_t slot = place_one(f, (uint32_t)shape_of[x]);
            if (slot < -1)
                return (Outcome)slot;
            at[x] = (int32_t)slot;
            result->decision_hash = hash_decision(result->decision_hash, slot);
            if (slot >= 0) {
                result->placed++;
                count_used(result, load, slot, 1);
            } else {
                if (!result->failed++)
                    result->first_failure = (int64_t)i;
            }
        } else if (at[x] >= 0) {
            Outcome outcome = shift_shape(f, (uint32_t)at[x], (uint32_t)shape_of[x], 1);
            if (outcome != DONE)
                return outcome;
            count_used(result, load, at[x], -1);
            at[x] = -1;
            result->released++;
        }
        if (used_after)
            used_after[i] = (int32_t)result->used;
        if (ticks_of) {
            uint64_t now = ticks();
            ticks_of[i] = now - last < UINT32_MAX ? (uint32_t)(now - last) : UINT32_MAX;
            last = now;
        }
    }
    result->elapsed_ns = now_ns() - start_ns;
    return DONE;
}

#endif
