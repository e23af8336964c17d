/* Shapes (a demand and a set of constraints): which classes they fit, and the order of classes for a shape. */
#ifndef CUMULET_SHAPES_H
#define CUMULET_SHAPES_H

#include "classes.h"

/* ---- the order of classes for a shape ---------------------------------------------------------------- */

static inline bool is_eligible(const Fleet *f, int32_t cset, int32_t attr)
{
    uint32_t plain = attr < 0 ? NONE : (uint32_t)(attr & ATTR_MASK);
    return plain < f->attrs_room && f->eligible[(size_t)cset * f->attrs_room + plain];
}

static inline bool fits(const Fleet *f, uint32_t cls, uint32_t shape)
{
    const int64_t *have = free_of(f, cls), *need = f->need + (size_t)shape * (size_t)f->width;
    int32_t lacks = 0;
    for (int32_t r = 0; r < f->width; r++)
        lacks |= have[r] < need[r];
    return !lacks && is_eligible(f, f->shapes[shape].cset, f->classes[cls].attr);
}

static inline int64_t potential_at(const Fleet *f, const int64_t *have, const int64_t *demand)
{
    int64_t index = 0;
    for (int32_t i = 0; i < f->potential_rows; i++) {
        int32_t row = f->potential_row[i];
        int64_t amount = have[row] - (demand ? demand[row] : 0); /* it fits, so this cannot wrap */
        int64_t step = amount > 0 ? amount / f->potential_step[i] : 0;
        index = index * f->potential_size[i] + (step < f->potential_size[i] ? step : f->potential_size[i] - 1);
    }
    return f->potential[index];
}

static inline double class_worth(const Fleet *f, uint32_t cls)
{
    if (f->worth_version[cls] != f->crowd->version) {
        f->worth[cls] = worth_of(f->crowd, f->filters, free_of(f, cls), NULL);
        f->worth_version[cls] = f->crowd->version;
    }
    return f->worth[cls];
}

/* What is lost of the room in a class that fits: refresh() was called. */
static inline uint64_t room_lost(const Fleet *f, uint32_t cls, uint32_t shape)
{
    const int64_t *demand = f->demand + (size_t)shape * (size_t)f->width;
    return (uint64_t)(class_worth(f, cls) - worth_of(f->crowd, f->filters, free_of(f, cls), demand));
}

static inline int lean_shift(const Fleet *f)
{
    return UNIT_BITS - POTENTIAL_BITS + (f->crowd->idle ? LEAN_SHIFT_IDLE : LEAN_SHIFT);
}

/* By how many levels of time the shape would outlive what runs on the nodes of a class; 0 while it does not count. */
static inline int levels_late(const Fleet *f, uint32_t cls, uint32_t shape)
{
    int lasts = f->shapes[shape].level, left = LEVELS - 1 - (f->classes[cls].attr >> LEVEL_SHIFT);
    return f->crowd->patient && lasts > left ? lasts - left : 0;
}

/* Nodes in use come first, then the score, then what is left. */
static inline uint64_t slots_key(const Fleet *f, uint32_t cls, uint32_t shape, int32_t most, uint64_t sum)
{
    int32_t attr = f->classes[cls].attr;
    uint64_t late = (uint64_t)levels_late(f, cls, shape);
    uint64_t score = room_lost(f, cls, shape) + ((uint64_t)most >> lean_shift(f)) + (late << STEP_SHIFT);
    return (uint64_t)(attr & EMPTY_BIT ? 1 : 0) << (SCORE_BITS + SUM_BITS) | score << SUM_BITS | sum;
}

/* The smaller the better. The class fits. All terms are 0..UNIT_TOP, so that no sum leaves 64 bits. */
static inline uint64_t key_of(const Fleet *f, uint32_t cls, uint32_t shape)
{
    size_t base = (size_t)f->width;
    const int32_t *have = f->units + cls * base, *want = f->want + shape * base;
    uint64_t sum = 0, squares = 0, product = 0;
    int32_t most = 0;
    for (int32_t r = 0; r < f->scored; r++) {
        int32_t rest = have[r] - want[r];
        most = rest > most ? rest : most;
        sum += (uint64_t)rest;
    }
    switch (f->norm) {
    case NORM_LINF:
        return (uint64_t)most << SUM_BITS | sum;
    case NORM_L1:
        return sum;
    case NORM_WORST:
        return (uint64_t)(UNIT_TOP - most) << SUM_BITS | (SUM_TOP - sum);
    case NORM_L2:
        for (int32_t r = 0; r < f->scored; r++)
            squares += (uint64_t)(have[r] - want[r]) * (uint64_t)(have[r] - want[r]);
        return squares;
    case NORM_DOT:
        for (int32_t r = 0; r < f->scored; r++)
            product += (uint64_t)have[r] * (uint64_t)want[r];
        return (UINT64_C(1) << 63) - product;
    case NORM_SLOTS:
        return slots_key(f, cls, shape, most, sum);
    case NORM_POTENTIAL:
        break;
    }
    const int64_t *amounts = free_of(f, cls), *demand = f->demand + shape * base;
    int64_t score = potential_at(f, amounts, demand) - potential_at(f, amounts, NULL) + POTENTIAL_BIAS;
    return (uint64_t)score << 32 | sum >> (SUM_BITS - 32);
}

/* Lexicographic: negative, 0 or positive. */
static inline int order_of(const int64_t *a, const int64_t *b, int32_t width)
{
    for (int32_t r = 0; r < width; r++)
        if (a[r] != b[r])
            return a[r] < b[r] ? -1 : 1;
    return 0;
}

/* Among classes of equal key; equal free amounts are equal. */
static inline int class_order(const Fleet *f, uint32_t a, uint32_t b)
{
    return order_of(free_of(f, a), free_of(f, b), f->width);
}

/* The whole order: key, free amounts, rank. Both are nodes that fit. */
static inline bool node_before(const Fleet *f, uint64_t key_a, uint32_t a, uint64_t key_b, uint32_t b)
{
    if (key_a != key_b)
        return key_a < key_b;
    int order = class_order(f, f->nodes[a].cls, f->nodes[b].cls);
    return order < 0 || (order == 0 && rank_before(f, member_of(f, a), member_of(f, b)));
}

/* Whether a key bounds the terms: then few classes need be judged to find the best, else all that fit. */
static inline bool has_bounds(const Fleet *f)
{
    return f->norm == NORM_LINF || f->norm == NORM_L1 || f->norm == NORM_L2;
}

/* A bound on the largest term of every class with that key or a smaller one. */
static inline int32_t largest_term(const Fleet *f, uint64_t key)
{
    uint64_t term = UNIT_TOP;
    if (f->norm == NORM_LINF)
        term = key >> SUM_BITS;
    else if (f->norm == NORM_L1)
        term = key;
    else if (f->norm == NORM_L2)
        term = (uint64_t)__builtin_sqrt((double)key) + 1; /* rounding is far below 1 */
    else if (f->norm == NORM_SLOTS)
        term = ((key >> SUM_BITS) + 1) << lean_shift(f);
    return term < UNIT_TOP ? (int32_t)term : UNIT_TOP;
}

#endif
