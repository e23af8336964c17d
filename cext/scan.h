/* The filter over blocks of 16 lanes, with the widest instruction set of the machine chosen at run time.
 *
 * A cell is an amount in 1/16384 of the largest one, rounded down; -1 = takes nothing. The filter is
 * conservative: what fits and keeps no more than the bound is never filtered out; what is left is
 * judged exactly by the caller. Rounding down keeps that: a >= b implies cell(a) >= cell(b), and
 * a - b <= c implies cell(a) - cell(b) <= cell(c) + 1.
 */
#ifndef CUMULET_SCAN_H
#define CUMULET_SCAN_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum { LANES = 16 };
#define LANE_BITS 0xAAAAAAAAu

typedef int16_t Lanes __attribute__((vector_size(32)));

/* The first of blocks block..stop-1 with a lane whose `scored` first rows keep between 0 and `bound` after
 * `want`, and the other rows at least 0; `stop` if there is none. *left: bit 2i+1 for such a lane i. */
typedef uint32_t NextBlock(const Lanes *cells, uint32_t block, uint32_t stop, const Lanes *want,
                           int32_t scored, int32_t width, int16_t bound, uint32_t *left);
typedef int64_t ReadBlocks(const Lanes *cells, size_t count);

/* Typical shapes: what room is worth is the sum of weight * how many of each fit, alone. See crowd.h. */
enum { TYPICAL_MAX = 32 };
#define TYPICAL_SPARE 0x1p50 /* how many fit into a row that is not asked for: more than into any other */
typedef struct {
    int32_t count; /* a multiple of 8; the rest have no weight */
    int32_t rows;  /* that some shape asks for */
    int32_t row[64];
    double weight[TYPICAL_MAX];
    double demand[64][TYPICAL_MAX]; /* 1 where nothing is asked for */
    double spare[64][TYPICAL_MAX];  /* 0, or TYPICAL_SPARE where nothing is asked for */
} Typical;
typedef double Worth(const Typical *typical, const double *amounts);

typedef struct {
    const char *name;
    NextBlock *next_block;
    ReadBlocks *read_blocks;
    Worth *worth;
} Filters;

#define FILTERS_OF(SET) {#SET, next_block_##SET, read_blocks_##SET, worth_##SET}

#if defined(__x86_64__)
#include <immintrin.h>

#pragma GCC push_options
#pragma GCC target("arch=x86-64-v4")
#define SIGNS(v) ((uint32_t)_mm256_movemask_epi8((__m256i)(v)))
#define FILTER(x) x##_avx512
#include "lanes.h"
#undef FILTER
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("arch=x86-64-v3")
#define FILTER(x) x##_avx2
#include "lanes.h"
#undef FILTER
#undef SIGNS
#pragma GCC pop_options

static inline uint32_t signs_of_halves(const Lanes *v)
{
    __m128i half[2];
    memcpy(half, v, sizeof half);
    return (uint32_t)_mm_movemask_epi8(half[0]) | (uint32_t)_mm_movemask_epi8(half[1]) << 16;
}
#define SIGNS(v) signs_of_halves(&(v))

#else

static inline uint32_t signs_of_lanes(const Lanes *v)
{
    const uint64_t sign = 0x8000800080008000u;
    uint64_t quarter[4];
    memcpy(quarter, v, sizeof quarter);
    if (((quarter[0] & quarter[1] & quarter[2] & quarter[3]) & sign) == sign)
        return LANE_BITS;
    uint32_t mask = 0;
    for (int lane = 0; lane < LANES; lane++)
        mask |= (uint32_t)((*v)[lane] < 0) << (2 * lane + 1);
    return mask;
}
#define SIGNS(v) signs_of_lanes(&(v))

#endif

#define FILTER(x) x##_base
#include "lanes.h"
#undef FILTER
#undef SIGNS

static const Filters FILTERS[] = {
    FILTERS_OF(base),
#if defined(__x86_64__)
    FILTERS_OF(avx2),
    FILTERS_OF(avx512),
#endif
};
enum { FILTERS_COUNT = sizeof FILTERS / sizeof FILTERS[0] };

/* The number of sets that this machine can run; they are in order of width. */
static inline int filters_usable(void)
{
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("x86-64-v4"))
        return 3;
    return __builtin_cpu_supports("x86-64-v3") ? 2 : 1;
#else
    return 1;
#endif
}

#endif
