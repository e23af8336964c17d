/* A fleet's state: nodes, the classes of equal nodes, and their table. Semantics: scheduler/reference.py.
 *
 * Nodes with the same free amounts and the same attr are one class; what is decided about one of them holds
 * for all. A class lives as long as it has members; its id is used again under another generation.
 * Rows are in internal order: the scored resources first, then zero rows up to a multiple of ROW_STEP, then
 * the unscored ones, padded likewise. Zero rows have no effect anywhere.
 */
#ifndef CUMULET_FLEET_H
#define CUMULET_FLEET_H

#include "crowd.h"

#define NONE UINT32_MAX

enum {
    ROW_STEP = 4,
    RESOURCES_MAX = 56, /* so that padded rows are at most 64 and a sum of units has 35 bits */
    UNIT_BITS = 28,     /* a unit is 1/2^28 of the largest amount: lossless up to that amount */
    CODE_SHIFT = UNIT_BITS - 14, /* of a unit, to look its code up */
    SUM_BITS = 35,
    PLACES_MAX = 3, /* resources of a potential */
    MASKS_MAX = 16, /* of a question: one for each placement group, and one of nodes by name */
    POOL_CLASSES = 32,
    MODES = 4,     /* of a crowd: it has room to spare or not, lifetimes count or not */
    BIN_SHIFT = 3, /* of a code */
    BINS = (CODE_TOP + 1) >> BIN_SHIFT
};
#define UNIT_TOP (1 << UNIT_BITS)
#define SUM_TOP ((UINT64_C(1) << SUM_BITS) - 1)
#define POTENTIAL_MAX (1 << 30) /* values are within, so that a difference has 32 bits */
#define POTENTIAL_BIAS (INT64_C(1) << 31)
#define SLOTS_MAX (UINT32_C(1) << 26)  /* bounds memory; far beyond any fleet */
#define SHAPES_MAX (UINT32_C(1) << 24) /* likewise */
#define ATTRS_MAX (UINT32_C(1) << 20)
#define CSETS_MAX (UINT32_C(1) << 20)
/* Beside a class's attr, with a crowd: nothing runs on its nodes; levels below the highest of the time until
 * something does no longer. */
#define EMPTY_BIT (1 << 24)
#define LEVEL_SHIFT 25
#define ATTR_MASK (EMPTY_BIT - 1)

typedef enum { NORM_LINF, NORM_L1, NORM_L2, NORM_WORST, NORM_DOT, NORM_POTENTIAL, NORM_SLOTS } Norm;

/* Results of operations that can fail; nothing was changed. */
typedef enum { DONE = 0, NO_MEMORY = -2, NOT_A_NODE = -3, OVERFLOWS = -4 } Outcome;

typedef struct {
    uint64_t rank; /* canonical order of equal nodes, smallest first */
    uint32_t cls;  /* NONE: no node here */
    uint32_t at;   /* place in its class's heap */
} Node;

typedef struct {
    uint64_t hash;  /* linear in the free amounts: taking a shape subtracts the shape's hash */
    uint64_t *many; /* heap of members when room > 0 */
    uint64_t one;   /* the single member when room == 0 */
    uint32_t count, room;
    uint64_t born; /* place in the log */
    uint32_t lane; /* in its bin */
    uint8_t bin;   /* BINS: takes nothing */
    uint32_t generation;
    int32_t attr;
} Class;

typedef struct {
    uint64_t hash;
    int32_t cset;
    uint32_t kind;    /* of the crowd that is counted here; NONE: none is */
    uint8_t level;        /* of the time that it lasts */
    uint32_t lane[MODES]; /* in each mode of the crowd; NONE: has no list */
} Shape;

/* Classes whose least common row has a code in the same range: a shape fits none in the bins before that of its
 * own least. Most nodes of a full fleet are full in some row, so that most shapes look at few bins. */
typedef struct {
    Lanes *cells; /* [lane / LANES][width] */
    uint32_t *classes; /* of each lane; lanes are without gaps */
    uint32_t count, room;
} Bin;

enum {
    LIST_ROOM = 16,
    LIST_FILL = 6,        /* a new list is made about as quickly as the old one is brought up to date */
    LIST_FILL_BLIND = 12, /* but where all that fit are judged for it: see has_bounds */
    LISTED_MIN = 512, /* births after which a list is made anew, at least: few classes are looked at quickly */
    GUESSES = 4,      /* of where the best are, before all are looked at */
    LOG_ROOM = 8192   /* a power of two; a shape that comes once in 4,000 events still finds all that is new */
};

typedef struct {
    uint64_t key;
    uint32_t cls, generation;
} Entry;

/* The best classes for a shape, in order of key and free amounts; some may be dead by now. Of the classes born
 * before `listed` it has all that come before the bound, of those born since and before `seen` those of them
 * with a key of at most `sure`: what is no better than the best is judged only if that has died. Classes that
 * differ in attr only are equal here: the rank of their members decides. */
typedef struct {
    uint64_t bound_key; /* with bound_free: from here on classes may be missing */
    uint64_t listed, seen;
    uint64_t sure;
    uint64_t guess; /* of the key up to which LIST_FILL classes are found */
    uint32_t shape;
    int32_t bound; /* in units: no class before the bound keeps more of a resource */
    uint8_t first, count;
    uint8_t built;
    uint8_t mode;    /* which lane of its shape it is */
    uint8_t bounded; /* 0: the list has every class that fits */
    uint8_t used;    /* for the clock that picks which shape leaves */
    Entry entries[LIST_ROOM];
} List;

typedef struct {
    uint32_t slot;
    int32_t shape;   /* >= 0: a shape was taken; ~shape: it was given; JOURNAL_STATE: see states */
    int64_t until_s; /* before, with lifetimes */
} Change;
#define JOURNAL_STATE INT32_MIN

typedef struct {
    /* resources */
    int32_t rows, scored, width;
    Norm norm;
    int32_t place[RESOURCES_MAX]; /* the internal row of a caller's resource */
    uint64_t multiplier[64];
    uint8_t shift[64];
    uint64_t salt[64]; /* of the linear hash */
    /* potential: value of a state by up to three resources, in steps */
    int32_t potential_row[PLACES_MAX];
    int64_t potential_step[PLACES_MAX];
    int64_t potential_size[PLACES_MAX];
    int32_t potential_rows;
    int32_t *potential;
    /* slots: the crowd, and what a node has when nothing runs on it */
    Crowd *crowd;          /* NULL but for NORM_SLOTS */
    bool counts;           /* the crowd is that of this fleet's nodes, and its own */
    uint64_t seen_version; /* of the crowd's table, by the lists */
    int64_t *size;         /* [slot][width] */
    int64_t *until_s;      /* [slot]: when what runs there will have gone, FOREVER if it is not known */
    double *worth;         /* [class]: of what is free, by the table of that version */
    uint64_t *worth_version;
    /* nodes */
    Node *nodes;
    uint32_t slots, slots_room, node_count;
    /* classes: parallel arrays */
    Class *classes;
    int64_t *free;  /* [class][width] */
    int32_t *units; /* [class][width] */
    Bin bins[BINS]; /* all classes but those that take nothing */
    bool bins_full; /* one has no room for another class: memory ran out */
    bool common[64]; /* rows that every shape asks for */
    int8_t code[(1 << 14) + 1]; /* of a unit >> CODE_SHIFT */
    uint32_t classes_top, classes_room, classes_alive;
    /* log: a ring of the classes made last, with their cells while they live */
    Lanes *log_cells; /* [LOG_ROOM / LANES][width] */
    uint32_t *log_classes;
    uint64_t log_head;
    uint32_t *idle; /* ids below classes_top that are free */
    uint32_t idle_count;
    uint64_t *table; /* open addressing: high half = tag of the hash, low half = class + 1; 0 = empty */
    uint64_t table_mask;
    uint64_t *pool[POOL_CLASSES]; /* heaps that are free, by size; each points to the next */
    uint8_t *eligible; /* [cset][attrs_room]: whether it may go there */
    uint32_t csets_room, attrs_room;
    /* shapes */
    Shape *shapes;
    int64_t *demand; /* [shape][width] */
    int64_t *need;   /* [shape][width]: the demand, or INT64_MIN where nothing is asked for */
    int32_t *want;   /* [shape][width]: the demand in units */
    uint32_t shape_count, shapes_room;
    /* lanes: shapes that have a list */
    List *lists;
    int64_t *bound_free; /* [lane][width] */
    uint32_t lanes, lanes_room, lanes_max, clock;
    /* journal */
    Change *changes;
    size_t change_count, changes_room;
    int64_t *states; /* [n][width + 1]: what a node had free and its attr */
    size_t state_count, states_room;
    uint32_t marks;
    /* searches over nodes */
    uint32_t *stamp; /* [slots_room]: == epoch where a node is excluded */
    uint32_t epoch;
    const uint64_t *masks[MASKS_MAX]; /* a bit that is set in one of them excludes, too */
    uint32_t mask_count;              /* 0 but while such a question is answered */
    const uint32_t *mask_bit;         /* [slot]: its bit; NULL: the slot is */
    uint64_t *frontier;
    size_t frontier_room;
    const Filters *filters;
    size_t bytes;
    uint64_t refills, created; /* counters for whoever tunes it */
} Fleet;

/* ---- memory: every block is counted ------------------------------------------------------------- */

static inline void *grown(Fleet *f, void *old, size_t old_bytes, size_t new_bytes)
{
    void *block = aligned_alloc(64, (new_bytes + 63) / 64 * 64);
    if (!block)
        return NULL;
    if (old_bytes)
        memcpy(block, old, old_bytes);
    memset((char *)block + old_bytes, 0, (new_bytes + 63) / 64 * 64 - old_bytes);
    free(old);
    f->bytes += new_bytes - old_bytes;
    return block;
}

/* Grow an array from `have` to `room` elements; false leaves everything as it was. */
#define GROW(f, array, have, room, each)                                                                 \
    ({                                                                                                   \
        void *block_ = grown((f), (array), (size_t)(have) * (each), (size_t)(room) * (each));            \
        if (block_)                                                                                      \
            (array) = block_;                                                                            \
        block_ != NULL;                                                                                  \
    })

/* ---- amounts ------------------------------------------------------------------------------------ */

static inline int32_t unit_of(const Fleet *f, int32_t row, int64_t amount)
{
    if (amount <= 0)
        return 0;
    unsigned __int128 unit = ((unsigned __int128)(uint64_t)amount * f->multiplier[row]) >> f->shift[row];
    return unit > UNIT_TOP ? UNIT_TOP : (int32_t)unit;
}

static inline uint64_t hash_of(const Fleet *f, const int64_t *amounts)
{
    uint64_t hash = 0;
    for (int32_t r = 0; r < f->width; r++)
        hash += (uint64_t)amounts[r] * f->salt[r];
    return hash;
}

static inline uint64_t mixed(uint64_t hash, int32_t attr)
{
    hash ^= (uint64_t)(uint32_t)attr * UINT64_C(0x9E3779B97F4A7C15);
    hash ^= hash >> 32;
    hash *= UINT64_C(0xD6E8FEB86659FD93);
    return hash ^ hash >> 32;
}

/* ---- members: a 4-ary heap of (rank's high half, slot), the smallest rank first -------------------- */

static inline uint64_t member_of(const Fleet *f, uint32_t slot)
{
    return (f->nodes[slot].rank & ~UINT64_C(0xFFFFFFFF)) | slot;
}

static inline bool rank_before(const Fleet *f, uint64_t a, uint64_t b)
{
    if ((a ^ b) >> 32)
        return a < b;
    uint64_t rank_a = f->nodes[(uint32_t)a].rank, rank_b = f->nodes[(uint32_t)b].rank;
    return rank_a < rank_b || (rank_a == rank_b && (uint32_t)a < (uint32_t)b);
}

static inline uint64_t *members(Class *c)
{
    return c->room ? c->many : &c->one;
}

static inline uint32_t first_member(const Class *c)
{
    return (uint32_t)(c->room ? c->many[0] : c->one);
}

static inline void put_member(Fleet *f, uint64_t *heap, uint32_t at, uint64_t member)
{
    heap[at] = member;
    f->nodes[(uint32_t)member].at = at;
}

static inline uint32_t sift_up(Fleet *f, uint64_t *heap, uint32_t at, uint64_t member)
{
    while (at) {
        uint32_t parent = (at - 1) / 4;
        if (!rank_before(f, member, heap[parent]))
            break;
        put_member(f, heap, at, heap[parent]);
        at = parent;
    }
    put_member(f, heap, at, member);
    return at;
}

static inline void sift_down(Fleet *f, uint64_t *heap, uint32_t count, uint32_t at, uint64_t member)
{
    for (;;) {
        uint64_t child = 4 * (uint64_t)at + 1;
        if (child >= count)
            break;
        uint32_t least = (uint32_t)child, stop = child + 4 < count ? (uint32_t)child + 4 : count;
        for (uint32_t next = least + 1; next < stop; next++)
            if (rank_before(f, heap[next], heap[least]))
                least = next;
        if (!rank_before(f, heap[least], member))
            break;
        put_member(f, heap, at, heap[least]);
        at = least;
    }
    put_member(f, heap, at, member);
}

static inline uint32_t pool_of(uint32_t room)
{
    return (uint32_t)__builtin_ctz(room);
}

static inline bool reserve_member(Fleet *f, Class *c)
{
    if (c->count < (c->room ? c->room : 1))
        return true;
    uint32_t room = c->room ? 2 * c->room : 4;
    uint64_t *heap = f->pool[pool_of(room)];
    if (heap) {
        memcpy(&f->pool[pool_of(room)], heap, sizeof heap);
    } else {
        heap = malloc(room * sizeof *heap);
        if (!heap)
            return false;
        f->bytes += room * sizeof *heap;
    }
    memcpy(heap, members(c), c->count * sizeof *heap);
    if (c->room) {
        memcpy(c->many, &f->pool[pool_of(c->room)], sizeof heap);
        f->pool[pool_of(c->room)] = c->many;
    }
    c->many = heap;
    c->room = room;
    return true;
}

/* There is room: see reserve_member. */
static inline void add_member(Fleet *f, uint32_t cls, uint32_t slot)
{
    Class *c = &f->classes[cls];
    f->nodes[slot].cls = cls;
    c->count++;
    sift_up(f, members(c), c->count - 1, member_of(f, slot));
}

static inline void drop_member(Fleet *f, Class *c, uint32_t slot)
{
    uint64_t *heap = members(c);
    uint32_t at = f->nodes[slot].at, last = --c->count;
    if (at == last)
        return;
    if (at && rank_before(f, heap[last], heap[(at - 1) / 4]))
        sift_up(f, heap, at, heap[last]);
    else
        sift_down(f, heap, last, at, heap[last]);
}

#endif
