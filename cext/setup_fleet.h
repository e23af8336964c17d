/* Making and freeing a fleet; its shapes and its table of who may go where. */
#ifndef CUMULET_SETUP_FLEET_H
#define CUMULET_SETUP_FLEET_H

#include "search.h"

static inline int32_t padded(int32_t rows)
{
    return (rows + ROW_STEP - 1) / ROW_STEP * ROW_STEP;
}

static inline void fleet_free(Fleet *f)
{
    if (!f)
        return;
    for (uint32_t cls = 0; cls < f->classes_top; cls++)
        if (f->classes[cls].room)
            free(f->classes[cls].many);
    for (int i = 0; i < POOL_CLASSES; i++)
        while (f->pool[i]) {
            uint64_t *heap = f->pool[i];
            memcpy(&f->pool[i], heap, sizeof heap);
            free(heap);
        }
    for (int i = 0; i < BINS; i++) {
        free(f->bins[i].cells);
        free(f->bins[i].classes);
    }
    void *blocks[] = {f->potential, f->nodes,  f->classes, f->free,       f->units,
                      f->idle,      f->table,  f->eligible, f->shapes,    f->demand,     f->need,
                      f->want,      f->lists,  f->bound_free, f->log_cells, f->log_classes, f->changes,
                      f->states,    f->stamp,  f->frontier,  f->size,      f->worth,      f->worth_version,
                      f->until_s};
    for (size_t i = 0; i < sizeof blocks / sizeof blocks[0]; i++)
        free(blocks[i]);
    if (f->counts)
        crowd_free(f->crowd);
    free(f);
}

/* A crowd of the fleet's own; largest[row] in internal order. False: no memory. */
static inline bool own_crowd(Fleet *f, const int64_t *largest)
{
    Crowd *c = calloc(1, sizeof *c);
    if (!c)
        return false;
    f->crowd = c;
    f->counts = true;
    f->bytes += sizeof *c;
    c->rows = f->rows;
    c->width = f->width;
    memcpy(c->place, f->place, (size_t)f->rows * sizeof *f->place);
    for (int32_t row = 0; row < f->width; row++)
        c->largest[row] = largest[row] < AMOUNT_MAX ? largest[row] : AMOUNT_MAX;
    return true;
}

/* The caller's resource r has multiplier[r] >= 1 and shift[r] < 64, and counts in scores if scored[r]. For
 * NORM_SLOTS either largest[r] is the most that a node has, or the crowd is another fleet's, which has the same
 * resources before others and outlives this one. */
static inline Fleet *fleet_new(int32_t rows, const uint64_t *multiplier, const uint8_t *shift, const uint8_t *scored,
                               Norm norm, uint32_t lanes_max, const int64_t *largest, Crowd *crowd)
{
    int64_t most[64] = {0};
    Fleet *f = calloc(1, sizeof *f);
    if (!f)
        return NULL;
    f->bytes = sizeof *f;
    f->rows = rows;
    f->norm = norm;
    f->lanes_max = lanes_max;
    f->filters = &FILTERS[filters_usable() - 1];
    for (int32_t i = 0; i <= 1 << 14; i++)
        f->code[i] = (int8_t)(__builtin_sqrt(i) * (CODE_TOP / 128.0) + 0.5); /* exactly rounded, so it never falls */
    for (int32_t r = 0; r < rows; r++)
        f->scored += scored[r] != 0;
    int32_t next_scored = 0, next_other = padded(f->scored);
    f->width = next_other + padded(rows - f->scored);
    f->scored = next_other;
    uint64_t state = UINT64_C(0x9E3779B97F4A7C15);
    for (int32_t r = 0; r < rows; r++) {
        int32_t row = scored[r] ? next_scored++ : next_other++;
        f->place[r] = row;
        f->multiplier[row] = multiplier[r];
        f->shift[row] = shift[r];
        most[row] = largest ? largest[r] : 0;
    }
    f->crowd = crowd;
    if (largest && !own_crowd(f, most)) {
        free(f);
        return NULL;
    }
    for (int32_t row = 0; row < f->width; row++) { /* splitmix64; odd, so that no difference is lost */
        uint64_t z = state += UINT64_C(0x9E3779B97F4A7C15);
        z = (z ^ z >> 30) * UINT64_C(0xBF58476D1CE4E5B9);
        z = (z ^ z >> 27) * UINT64_C(0x94D049BB133111EB);
        f->salt[row] = (z ^ z >> 31) | 1;
    }
    for (int32_t row = 0; row < f->width; row++)
        f->common[row] = true;
    if (!reserve_bins(f) || !reserve_class(f) || !GROW(f, f->log_cells, 0, LOG_ROOM, (size_t)f->width) ||
        !GROW(f, f->log_classes, 0, LOG_ROOM, sizeof(uint32_t))) {
        fleet_free(f);
        return NULL;
    }
    return f;
}

/* ---- shapes --------------------------------------------------------------------------------------------- */

/* A new shape's id, or NO_MEMORY. Amounts in internal order, none negative; the set of constraints is known.
 * `kind`: the demand's, where the fleet counts; `level`: of the time that it lasts. */
static inline int64_t add_shape(Fleet *f, const int64_t *demand, int32_t cset, uint32_t kind, uint8_t level)
{
    size_t width = (size_t)f->width;
    if (f->shape_count == f->shapes_room) {
        uint32_t have = f->shapes_room, room = have ? 2 * have : 64;
        if (!GROW(f, f->shapes, have, room, sizeof(Shape)) || !GROW(f, f->demand, have, room, width * 8) ||
            !GROW(f, f->need, have, room, width * 8) || !GROW(f, f->want, have, room, width * 4))
            return NO_MEMORY;
        f->shapes_room = room;
    }
    bool common[64] = {false};
    for (size_t r = 0; r < width; r++)
        common[r] = f->common[r] && demand[r] > 0;
    if (memcmp(common, f->common, sizeof common) != 0 && !set_common(f, common))
        return NO_MEMORY;
    uint32_t shape = f->shape_count++;
    f->shapes[shape] = (Shape){hash_of(f, demand), cset, kind, level, {NONE, NONE, NONE, NONE}};
    for (int32_t r = 0; r < f->width; r++) {
        size_t at = shape * width + (size_t)r;
        f->demand[at] = demand[r];
        f->need[at] = demand[r] ? demand[r] : INT64_MIN; /* not asked for: even overcommitted is no matter */
        f->want[at] = unit_of(f, r, demand[r]);
    }
    return shape;
}

/* ---- who may go where ----------------------------------------------------------------------------------- */

/* Room for sets of constraints below csets and attrs below attrs; new pairs are not eligible. */
static inline bool reserve_eligible(Fleet *f, uint32_t csets, uint32_t attrs)
{
    if (csets <= f->csets_room && attrs <= f->attrs_room)
        return true;
    uint32_t csets_room = f->csets_room ? f->csets_room : 8, attrs_room = f->attrs_room ? f->attrs_room : 8;
    while (csets_room < csets)
        csets_room *= 2;
    while (attrs_room < attrs)
        attrs_room *= 2;
    uint8_t *table = calloc(csets_room, attrs_room);
    if (!table)
        return false;
    for (uint32_t cset = 0; cset < f->csets_room; cset++)
        memcpy(table + (size_t)cset * attrs_room, f->eligible + (size_t)cset * f->attrs_room, f->attrs_room);
    f->bytes += (size_t)csets_room * attrs_room - (size_t)f->csets_room * f->attrs_room;
    free(f->eligible);
    f->eligible = table;
    f->csets_room = csets_room;
    f->attrs_room = attrs_room;
    return true;
}

static inline bool set_eligible(Fleet *f, uint32_t cset, uint32_t attr, bool eligible)
{
    if (!reserve_eligible(f, cset + 1, attr + 1))
        return false;
    uint8_t *flag = &f->eligible[(size_t)cset * f->attrs_room + attr];
    if (*flag == eligible)
        return true;
    *flag = eligible;
    for (uint32_t lane = 0; lane < f->lanes; lane++)
        if (f->shapes[f->lists[lane].shape].cset == (int32_t)cset)
            forget_list(f, lane);
    return true;
}

#endif
