/* The trace by linear scan, without classes, bins, lists or hashes: the oracle of the decision hash, and the
 * baseline. Every node is a cell of its own, all in the last bin, and is judged again for each decision.
 */
#ifndef CUMULET_LINEAR_H
#define CUMULET_LINEAR_H

#include "replay.h"
#include "setup_fleet.h"

static inline void flat_amounts(Fleet *g, uint32_t slot, const int64_t *amounts)
{
    g->classes[slot].attr = marked(g, slot, g->classes[slot].attr, amounts, size_of(g, slot));
    if (g->crowd)
        g->worth_version[slot] = 0;
    size_t base = (size_t)slot * (size_t)g->width;
    int8_t *cell = cell_of(g, g->bins[BINS - 1].cells, slot, 0);
    for (int32_t r = 0; r < g->width; r++) {
        g->free[base + (size_t)r] = amounts[r];
        g->units[base + (size_t)r] = unit_of(g, r, amounts[r]);
        cell[r * LANES] = g->classes[slot].attr < 0 ? -1 : code_of(g, g->units[base + (size_t)r]);
    }
}

static inline void *copied(const void *block, size_t bytes)
{
    void *copy = malloc(bytes + 1);
    if (copy && bytes)
        memcpy(copy, block, bytes);
    return copy;
}

/* A crowd of the copy's own, which counts on from here. */
static inline bool flat_crowd(const Fleet *f, Fleet *g, uint32_t room)
{
    g->crowd = NULL, g->worth = NULL, g->worth_version = NULL, g->until_s = NULL;
    if (!f->crowd)
        return true;
    g->crowd = copied(f->crowd, sizeof *f->crowd);
    if (!g->crowd)
        return false;
    g->crowd->kinds = copied(f->crowd->kinds, f->crowd->kind_count * sizeof(Kind));
    g->crowd->demand = copied(f->crowd->demand, f->crowd->kind_count * (size_t)f->crowd->width * 8);
    g->until_s = f->until_s ? copied(f->until_s, f->slots * sizeof *f->until_s) : NULL;
    return g->crowd->kinds && g->crowd->demand && !f->until_s == !g->until_s && GROW(g, g->worth, 0, room + 1, sizeof(double)) &&
           GROW(g, g->worth_version, 0, room + 1, sizeof(uint64_t));
}

/* A copy in which class i is slot i alone; it shares what does not change. False: no memory. */
static inline bool flat_copy(const Fleet *f, Fleet *g)
{
    *g = *f;
    uint32_t room = (f->slots + LANES - 1) / LANES * LANES;
    size_t width = (size_t)f->width;
    g->nodes = NULL, g->classes = NULL, g->free = NULL, g->units = NULL;
    memset(g->bins, 0, sizeof g->bins);
    memset(g->common, 0, sizeof g->common);
    Bin *all = &g->bins[BINS - 1];
    g->stamp = NULL, g->frontier = NULL, g->frontier_room = 0, g->epoch = 0, g->lanes = 0;
    g->classes_top = g->slots = f->slots;
    g->slots_room = room;
    if (!flat_crowd(f, g, room) || !GROW(g, g->nodes, 0, room + 1, sizeof(Node)) || !GROW(g, g->classes, 0, room + 1, sizeof(Class)) ||
        !GROW(g, g->free, 0, room + 1, width * 8) || !GROW(g, g->units, 0, room + 1, width * 4) ||
        !GROW(g, all->cells, 0, room + LANES, width) || !GROW(g, all->classes, 0, room + 1, 4) || !GROW(g, g->stamp, 0, room + 1, 4) ||
        !reserve_frontier(g, 1))
        return false;
    memset(all->cells, 0xFF, room * width);
    all->count = f->slots;
    for (uint32_t slot = 0; slot < f->slots; slot++)
        all->classes[slot] = slot;
    for (uint32_t slot = 0; slot < f->slots; slot++) {
        if (!is_node(f, slot))
            continue;
        g->nodes[slot] = (Node){f->nodes[slot].rank, slot, 0};
        g->classes[slot].attr = f->classes[f->nodes[slot].cls].attr;
        g->classes[slot].count = 1;
        g->classes[slot].one = member_of(g, slot);
        flat_amounts(g, slot, free_of(f, f->nodes[slot].cls));
    }
    return true;
}

static inline void flat_free(Fleet *g)
{
    void *blocks[] = {g->nodes, g->classes,  g->free,  g->units,         g->stamp,
                      g->frontier, g->worth, g->worth_version, g->until_s, g->bins[BINS - 1].cells, g->bins[BINS - 1].classes};
    for (size_t i = 0; i < sizeof blocks / sizeof blocks[0]; i++)
        free(blocks[i]);
    crowd_free(g->crowd);
}

static inline void flat_shift(Fleet *g, uint32_t slot, uint32_t shape, int sign)
{
    int64_t after[64];
    const int64_t *demand = g->demand + (size_t)shape * (size_t)g->width;
    for (int32_t r = 0; r < g->width; r++) /* what was taken is given back: cannot overflow */
        after[r] = sign > 0 ? free_of(g, slot)[r] + demand[r] : free_of(g, slot)[r] - demand[r];
    shift_until(g, slot, shape, sign);
    count_node(g, slot, -1);
    flat_amounts(g, slot, after);
    count_node(g, slot, 1);
    count_shape(g, shape, -sign);
}

static inline void flat_time(Fleet *g, int64_t now_s)
{
    g->crowd->now_s = now_s;
    for (uint32_t slot = 0; slot < g->slots; slot++) {
        int64_t amounts[64];
        memcpy(amounts, free_of(g, slot), (size_t)g->width * sizeof *amounts);
        flat_amounts(g, slot, amounts);
    }
}

/* As replay_events(), but the fleet stays as it is; `at` begins with -1 everywhere. */
static inline Outcome replay_linear(const Fleet *f, const int32_t *events, size_t count, const int32_t *shape_of,
                                    const int64_t *time_s, int32_t *at, int32_t *load, Replayed *result)
{
    Fleet g;
    Outcome outcome = flat_copy(f, &g) ? DONE : NO_MEMORY;
    int64_t start_ns = now_ns();
    for (size_t i = 0; outcome == DONE && i < count; i++) {
        int32_t x = events[i] >= 0 ? events[i] : ~events[i];
        uint32_t shape = (uint32_t)shape_of[x];
        if (time_s && time_s[i] != g.crowd->now_s)
            flat_time(&g, time_s[i]);
        if (events[i] >= 0) {
            int64_t slot = scan_one(&g, shape);
            at[x] = (int32_t)slot;
            result->decision_hash = hash_decision(result->decision_hash, slot);
            if (slot >= 0) {
                flat_shift(&g, (uint32_t)slot, shape, -1);
                result->placed++;
                count_used(result, load, slot, 1);
            } else if (!result->failed++) {
                result->first_failure = (int64_t)i;
            }
        } else if (at[x] >= 0) {
            flat_shift(&g, (uint32_t)at[x], shape, 1);
            count_used(result, load, at[x], -1);
            at[x] = -1;
            result->released++;
        }
    }
    result->elapsed_ns = now_ns() - start_ns;
    flat_free(&g);
    return outcome;
}

/* ns for `rounds` decisions by scan over shapes first.., and for as many reads of the same cells. */
static inline Outcome scan_times(Fleet *f, uint32_t shape_count, uint32_t rounds, int64_t *scan_ns, int64_t *read_ns)
{
    int64_t start = now_ns();
    for (uint32_t i = 0; i < rounds; i++)
        if (scan_one(f, i % shape_count) == NO_MEMORY)
            return NO_MEMORY;
    *scan_ns = now_ns() - start;
    volatile int64_t sink = 0;
    start = now_ns();
    for (uint32_t i = 0; i < rounds; i++)
        for (int bin = 0; bin < BINS; bin++) {
            size_t vectors = (size_t)(f->bins[bin].count + LANES - 1) / LANES * (size_t)f->width;
            sink = sink + f->filters->read_blocks(f->bins[bin].cells, vectors);
        }
    *read_ns = now_ns() - start;
    return DONE;
}

#endif
