/* Decisions: the best node, without some nodes, among some nodes, all in order. */
#ifndef CUMULET_SEARCH_H
#define CUMULET_SEARCH_H

#include "moves.h"

enum { RANKED_MAX = 1024 };

/* ---- members of a class in order of rank -------------------------------------------------------------- */

/* Room for a walk that visits `visits` members. */
static inline bool reserve_frontier(Fleet *f, size_t visits)
{
    size_t have = f->frontier_room, room = 4 * visits + 8;
    if (room <= have)
        return true;
    if (!GROW(f, f->frontier, have, room, sizeof(uint64_t)))
        return false;
    f->frontier_room = room;
    return true;
}

/* The frontier is a binary heap of members whose parents were visited. */
static inline void push_frontier(Fleet *f, size_t *count, uint64_t member)
{
    size_t at = (*count)++;
    for (; at && rank_before(f, member, f->frontier[(at - 1) / 2]); at = (at - 1) / 2)
        f->frontier[at] = f->frontier[(at - 1) / 2];
    f->frontier[at] = member;
}

static inline uint64_t pop_frontier(Fleet *f, size_t *count)
{
    uint64_t least = f->frontier[0], last = f->frontier[--*count];
    size_t at = 0;
    for (size_t child = 1; child < *count; child = 2 * at + 1) {
        if (child + 1 < *count && rank_before(f, f->frontier[child + 1], f->frontier[child]))
            child++;
        if (!rank_before(f, f->frontier[child], last))
            break;
        f->frontier[at] = f->frontier[child];
        at = child;
    }
    f->frontier[at] = last;
    return least;
}

/* The next member by rank; start with count = 0 and the first member pushed. */
static inline uint32_t next_member(Fleet *f, size_t *count)
{
    uint32_t slot = (uint32_t)pop_frontier(f, count);
    Class *c = &f->classes[f->nodes[slot].cls];
    uint64_t child = 4 * (uint64_t)f->nodes[slot].at + 1;
    for (uint64_t end = child + 4; child < end && child < c->count; child++)
        push_frontier(f, count, members(c)[child]);
    return slot;
}

static inline bool is_excluded(const Fleet *f, uint32_t slot)
{
    uint32_t bit = f->mask_bit ? f->mask_bit[slot] : slot;
    for (uint32_t i = 0; i < f->mask_count; i++)
        if (f->masks[i][bit / 64] >> bit % 64 & 1)
            return true;
    return f->stamp[slot] == f->epoch;
}

/* -1: all are excluded. The frontier has room for one visit more than there are excluded nodes. */
static inline int64_t first_not_excluded(Fleet *f, uint32_t cls)
{
    Class *c = &f->classes[cls];
    size_t count = 0;
    push_frontier(f, &count, members(c)[0]);
    while (count) {
        uint32_t slot = next_member(f, &count);
        if (!is_excluded(f, slot))
            return slot;
    }
    return -1;
}

/* ---- without some nodes ------------------------------------------------------------------------------------ */

static inline void exclude(Fleet *f, const int32_t *slots, size_t count)
{
    if (++f->epoch == 0) {
        memset(f->stamp, 0, f->slots_room * sizeof *f->stamp);
        f->epoch = 1;
    }
    for (size_t i = 0; i < count; i++)
        if (slots[i] >= 0 && (uint32_t)slots[i] < f->slots)
            f->stamp[slots[i]] = f->epoch;
}

/* Over all classes; the frontier has room as for first_not_excluded. */
static inline int64_t scan_not_excluded(Fleet *f, uint32_t shape)
{
    Walk walk;
    start_walk(f, shape, UNIT_TOP, &walk);
    uint64_t best_key = UINT64_MAX;
    int64_t best = -1;
    for (uint32_t cls; (cls = next_class(f, &walk)) != NONE;) {
        if (!fits(f, cls, shape))
            continue;
        uint64_t key = key_of(f, cls, shape);
        if (best >= 0 && (key > best_key || (key == best_key && class_order(f, cls, f->nodes[best].cls) > 0)))
            continue;
        int64_t slot = first_not_excluded(f, cls);
        if (slot >= 0 && (best < 0 || node_before(f, key, (uint32_t)slot, best_key, (uint32_t)best))) {
            best = slot;
            best_key = key;
            narrow(f, shape, largest_term(f, key), &walk.window);
        }
    }
    return best;
}

/* The best node without the help of a list, which the shape needs not have. -1: fits nowhere; NO_MEMORY. */
static inline int64_t scan_one(Fleet *f, uint32_t shape)
{
    if (!reserve_frontier(f, 1))
        return NO_MEMORY;
    refresh(f);
    exclude(f, NULL, 0);
    return scan_not_excluded(f, shape);
}

static inline int64_t best_node(Fleet *f, uint32_t shape)
{
    refresh(f);
    uint32_t lane = lane_of(f, shape);
    if (lane == NONE)
        return NO_MEMORY;
    if (ready_list(f, lane, false))
        return first_listed(f, &f->lists[lane]);
    return f->lists[lane].bounded ? scan_one(f, shape) : -1;
}

/* The best node, and the shape is taken from it. */
static inline int64_t place_one(Fleet *f, uint32_t shape)
{
    int64_t slot = best_node(f, shape);
    if (slot < 0)
        return slot;
    Outcome outcome = shift_shape(f, (uint32_t)slot, shape, -1);
    return outcome == DONE ? slot : outcome;
}

/* The first node of the list's entries from `at` on that are equal to it, but for excluded ones; -1. */
static inline int64_t listed_not_excluded(Fleet *f, const List *list, uint8_t at)
{
    const Entry *first = &list->entries[at];
    int64_t slot = alive(f, first) ? first_not_excluded(f, first->cls) : -1;
    if (slot < 0)
        return -1;
    for (const Entry *next = first + 1; next < list->entries + list->count && next->key == first->key; next++) {
        int64_t other = alive(f, next) ? first_not_excluded(f, next->cls) : -1;
        if (other >= 0 && node_before(f, next->key, (uint32_t)other, first->key, (uint32_t)slot))
            slot = other;
    }
    return slot;
}

/* The best node but for the given ones (numbers that are no slots are ignored); -1; NO_MEMORY. */
static inline int64_t best_excluding(Fleet *f, uint32_t shape, const int32_t *slots, size_t count)
{
    refresh(f);
    uint32_t lane = lane_of(f, shape);
    if (lane == NONE || !reserve_frontier(f, (f->mask_count ? f->node_count : count) + 1))
        return NO_MEMORY;
    exclude(f, slots, count);
    if (!ready_list(f, lane, true))
        return f->lists[lane].bounded ? scan_not_excluded(f, shape) : -1;
    const List *list = &f->lists[lane];
    for (uint8_t at = list->first; at < list->count; at++) {
        int64_t slot = listed_not_excluded(f, list, at);
        if (slot >= 0)
            return slot;
    }
    return list->bounded ? scan_not_excluded(f, shape) : -1;
}

/* The best node that no mask excludes. `mask_bit`: see Fleet. -1; NO_MEMORY. */
static inline int64_t best_unmasked(Fleet *f, uint32_t shape, const uint64_t **masks, uint32_t count,
                                    const uint32_t *mask_bit)
{
    memcpy(f->masks, masks, count * sizeof *masks);
    f->mask_count = count;
    f->mask_bit = mask_bit;
    int64_t slot = best_excluding(f, shape, NULL, 0);
    f->mask_count = 0;
    f->mask_bit = NULL;
    return slot;
}

/* ---- among some nodes -------------------------------------------------------------------------------------- */

static inline int64_t best_among(Fleet *f, uint32_t shape, const int32_t *slots, size_t count)
{
    refresh(f);
    int64_t best = -1;
    uint64_t best_key = UINT64_MAX;
    for (size_t i = 0; i < count; i++) {
        if (slots[i] < 0 || !is_node(f, (uint32_t)slots[i]))
            continue;
        uint32_t slot = (uint32_t)slots[i], cls = f->nodes[slot].cls;
        if (!fits(f, cls, shape))
            continue;
        uint64_t key = key_of(f, cls, shape);
        if (best < 0 || node_before(f, key, slot, best_key, (uint32_t)best)) {
            best = slot;
            best_key = key;
        }
    }
    return best;
}

/* ---- all that fit ------------------------------------------------------------------------------------------- */

static inline uint64_t fitting_count(const Fleet *f, uint32_t shape)
{
    Walk walk;
    start_walk(f, shape, UNIT_TOP, &walk);
    uint64_t count = 0;
    for (uint32_t cls; (cls = next_class(f, &walk)) != NONE;)
        count += fits(f, cls, shape) ? f->classes[cls].count : 0;
    return count;
}

/* The `count` <= RANKED_MAX classes that fit with the best first members, in their order; how many there are. */
static inline uint32_t rank_classes(const Fleet *f, uint32_t shape, uint32_t count, Entry *ranked)
{
    uint32_t found = 0;
    for (uint32_t cls = 0; cls < f->classes_top; cls++) {
        const Class *c = &f->classes[cls];
        if (!c->count || !fits(f, cls, shape))
            continue;
        uint64_t key = key_of(f, cls, shape);
        uint32_t at = found;
        while (at && node_before(f, key, first_member(c), ranked[at - 1].key,
                                 first_member(&f->classes[ranked[at - 1].cls])))
            at--;
        if (at == count)
            continue;
        found += found < count;
        memmove(ranked + at + 1, ranked + at, (found - at - 1) * sizeof *ranked);
        ranked[at] = (Entry){key, cls, 0};
    }
    return found;
}

/* The `count` <= RANKED_MAX best nodes with their keys; how many there are or NO_MEMORY. */
static inline int64_t rank_nodes(Fleet *f, uint32_t shape, uint32_t count, int32_t *slots, uint64_t *keys)
{
    Entry ranked[RANKED_MAX];
    refresh(f);
    uint32_t classes = rank_classes(f, shape, count, ranked), found = 0;
    if (!reserve_frontier(f, 2 * (size_t)count))
        return NO_MEMORY;
    for (uint32_t i = 0; i < classes;) {
        uint32_t cls = ranked[i].cls;
        uint64_t key = ranked[i].key;
        size_t waiting = 0;
        /* Classes that differ in attr only are merged by rank. */
        for (; i < classes && ranked[i].key == key && class_order(f, ranked[i].cls, cls) == 0; i++)
            push_frontier(f, &waiting, members(&f->classes[ranked[i].cls])[0]);
        for (; waiting && found < count; found++) {
            slots[found] = (int32_t)next_member(f, &waiting);
            keys[found] = key;
        }
    }
    return found;
}

#endif
