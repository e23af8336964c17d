/* The short lists of the best classes for a shape.
 *
 * A shape that is asked for has a lane and in it a list. It is brought up to date when the shape is asked for:
 * what was born since is judged, what has died is dropped when it is met.
 */
#ifndef CUMULET_LISTS_H
#define CUMULET_LISTS_H

#include "shapes.h"

/* ---- lists --------------------------------------------------------------------------------------------- */

static inline bool alive(const Fleet *f, const Entry *entry)
{
    return f->classes[entry->cls].generation == entry->generation;
}

/* From now on the list has what comes before this class. */
static inline void set_bound(Fleet *f, uint32_t lane, uint64_t key, uint32_t cls)
{
    List *list = &f->lists[lane];
    list->bounded = 1;
    list->bound_key = key;
    memcpy(f->bound_free + (size_t)lane * (size_t)f->width, free_of(f, cls), (size_t)f->width * 8);
    list->bound = largest_term(f, key);
}

static inline bool before_bound(const Fleet *f, uint32_t lane, uint64_t key, uint32_t cls)
{
    const List *list = &f->lists[lane];
    if (!list->bounded || key != list->bound_key)
        return !list->bounded || key < list->bound_key;
    return order_of(free_of(f, cls), f->bound_free + (size_t)lane * (size_t)f->width, f->width) < 0;
}

static inline void drop_dead(const Fleet *f, List *list)
{
    uint8_t kept = 0;
    for (uint8_t i = list->first; i < list->count; i++)
        if (alive(f, &list->entries[i]))
            list->entries[kept++] = list->entries[i];
    list->first = 0;
    list->count = kept;
}

/* Make room in a full list of living entries for a class: what comes last leaves, with all its equals. False:
 * the class is what comes last. */
static inline bool cut_list(Fleet *f, uint32_t lane, uint64_t key, uint32_t cls)
{
    List *list = &f->lists[lane];
    Entry last = list->entries[list->count - 1];
    int order = key != last.key ? (key < last.key ? -1 : 1) : class_order(f, cls, last.cls);
    if (order > 0) {
        set_bound(f, lane, key, cls);
        return false;
    }
    set_bound(f, lane, last.key, last.cls);
    while (list->count && list->entries[list->count - 1].key == last.key &&
           class_order(f, list->entries[list->count - 1].cls, last.cls) == 0)
        list->count--;
    return order < 0;
}

/* Enter a class that fits and comes before the bound; `room` <= LIST_ROOM entries at most. */
static inline void enter_list(Fleet *f, uint32_t lane, uint64_t key, uint32_t cls, uint8_t room)
{
    List *list = &f->lists[lane];
    if (list->count == room) {
        drop_dead(f, list);
        if (list->count == room && !cut_list(f, lane, key, cls))
            return;
    }
    uint8_t at = list->count++;
    for (; at > list->first; at--) {
        const Entry *other = &list->entries[at - 1];
        /* A dead entry of the same key cannot be compared; behind the new one it does no harm. */
        if (other->key < key || (other->key == key && alive(f, other) && class_order(f, other->cls, cls) < 0))
            break;
        list->entries[at] = *other;
    }
    list->entries[at] = (Entry){key, cls, f->classes[cls].generation};
}

static inline bool has_entry(const Fleet *f, const List *list, uint32_t cls)
{
    for (uint8_t i = list->first; i < list->count; i++)
        if (list->entries[i].cls == cls && list->entries[i].generation == f->classes[cls].generation)
            return true;
    return false;
}

/* Judge a class by a lane's exact rules. */
static inline void offer(Fleet *f, uint32_t lane, uint32_t cls, uint64_t sure, uint8_t room)
{
    List *list = &f->lists[lane];
    /* Of no meaning where it does not fit; but it is made of units alone, and most are out by it. */
    bool early = has_bounds(f);
    uint64_t key = early ? key_of(f, cls, list->shape) : 0;
    if (key > sure || (list->bounded && key > list->bound_key) || !fits(f, cls, list->shape))
        return;
    if (!early)
        key = key_of(f, cls, list->shape);
    if (key <= sure && before_bound(f, lane, key, cls))
        enter_list(f, lane, key, cls, room);
}

/* What fits the shape and keeps at most `bound` units of a scored resource is within the window. */
static inline void narrow(const Fleet *f, uint32_t shape, int32_t bound, Window *window)
{
    const int32_t *want = f->want + (size_t)shape * (size_t)f->width;
    for (int32_t r = 0; r < f->scored; r++) {
        int32_t most = want[r] + bound;
        window->most[r] = code_of(f, most < UNIT_TOP ? most : UNIT_TOP) - (Lanes){0};
    }
}

static inline void open_window(const Fleet *f, uint32_t shape, int32_t bound, Window *window)
{
    const int32_t *want = f->want + (size_t)shape * (size_t)f->width;
    for (int32_t r = 0; r < f->width; r++)
        window->least[r] = code_of(f, want[r]) - (Lanes){0};
    for (int32_t r = f->scored; r < f->width; r++)
        window->most[r] = CODE_TOP - (Lanes){0};
    narrow(f, shape, bound, window);
}

/* A walk over the classes that may be within a window. */
typedef struct {
    Window window;
    uint32_t bin, block;
    uint64_t left; /* lanes of the block before `block` */
} Walk;

static inline void start_walk(const Fleet *f, uint32_t shape, int32_t bound, Walk *walk)
{
    open_window(f, shape, bound, &walk->window);
    walk->bin = bin_of(f, f->want + (size_t)shape * (size_t)f->width);
    walk->block = 0;
    walk->left = 0;
}

/* NONE: there are no more. The window may be narrowed between calls. */
static inline uint32_t next_class(const Fleet *f, Walk *walk)
{
    while (!walk->left) {
        if (walk->bin == BINS)
            return NONE;
        const Bin *bin = &f->bins[walk->bin];
        uint32_t stop = (bin->count + LANES - 1) / LANES;
        if (walk->block < stop)
            walk->block =
                f->filters->next_block(bin->cells, walk->block, stop, &walk->window, f->width, &walk->left);
        if (walk->block++ >= stop) {
            walk->bin++;
            walk->block = 0;
            continue;
        }
        const uint32_t *classes = bin->classes + (walk->block - 1) * LANES;
        for (uint64_t left = walk->left; left; left &= left - 1) {
            size_t row = (size_t)classes[__builtin_ctzll(left)] * (size_t)f->width;
            __builtin_prefetch(f->units + row);
            __builtin_prefetch(f->free + row);
        }
    }
    uint32_t lane = (walk->block - 1) * LANES + (uint32_t)__builtin_ctzll(walk->left);
    walk->left &= walk->left - 1;
    return f->bins[walk->bin].classes[lane];
}

/* From now on the list has what has a smaller key than the guess; UINT64_MAX: everything. */
static inline void guess_bound(Fleet *f, uint32_t lane, uint64_t guess)
{
    List *list = &f->lists[lane];
    list->first = list->count = 0;
    list->bounded = guess != UINT64_MAX;
    list->bound_key = guess;
    list->bound = largest_term(f, guess);
    for (int32_t r = 0; r < f->width; r++) /* of equals none is before it */
        f->bound_free[(size_t)lane * (size_t)f->width + (size_t)r] = INT64_MIN;
}

/* Build a lane's list from all classes that come before the guess of the lane: states change little, so the key
 * up to which the last list reached is a good one. The list may be left empty. */
static inline void refill(Fleet *f, uint32_t lane, uint64_t guess)
{
    List *list = &f->lists[lane];
    uint8_t room = has_bounds(f) ? LIST_FILL : LIST_FILL_BLIND;
    guess_bound(f, lane, guess);
    list->built = 1;
    list->listed = list->seen = f->log_head;
    Walk walk;
    int32_t bound = list->bound;
    start_walk(f, list->shape, bound, &walk);
    for (uint32_t cls; (cls = next_class(f, &walk)) != NONE;) {
        offer(f, lane, cls, UINT64_MAX, room);
        if (list->bound < bound)
            narrow(f, list->shape, bound = list->bound, &walk.window);
    }
    list->guess = list->bounded && has_bounds(f) ? list->bound_key : UINT64_MAX;
    if (list->guess < UINT64_MAX / 2)
        list->guess += list->guess / 4; /* too many cost less than too few, after which all is looked at again */
    f->refills++;
}

/* Judge the classes of the log from `from` to `to`, which lie in the ring without a break. `again`: some of
 * them may be in the list already. */
static inline void judge_log(Fleet *f, uint32_t lane, const Window *window, uint32_t from, uint32_t to, bool again)
{
    const List *list = &f->lists[lane];
    uint32_t stop = (to + LANES - 1) / LANES;
    uint64_t left = 0;
    for (uint32_t block = from / LANES;; block++) {
        block = f->filters->next_block(f->log_cells, block, stop, window, f->width, &left);
        if (block >= stop)
            break;
        for (; left; left &= left - 1) {
            uint32_t at = block * LANES + (uint32_t)__builtin_ctzll(left);
            if (at >= from && at < to && !(again && has_entry(f, list, f->log_classes[at])))
                offer(f, lane, f->log_classes[at], list->sure, LIST_ROOM);
        }
    }
}

/* Bring a list up to date, so that it has all that was born since `listed` and has a key of at most `sure`. */
static inline void catch_up(Fleet *f, uint32_t lane, uint64_t sure)
{
    List *list = &f->lists[lane];
    bool again = sure > list->sure && list->seen > list->listed;
    uint64_t start = again ? list->listed : list->seen;
    if (sure > list->sure || list->seen == list->listed)
        list->sure = sure;
    if (start == f->log_head)
        return;
    Window window;
    int32_t bound = largest_term(f, list->sure);
    open_window(f, list->shape, bound < list->bound ? bound : list->bound, &window);
    uint32_t from = (uint32_t)(start % LOG_ROOM), to = (uint32_t)(f->log_head % LOG_ROOM);
    list->seen = f->log_head;
    if (from < to) {
        judge_log(f, lane, &window, from, to, again);
    } else {
        judge_log(f, lane, &window, from, LOG_ROOM, again);
        judge_log(f, lane, &window, 0, to, again);
    }
    if (list->sure == UINT64_MAX)
        list->listed = f->log_head;
}

static inline void forget_list(Fleet *f, uint32_t lane)
{
    f->lists[lane].built = 0;
}

/* Keys are those of the state as it is now. To be called before any question. */
static inline void refresh(Fleet *f)
{
    if (!f->crowd)
        return;
    refresh_crowd(f->crowd);
    if (f->seen_version == f->crowd->version)
        return;
    f->seen_version = f->crowd->version;
    for (uint32_t lane = 0; lane < f->lanes; lane++)
        forget_list(f, lane);
}

/* ---- lanes ------------------------------------------------------------------------------------------- */

static inline bool reserve_lane(Fleet *f)
{
    if (f->lanes < f->lanes_room)
        return true;
    uint32_t have = f->lanes_room, room = have ? 2 * have : LANES;
    size_t width = (size_t)f->width;
    if (!GROW(f, f->lists, have, room, sizeof(List)) || !GROW(f, f->bound_free, have, room, width * 8))
        return false;
    f->lanes_room = room;
    return true;
}

/* The lane of a shape that was not asked for lately leaves. */
static inline uint32_t vacate_lane(Fleet *f)
{
    for (;;) {
        uint32_t lane = f->clock;
        f->clock = lane + 1 < f->lanes ? lane + 1 : 0;
        if (!f->lists[lane].used) {
            f->shapes[f->lists[lane].shape].lane[f->lists[lane].mode] = NONE;
            return lane;
        }
        f->lists[lane].used = 0;
    }
}

/* NONE: no memory. */
static inline uint32_t lane_of(Fleet *f, uint32_t shape)
{
    uint8_t mode = f->crowd ? (uint8_t)(f->crowd->idle + 2 * f->crowd->patient) : 0;
    uint32_t lane = f->shapes[shape].lane[mode];
    if (lane != NONE)
        return lane;
    if (f->lanes == f->lanes_max)
        lane = vacate_lane(f);
    else if (reserve_lane(f))
        lane = f->lanes++;
    else
        return NONE;
    f->shapes[shape].lane[mode] = lane;
    f->lists[lane].shape = shape;
    f->lists[lane].mode = mode;
    forget_list(f, lane);
    return lane;
}

/* The first node of a list's living entries, which begin at `first`. */
static inline uint32_t first_listed(const Fleet *f, const List *list)
{
    const Entry *first = &list->entries[list->first];
    uint32_t slot = first_member(&f->classes[first->cls]);
    for (const Entry *next = first + 1; next < list->entries + list->count && next->key == first->key; next++)
        if (alive(f, next) && node_before(f, next->key, first_member(&f->classes[next->cls]), first->key, slot))
            slot = first_member(&f->classes[next->cls]);
    return slot;
}

/* Whether the list begins with a living entry; dead ones before it are passed over. */
static inline bool has_first(const Fleet *f, List *list)
{
    for (; list->first < list->count; list->first++)
        if (alive(f, &list->entries[list->first]))
            return true;
    return false;
}

/* Whether what was born since costs more to judge again and again than a new list. */
static inline bool is_outdated(const Fleet *f, const List *list)
{
    uint64_t behind = f->log_head - list->listed, often = f->classes_alive / 8;
    if (!list->built || behind > LOG_ROOM)
        return true;
    return has_bounds(f) && behind > (often > LISTED_MIN ? often : LISTED_MIN);
}

/* Bring a lane's list up to date, building it if need be, so that it begins with the best class that is alive;
 * with `whole` it has all that come before its bound. False: it is empty; then nothing fits, or, if it is
 * bounded, more classes are equally good than a list has room for. */
static inline bool ready_list(Fleet *f, uint32_t lane, bool whole)
{
    List *list = &f->lists[lane];
    list->used = 1;
    whole = whole || !has_bounds(f); /* where the window filters little, nothing is judged twice */
    if (is_outdated(f, list))
        refill(f, lane, list->built ? list->guess : UINT64_MAX);
    for (int attempt = 0; attempt <= GUESSES; attempt++) {
        if (has_first(f, list) || !list->bounded || whole)
            catch_up(f, lane, whole || !has_first(f, list) ? UINT64_MAX : list->entries[list->first].key);
        if (has_first(f, list))
            return true;
        if (!list->bounded)
            return false;
        refill(f, lane, attempt < GUESSES - 1 ? list->guess : UINT64_MAX);
    }
    return false;
}

#endif
