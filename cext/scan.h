/* The filter over blocks of 64 lanes, with the widest instruction set of the machine chosen at run time.
 *
 * A cell is a code of an amount, 0..127, by a curve that rises with the amount; -1 = takes nothing. A lane is
 * left in if each of its cells is within a window. The filter is conservative: codes of a <= b are in the same
 * order, so what fits and keeps no more than the bound is never filtered out; what is left is judged exactly by
 * the caller. The curve is a square root, so that codes are finest near 0, where full nodes and small demands
 * are: 1/16384 of the largest amount there, 1/64 near the largest.
 */
#ifndef CUMULET_SCAN_H
#define CUMULET_SCAN_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum { LANES = 64, CODE_TOP = 127 };

typedef int8_t Lanes __attribute__((vector_size(64)));

/* The codes that the cells of each row must have at least and at most, in every lane. */
typedef struct {
    Lanes least[64], most[64];
} Window;

/* The first of blocks block..stop-1 with a lane within the window; `stop` if there is none. *left: bit i for
 * such a lane i. */
typedef uint32_t NextBlock(const Lanes *cells, uint32_t block, uint32_t stop, const Window *window, int32_t width,
                           uint64_t *left);
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
#define SIGNS(v) _mm512_movepi8_mask((__m512i)(v))
#define FILTER(x) x##_avx512
#include "lanes.h"
#undef FILTER
#undef SIGNS
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("arch=x86-64-v3")
static inline uint64_t signs_of_halves(const Lanes *v)
{
    __m256i half[2];
    memcpy(half, v, sizeof half);
    return (uint32_t)_mm256_movemask_epi8(half[0]) | (uint64_t)(uint32_t)_mm256_movemask_epi8(half[1]) << 32;
}
#define SIGNS(v) signs_of_halves(&(v))
#define FILTER(x) x##_avx2
#include "lanes.h"
#undef FILTER
#undef SIGNS
#pragma GCC pop_options

static inline uint64_t signs_of_quarters(const Lanes *v)
{
    __m128i quarter[4];
    uint64_t mask = 0;
    memcpy(quarter, v, sizeof quarter);
    for (int i = 0; i < 4; i++)
        mask |= (uint64_t)(uint32_t)_mm_movemask_epi8(quarter[i]) << 16 * i;
    return mask;
}
#define SIGNS(v) signs_of_quarters(&(v))

#else

static inline uint64_t signs_of_lanes(const Lanes *v)
{
    const uint64_t sign = 0x8080808080808080u;
    uint64_t part[8], all = sign, mask = 0;
    memcpy(part, v, sizeof part);
    for (int i = 0; i < 8; i++)
        all &= part[i];
    if (all == sign)
        return UINT64_MAX;
    for (int lane = 0; lane < LANES; lane++)
        mask |= (uint64_t)((*v)[lane] < 0) << lane;
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
