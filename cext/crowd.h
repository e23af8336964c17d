/* What all nodes of a fleet say together: which requests are typical, and whether there is room to spare.
 *
 * Semantics: scheduler/packing.py. Kinds are the demands of what runs, with their counts; the table is made of
 * them anew when a count has passed a power of 16. It is kept with the amounts in internal order, as doubles:
 * quotients of integers below 2^52 are exact once rounded down, and every vector unit divides doubles.
 */
#ifndef CUMULET_CROWD_H
#define CUMULET_CROWD_H

#include <stdbool.h>
#include <stdlib.h>

#include "scan.h"

enum {
    SCORE_BITS = 27,
    LEAN_SHIFT = 5,
    LEAN_SHIFT_IDLE = 2,
    IDLE = 983,
    PATIENT = 952,   /* of 1024: with more of all nodes allocated lifetimes do not count */
    STEP_SHIFT = 20, /* POTENTIAL / 16 for each level by which an instance outlives its node */
    LEVELS = 5       /* of time that is left: none, an hour, ten, a hundred, more or unknown */
};
#define FOREVER INT64_MAX
#define POTENTIAL_BITS 24
#define AMOUNT_MAX (INT64_C(1) << 40)

typedef struct {
    int64_t count;
    int64_t fit; /* how many fit into the largest amounts; 0: has no weight */
} Kind;

typedef struct {
    uint32_t kind;
    int rate; /* its logarithm; -1: none */
} Rated;

typedef struct {
    int32_t rows, width;
    int32_t place[64];   /* the internal row of a caller's resource */
    int64_t largest[64]; /* at most AMOUNT_MAX */
    Kind *kinds;
    int64_t *demand; /* [kind][width] */
    uint32_t kind_count, kinds_room;
    __int128 left[64], size[64]; /* of the nodes in use */
    __int128 whole[64];          /* the size of all nodes that take instances */
    bool lifetimes;              /* whether they count at all */
    bool patient;                /* whether they count now */
    int64_t now_s;
    bool stale;                  /* a count has passed a power of 16 */
    bool idle;
    uint64_t version; /* of the table; the first is 1 */
    Rated chosen[TYPICAL_MAX];
    uint32_t chosen_count;
    Typical table;
} Crowd;

static inline int rate_of(int64_t count)
{
    return count > 0 ? (63 - __builtin_clzll((uint64_t)count)) / 4 : -1;
}

static inline void crowd_free(Crowd *c)
{
    if (!c)
        return;
    free(c->kinds);
    free(c->demand);
    free(c);
}

/* A new kind's id, or -2: no memory. Amounts in internal order, none negative. */
static inline int64_t add_kind(Crowd *c, const int64_t *demand)
{
    size_t width = (size_t)c->width;
    if (c->kind_count == c->kinds_room) {
        uint32_t room = c->kinds_room ? 2 * c->kinds_room : 64;
        Kind *kinds = realloc(c->kinds, room * sizeof *kinds);
        if (kinds)
            c->kinds = kinds;
        int64_t *demands = realloc(c->demand, room * width * sizeof *demands);
        if (demands)
            c->demand = demands;
        if (!kinds || !demands)
            return -2;
        c->kinds_room = room;
    }
    int64_t fit = INT64_MAX;
    for (size_t r = 0; r < width; r++)
        if (demand[r] > 0 && c->largest[r] / demand[r] < fit)
            fit = c->largest[r] / demand[r];
    memcpy(c->demand + c->kind_count * width, demand, width * sizeof *demand);
    c->kinds[c->kind_count] = (Kind){0, fit < INT64_MAX ? fit : 0};
    return c->kind_count++;
}

static inline void count_kind(Crowd *c, uint32_t kind, int64_t change)
{
    Kind *k = &c->kinds[kind];
    int before = rate_of(k->count);
    k->count += change;
    c->stale |= rate_of(k->count) != before && k->fit > 0;
}

/* Whether a comes before b in the table: the higher rate, then the larger shape. */
static inline bool rated_before(const Crowd *c, Rated a, Rated b)
{
    if (a.rate != b.rate)
        return a.rate > b.rate;
    if (c->kinds[a.kind].fit != c->kinds[b.kind].fit)
        return c->kinds[a.kind].fit < c->kinds[b.kind].fit;
    const int64_t *x = c->demand + a.kind * (size_t)c->width, *y = c->demand + b.kind * (size_t)c->width;
    for (int32_t r = 0; r < c->rows; r++)
        if (x[c->place[r]] != y[c->place[r]])
            return x[c->place[r]] < y[c->place[r]];
    return false;
}

/* The kinds that the table is made of, in its order. */
static inline uint32_t choose_kinds(const Crowd *c, Rated *chosen)
{
    uint32_t count = 0;
    for (uint32_t kind = 0; kind < c->kind_count; kind++) {
        Rated rated = {kind, c->kinds[kind].fit ? rate_of(c->kinds[kind].count) : -1};
        if (rated.rate < 0 || (count == TYPICAL_MAX && !rated_before(c, rated, chosen[count - 1])))
            continue;
        uint32_t at = count < TYPICAL_MAX ? count++ : count - 1;
        for (; at && rated_before(c, rated, chosen[at - 1]); at--)
            chosen[at] = chosen[at - 1];
        chosen[at] = rated;
    }
    return count;
}

static inline void fill_table(Crowd *c)
{
    Typical *t = &c->table;
    int64_t total = 0;
    for (uint32_t i = 0; i < c->chosen_count; i++)
        total += INT64_C(1) << c->chosen[i].rate;
    t->count = (int32_t)(c->chosen_count + 7) / 8 * 8;
    t->rows = 0;
    for (int32_t i = 0; i < t->count; i++)
        t->weight[i] = (uint32_t)i >= c->chosen_count ? 0
                       : (double)((INT64_C(1) << (c->chosen[i].rate + POTENTIAL_BITS)) /
                                  (total * c->kinds[c->chosen[i].kind].fit));
    for (int32_t r = 0; r < c->width; r++) {
        bool wanted = false;
        for (int32_t i = 0; i < t->count; i++) {
            bool real = (uint32_t)i < c->chosen_count;
            int64_t want = real ? c->demand[c->chosen[i].kind * (size_t)c->width + (size_t)r] : 0;
            t->demand[t->rows][i] = want ? (double)want : 1;
            t->spare[t->rows][i] = want ? 0 : TYPICAL_SPARE;
            wanted |= want > 0;
        }
        t->row[t->rows] = r;
        t->rows += wanted;
    }
}

/* Bring the table up to date. */
static inline void refresh_table(Crowd *c)
{
    Rated chosen[TYPICAL_MAX];
    uint32_t count = choose_kinds(c, chosen);
    c->stale = false;
    bool same = count == c->chosen_count;
    for (uint32_t i = 0; same && i < count; i++)
        same = chosen[i].kind == c->chosen[i].kind && chosen[i].rate == c->chosen[i].rate;
    if (same && c->version)
        return;
    memcpy(c->chosen, chosen, count * sizeof *chosen);
    c->chosen_count = count;
    c->version++;
    fill_table(c);
}

static inline bool has_room_to_spare(const Crowd *c)
{
    for (int32_t r = 0; r < c->width; r++)
        if (c->size[r] > 0 && (c->size[r] - c->left[r]) * 1024 >= c->size[r] * IDLE)
            return false;
    return true;
}

static inline bool has_nodes_to_spare(const Crowd *c)
{
    for (int32_t r = 0; r < c->width; r++)
        if (c->whole[r] > 0 && (c->size[r] - c->left[r]) * 1024 > c->whole[r] * PATIENT)
            return false;
    return true;
}

static inline int64_t edge_s(int level)
{
    static const int64_t edges_s[LEVELS] = {0, 3600, 36000, 360000, FOREVER};
    return edges_s[level];
}

/* The level of the time that is left until then. */
static inline int level_of(const Crowd *c, int64_t until_s)
{
    int level = 0;
    while (level < LEVELS - 1 && (until_s == FOREVER || until_s - c->now_s > edge_s(level)))
        level++;
    return level;
}

/* When an instance of a level that comes now will have gone. */
static inline int64_t end_s(const Crowd *c, int level)
{
    return level == LEVELS - 1 ? FOREVER : c->now_s + edge_s(level);
}

/* Whatever is asked next is asked of the state as it is now. */
static inline void refresh_crowd(Crowd *c)
{
    c->patient = c->lifetimes && has_nodes_to_spare(c);
    if (c->stale || !c->version)
        refresh_table(c);
    c->idle = has_room_to_spare(c);
}

/* What the room in an amount of each row is worth. */
static inline double worth_of(const Crowd *c, const Filters *filters, const int64_t *have, const int64_t *less)
{
    double within[64];
    const Typical *t = &c->table;
    for (int32_t i = 0; i < t->rows; i++) {
        int32_t row = t->row[i];
        int64_t amount = have[row] - (less ? less[row] : 0); /* it fits, so this cannot wrap */
        within[i] = amount < 0 ? 0 : (double)(amount < c->largest[row] ? amount : c->largest[row]);
    }
    return filters->worth(t, within);
}

#endif
