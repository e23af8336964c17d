/* What changes a fleet: nodes set and removed, amounts taken and given, and the journal that undoes.
 *
 * Every operation reserves what it needs first, so that it either happens or changes nothing.
 */
#ifndef CUMULET_MOVES_H
#define CUMULET_MOVES_H

#include "lists.h"

static inline bool is_node(const Fleet *f, uint32_t slot)
{
    return slot < f->slots && f->nodes[slot].cls != NONE;
}

/* A node leaves its class. */
static inline void leave(Fleet *f, uint32_t slot)
{
    uint32_t cls = f->nodes[slot].cls;
    Class *c = &f->classes[cls];
    if (c->count > 1) {
        drop_member(f, c, slot);
        return;
    }
    c->count = 0;
    end_class(f, cls);
    if (c->generation == 0) /* wrapped: old entries could be taken for living ones */
        for (uint32_t lane = 0; lane < f->lanes; lane++)
            forget_list(f, lane);
}

/* ---- the crowd ------------------------------------------------------------------------------------------ */

/* The attr of a class with those amounts, with what is known of its nodes: `size` is what they have in all. */
static inline int32_t marked(const Fleet *f, uint32_t slot, int32_t attr, const int64_t *amounts,
                             const int64_t *size)
{
    if (!f->crowd || attr < 0)
        return attr;
    if (equal_amounts(amounts, size, f->width))
        return (attr & ATTR_MASK) | EMPTY_BIT;
    if (!f->counts)
        return attr & ~EMPTY_BIT; /* the other fleet knows the time */
    attr &= ATTR_MASK;
    return f->crowd->lifetimes ? attr | (LEVELS - 1 - level_of(f->crowd, f->until_s[slot])) << LEVEL_SHIFT : attr;
}

static inline const int64_t *size_of(const Fleet *f, uint32_t slot)
{
    return f->crowd ? f->size + (size_t)slot * (size_t)f->width : NULL;
}

/* A node that is there joins the crowd (sign 1) or leaves it; only nodes in use count. */
static inline void count_node(Fleet *f, uint32_t slot, int sign)
{
    if (!f->counts)
        return;
    uint32_t cls = f->nodes[slot].cls;
    int32_t attr = f->classes[cls].attr;
    if (attr < 0)
        return;
    const int64_t *left = free_of(f, cls), *size = size_of(f, slot);
    for (int32_t r = 0; f->crowd->lifetimes && r < f->width; r++)
        f->crowd->whole[r] += sign > 0 ? (__int128)size[r] : -(__int128)size[r];
    if (attr & EMPTY_BIT)
        return;
    for (int32_t r = 0; r < f->width; r++) {
        f->crowd->left[r] += sign > 0 ? (__int128)left[r] : -(__int128)left[r];
        f->crowd->size[r] += sign > 0 ? (__int128)size[r] : -(__int128)size[r];
    }
}

/* An instance of a shape has come (1) or gone (-1). */
static inline void count_shape(Fleet *f, uint32_t shape, int change)
{
    if (f->counts)
        count_kind(f->crowd, f->shapes[shape].kind, change);
}

/* What the coming or going (sign 1) of a shape makes of the time until nothing runs on the node: what goes
 * before its time tells nothing of the others. Returns what it was. */
static inline int64_t shift_until(Fleet *f, uint32_t slot, uint32_t shape, int sign)
{
    if (!f->counts || !f->crowd->lifetimes)
        return FOREVER;
    int64_t before = f->until_s[slot], end = end_s(f->crowd, f->shapes[shape].level);
    bool empty = f->classes[f->nodes[slot].cls].attr & EMPTY_BIT;
    if (sign < 0 && (empty || end > before))
        f->until_s[slot] = end;
    return before;
}

static inline void restore_until(Fleet *f, uint32_t slot, int64_t until_s)
{
    if (f->until_s)
        f->until_s[slot] = until_s;
}

/* ---- nodes and classes ------------------------------------------------------------------------------------ */

/* Put a node, which is or is not there yet, into the class of its new state. */
static inline Outcome move(Fleet *f, uint32_t slot, const int64_t *amounts, int32_t attr, uint64_t hash)
{
    attr = marked(f, slot, attr, amounts, size_of(f, slot));
    uint32_t cls = find_class(f, amounts, attr, hash);
    if (cls == NONE ? !reserve_class(f) : cls != f->nodes[slot].cls && !reserve_member(f, &f->classes[cls]))
        return NO_MEMORY;
    if (cls != NONE && cls == f->nodes[slot].cls)
        return DONE;
    if (f->nodes[slot].cls != NONE) {
        count_node(f, slot, -1);
        leave(f, slot);
    }
    if (cls == NONE)
        cls = make_class(f, amounts, attr, hash);
    add_member(f, cls, slot);
    count_node(f, slot, 1);
    return DONE;
}

/* ---- journal ------------------------------------------------------------------------------------------- */

static inline bool reserve_change(Fleet *f, bool with_state)
{
    if (!f->marks)
        return true;
    if (f->change_count == f->changes_room) {
        size_t have = f->changes_room, room = have ? 2 * have : 256;
        if (!GROW(f, f->changes, have, room, sizeof(Change)))
            return false;
        f->changes_room = room;
    }
    if (with_state && f->state_count == f->states_room) {
        size_t have = f->states_room, room = have ? 2 * have : 64;
        if (!GROW(f, f->states, have, room, ((size_t)f->width + 1) * 8))
            return false;
        f->states_room = room;
    }
    return true;
}

static inline void record(Fleet *f, uint32_t slot, int32_t shape, int64_t until_s)
{
    if (f->marks)
        f->changes[f->change_count++] = (Change){slot, shape, until_s};
}

/* ---- amounts ---------------------------------------------------------------------------------------------- */

/* Add amounts to what is free on a node (sign 1) or take them (-1). Not journaled. */
static inline Outcome shift(Fleet *f, uint32_t slot, const int64_t *amounts, uint64_t hash, int sign)
{
    int64_t after[64];
    const Class *c = &f->classes[f->nodes[slot].cls];
    const int64_t *before = free_of(f, f->nodes[slot].cls);
    bool overflows = false;
    for (int32_t r = 0; r < f->width; r++)
        overflows |= sign > 0 ? __builtin_add_overflow(before[r], amounts[r], &after[r])
                              : __builtin_sub_overflow(before[r], amounts[r], &after[r]);
    if (overflows)
        return OVERFLOWS;
    return move(f, slot, after, c->attr, sign > 0 ? c->hash + hash : c->hash - hash);
}

static inline Outcome shift_shape(Fleet *f, uint32_t slot, uint32_t shape, int sign)
{
    if (!is_node(f, slot))
        return NOT_A_NODE;
    if (!reserve_change(f, false))
        return NO_MEMORY;
    int64_t until_s = shift_until(f, slot, shape, sign);
    Outcome outcome = shift(f, slot, f->demand + (size_t)shape * (size_t)f->width, f->shapes[shape].hash, sign);
    if (outcome == DONE) {
        record(f, slot, sign < 0 ? (int32_t)shape : ~(int32_t)shape, until_s);
        count_shape(f, shape, -sign);
    } else {
        restore_until(f, slot, until_s);
    }
    return outcome;
}

/* Keep a node's state for undo(); the journal has room for it. */
static inline void record_state(Fleet *f, uint32_t slot)
{
    if (!f->marks)
        return;
    int64_t *state = f->states + f->state_count++ * ((size_t)f->width + 1);
    memcpy(state, free_of(f, f->nodes[slot].cls), (size_t)f->width * 8);
    state[f->width] = f->classes[f->nodes[slot].cls].attr;
    record(f, slot, JOURNAL_STATE, f->until_s ? f->until_s[slot] : FOREVER);
}

static inline void forget_state(Fleet *f)
{
    if (f->marks) {
        f->state_count--;
        f->change_count--;
    }
}

static inline Outcome shift_amounts(Fleet *f, uint32_t slot, const int64_t *amounts, int sign)
{
    if (!is_node(f, slot))
        return NOT_A_NODE;
    if (!reserve_change(f, true))
        return NO_MEMORY;
    record_state(f, slot);
    Outcome outcome = shift(f, slot, amounts, hash_of(f, amounts), sign);
    if (outcome != DONE)
        forget_state(f);
    return outcome;
}

static inline Outcome set_attr(Fleet *f, uint32_t slot, int32_t attr)
{
    if (!is_node(f, slot))
        return NOT_A_NODE;
    if (!reserve_change(f, true))
        return NO_MEMORY;
    int64_t amounts[64];
    memcpy(amounts, free_of(f, f->nodes[slot].cls), (size_t)f->width * 8);
    record_state(f, slot);
    Outcome outcome = move(f, slot, amounts, attr, f->classes[f->nodes[slot].cls].hash);
    if (outcome != DONE)
        forget_state(f);
    return outcome;
}

/* Undo changes until there are `count`, the latest first. NO_MEMORY: some are undone, the journal says which. */
static inline Outcome undo(Fleet *f, size_t count)
{
    while (f->change_count > count) {
        Change change = f->changes[f->change_count - 1];
        uint32_t shape = (uint32_t)(change.shape >= 0 ? change.shape : ~change.shape);
        Outcome outcome;
        int64_t until_s = f->until_s ? f->until_s[change.slot] : FOREVER;
        restore_until(f, change.slot, change.until_s);
        if (change.shape == JOURNAL_STATE) {
            const int64_t *state = f->states + (f->state_count - 1) * ((size_t)f->width + 1);
            outcome = move(f, change.slot, state, (int32_t)state[f->width], hash_of(f, state));
            f->state_count -= outcome == DONE;
        } else {
            outcome = shift(f, change.slot, f->demand + (size_t)shape * (size_t)f->width, f->shapes[shape].hash,
                            change.shape >= 0 ? 1 : -1);
        }
        if (outcome != DONE) {
            restore_until(f, change.slot, until_s);
            return outcome;
        }
        if (change.shape != JOURNAL_STATE)
            count_shape(f, shape, change.shape >= 0 ? -1 : 1);
        f->change_count--;
    }
    return DONE;
}

/* The journal is of no use any more. */
static inline void keep_changes(Fleet *f)
{
    f->change_count = 0;
    f->state_count = 0;
}

/* ---- nodes ------------------------------------------------------------------------------------------------ */

static inline bool reserve_slot(Fleet *f, uint32_t slot)
{
    if (slot >= f->slots_room) {
        uint32_t have = f->slots_room, room = have ? have : 64;
        while (room <= slot)
            room *= 2;
        if (!GROW(f, f->nodes, have, room, sizeof(Node)) || !GROW(f, f->stamp, have, room, sizeof(uint32_t)) ||
            (f->crowd && !GROW(f, f->size, have, room, (size_t)f->width * 8)) ||
            (f->counts && f->crowd->lifetimes && !GROW(f, f->until_s, have, room, sizeof(int64_t))))
            return false;
        for (uint32_t i = have; i < room; i++)
            f->nodes[i].cls = NONE;
        f->slots_room = room;
    }
    return true;
}

/* A node's whole state; its slot is below SLOTS_MAX, attr is known or -1. `size`: what it has when nothing runs
 * on it; not looked at without a crowd. */
static inline Outcome set_node(Fleet *f, uint32_t slot, const int64_t *amounts, int32_t attr, uint64_t rank,
                               const int64_t *size)
{
    uint64_t hash = hash_of(f, amounts);
    if (!reserve_slot(f, slot))
        return NO_MEMORY;
    uint32_t cls = find_class(f, amounts, marked(f, slot, attr, amounts, size), hash);
    if (cls == NONE ? !reserve_class(f) : !reserve_member(f, &f->classes[cls]))
        return NO_MEMORY;
    Node *node = &f->nodes[slot];
    if (node->cls == NONE) {
        f->node_count++;
    } else if (node->rank != rank || node->cls != cls || f->crowd) {
        count_node(f, slot, -1);
        leave(f, slot);
    } else {
        return DONE;
    }
    node->cls = NONE;
    node->rank = rank;
    if (f->crowd)
        memcpy(f->size + (size_t)slot * (size_t)f->width, size, (size_t)f->width * 8);
    if (slot >= f->slots)
        f->slots = slot + 1;
    return move(f, slot, amounts, attr, hash); /* cannot fail: there is room */
}

static inline Outcome remove_node(Fleet *f, uint32_t slot)
{
    if (!is_node(f, slot))
        return NOT_A_NODE;
    count_node(f, slot, -1);
    leave(f, slot);
    f->nodes[slot].cls = NONE;
    f->node_count--;
    return DONE;
}

/* With lifetimes: when what runs there will have gone; set_node() comes next. */
static inline Outcome set_until(Fleet *f, uint32_t slot, int64_t until_s)
{
    if (!reserve_slot(f, slot))
        return NO_MEMORY;
    restore_until(f, slot, until_s);
    return DONE;
}

/* It is another time: nodes change their classes. NO_MEMORY: some have, and it may be called again. */
static inline Outcome set_time(Fleet *f, int64_t now_s)
{
    f->crowd->now_s = now_s;
    for (uint32_t slot = 0; slot < f->slots; slot++) {
        if (f->nodes[slot].cls == NONE || f->until_s[slot] == FOREVER)
            continue;
        const Class *c = &f->classes[f->nodes[slot].cls];
        const int64_t *left = free_of(f, f->nodes[slot].cls);
        if (marked(f, slot, c->attr, left, size_of(f, slot)) == c->attr)
            continue;
        int64_t amounts[64];
        memcpy(amounts, left, (size_t)f->width * sizeof *amounts);
        Outcome outcome = move(f, slot, amounts, c->attr, c->hash);
        if (outcome != DONE)
            return outcome;
    }
    return DONE;
}

#endif
