/* The classes of a fleet: found by their state, made and ended, in bins for the filter and in the log of births. */
#ifndef CUMULET_CLASSES_H
#define CUMULET_CLASSES_H

#include "fleet.h"

/* ---- classes -------------------------------------------------------------------------------------- */

static inline const int64_t *free_of(const Fleet *f, uint32_t cls)
{
    return f->free + (size_t)cls * (size_t)f->width;
}

static inline bool equal_amounts(const int64_t *a, const int64_t *b, int32_t width)
{
    int64_t differ = 0;
    for (int32_t r = 0; r < width; r += ROW_STEP)
        differ |= (a[r] ^ b[r]) | (a[r + 1] ^ b[r + 1]) | (a[r + 2] ^ b[r + 2]) | (a[r + 3] ^ b[r + 3]);
    return differ == 0;
}

static inline uint32_t find_class(const Fleet *f, const int64_t *amounts, int32_t attr, uint64_t hash)
{
    uint64_t mix = mixed(hash, attr), tag = mix >> 32;
    for (uint64_t at = mix & f->table_mask; f->table[at]; at = (at + 1) & f->table_mask) {
        uint32_t cls = (uint32_t)f->table[at] - 1;
        if (f->table[at] >> 32 == tag && f->classes[cls].attr == attr &&
            equal_amounts(free_of(f, cls), amounts, f->width))
            return cls;
    }
    return NONE;
}

static inline void enter_class(Fleet *f, uint32_t cls)
{
    uint64_t mix = mixed(f->classes[cls].hash, f->classes[cls].attr), at = mix & f->table_mask;
    while (f->table[at])
        at = (at + 1) & f->table_mask;
    f->table[at] = (mix & ~UINT64_C(0xFFFFFFFF)) | (cls + 1);
}

/* Linear probing without tombstones: what follows moves up where it may. */
static inline void leave_class(Fleet *f, uint32_t cls)
{
    uint64_t mask = f->table_mask, at = mixed(f->classes[cls].hash, f->classes[cls].attr) & mask;
    while ((uint32_t)f->table[at] != cls + 1)
        at = (at + 1) & mask;
    for (uint64_t next = (at + 1) & mask; f->table[next]; next = (next + 1) & mask) {
        const Class *c = &f->classes[(uint32_t)f->table[next] - 1];
        uint64_t home = mixed(c->hash, c->attr) & mask;
        if (((next - home) & mask) >= ((next - at) & mask)) {
            f->table[at] = f->table[next];
            at = next;
        }
    }
    f->table[at] = 0;
}

static inline int8_t code_of(const Fleet *f, int32_t unit)
{
    return f->code[unit >> CODE_SHIFT];
}

static inline int8_t *cell_of(const Fleet *f, Lanes *cells, uint32_t lane, int32_t row)
{
    return (int8_t *)(cells + (size_t)(lane / LANES) * (size_t)f->width + row) + lane % LANES;
}

static inline void clear_cells(const Fleet *f, Lanes *cells, uint32_t lane)
{
    int8_t *cell = cell_of(f, cells, lane, 0);
    for (int32_t r = 0; r < f->width; r++)
        cell[r * LANES] = -1;
}

static inline void copy_cells(const Fleet *f, Lanes *to, uint32_t to_lane, Lanes *from, uint32_t from_lane)
{
    const int8_t *source = cell_of(f, from, from_lane, 0);
    int8_t *cell = cell_of(f, to, to_lane, 0);
    for (int32_t r = 0; r < f->width; r++)
        cell[r * LANES] = source[r * LANES];
}

/* ---- bins ------------------------------------------------------------------------------------------- */

/* The bin of amounts in units; of a shape's it is the first that may have a class that fits. */
static inline uint32_t bin_of(const Fleet *f, const int32_t *units)
{
    int8_t least = CODE_TOP;
    for (int32_t r = 0; r < f->width; r++) {
        int8_t code = code_of(f, units[r]);
        least = f->common[r] && code < least ? code : least;
    }
    return (uint32_t)least >> BIN_SHIFT;
}

/* Room for one more class in a bin. */
static inline bool reserve_bin(Fleet *f, Bin *bin)
{
    if (bin->count < bin->room)
        return true;
    uint32_t have = bin->room, room = have ? 2 * have : LANES;
    if (!GROW(f, bin->cells, have, room, (size_t)f->width) || !GROW(f, bin->classes, have, room, sizeof(uint32_t)))
        return false;
    memset((char *)bin->cells + (size_t)have * (size_t)f->width, 0xFF, (size_t)(room - have) * (size_t)f->width);
    bin->room = room;
    return true;
}

static inline bool reserve_bins(Fleet *f)
{
    for (int i = 0; i < BINS; i++)
        if (!reserve_bin(f, &f->bins[i]))
            return false;
    f->bins_full = false;
    return true;
}

/* There is room, and will be for the next class if there is memory. */
static inline void enter_bin(Fleet *f, uint32_t cls)
{
    const int32_t *units = f->units + (size_t)cls * (size_t)f->width;
    uint32_t number = bin_of(f, units);
    Bin *bin = &f->bins[number];
    f->classes[cls].bin = (uint8_t)number;
    f->classes[cls].lane = bin->count;
    bin->classes[bin->count] = cls;
    int8_t *cell = cell_of(f, bin->cells, bin->count++, 0);
    for (int32_t r = 0; r < f->width; r++)
        cell[r * LANES] = code_of(f, units[r]);
    f->bins_full |= !reserve_bin(f, bin);
}

/* The last of the bin takes its place. */
static inline void leave_bin(Fleet *f, uint32_t cls)
{
    Class *c = &f->classes[cls];
    if (c->bin == BINS)
        return;
    Bin *bin = &f->bins[c->bin];
    uint32_t last = --bin->count;
    if (c->lane != last) {
        copy_cells(f, bin->cells, c->lane, bin->cells, last);
        bin->classes[c->lane] = bin->classes[last];
        f->classes[bin->classes[last]].lane = c->lane;
    }
    clear_cells(f, bin->cells, last);
}

/* Another choice of common rows: all classes that are alive change their bins. False: no memory, and nothing was
 * changed. */
static inline bool set_common(Fleet *f, const bool *common)
{
    for (int i = 0; i < BINS; i++) /* any may get all */
        while (f->bins[i].room <= f->classes_alive) {
            uint32_t count = f->bins[i].count;
            f->bins[i].count = f->bins[i].room;
            bool done = reserve_bin(f, &f->bins[i]);
            f->bins[i].count = count;
            if (!done)
                return false;
        }
    memcpy(f->common, common, sizeof f->common);
    for (int i = 0; i < BINS; i++) {
        while (f->bins[i].count)
            clear_cells(f, f->bins[i].cells, --f->bins[i].count);
    }
    for (uint32_t cls = 0; cls < f->classes_top; cls++)
        if (f->classes[cls].count && f->classes[cls].bin != BINS)
            enter_bin(f, cls);
    return true;
}

/* ---- making and ending ------------------------------------------------------------------------------- */

static inline bool reserve_class(Fleet *f)
{
    if (f->bins_full && !reserve_bins(f))
        return false;
    if (f->idle_count || f->classes_top < f->classes_room)
        return true;
    uint32_t have = f->classes_room, room = have ? 2 * have : 64;
    size_t width = (size_t)f->width;
    uint64_t slots = 2 * (uint64_t)room, *table = calloc(slots, sizeof *table);
    if (!table)
        return false;
    if (!GROW(f, f->classes, have, room, sizeof(Class)) || !GROW(f, f->free, have, room, width * 8) ||
        !GROW(f, f->units, have, room, width * 4) ||
        !GROW(f, f->idle, have, room, sizeof(uint32_t)) ||
        (f->crowd && (!GROW(f, f->worth, have, room, sizeof(double)) ||
                      !GROW(f, f->worth_version, have, room, sizeof(uint64_t))))) {
        free(table);
        return false;
    }
    f->bytes += slots * sizeof *table - (have ? (f->table_mask + 1) * sizeof *table : 0);
    free(f->table);
    f->table = table;
    f->table_mask = slots - 1;
    f->classes_room = room;
    for (uint32_t cls = 0; cls < f->classes_top; cls++)
        enter_class(f, cls); /* none is idle here */
    return true;
}

/* The class is the latest of the log. */
static inline void log_class(Fleet *f, uint32_t cls)
{
    uint32_t at = (uint32_t)(f->log_head % LOG_ROOM);
    if (f->classes[cls].bin < BINS)
        copy_cells(f, f->log_cells, at, f->bins[f->classes[cls].bin].cells, f->classes[cls].lane);
    else
        clear_cells(f, f->log_cells, at);
    f->log_classes[at] = cls;
    f->classes[cls].born = f->log_head++;
}

/* A class without members yet; its room was reserved. */
static inline uint32_t make_class(Fleet *f, const int64_t *amounts, int32_t attr, uint64_t hash)
{
    uint32_t cls = f->idle_count ? f->idle[--f->idle_count] : f->classes_top++;
    Class *c = &f->classes[cls];
    c->hash = hash;
    c->attr = attr;
    size_t base = (size_t)cls * (size_t)f->width;
    memcpy(f->free + base, amounts, (size_t)f->width * sizeof *amounts);
    for (int32_t r = 0; r < f->width; r++)
        f->units[base + (size_t)r] = unit_of(f, r, amounts[r]);
    c->bin = BINS;
    if (attr >= 0)
        enter_bin(f, cls);
    if (f->crowd)
        f->worth_version[cls] = 0;
    log_class(f, cls);
    enter_class(f, cls);
    f->classes_alive++;
    f->created++;
    return cls;
}

static inline void end_class(Fleet *f, uint32_t cls)
{
    Class *c = &f->classes[cls];
    leave_class(f, cls);
    if (c->room) {
        memcpy(c->many, &f->pool[pool_of(c->room)], sizeof c->many);
        f->pool[pool_of(c->room)] = c->many;
        c->room = 0;
    }
    c->generation++;
    leave_bin(f, cls);
    if (f->log_head - c->born <= LOG_ROOM)
        clear_cells(f, f->log_cells, (uint32_t)(c->born % LOG_ROOM));
    f->idle[f->idle_count++] = cls;
    f->classes_alive--;
}

#endif
