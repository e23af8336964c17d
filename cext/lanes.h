/* What scan.h declares, compiled once for each instruction set; included by scan.h only.
 *
 * FILTER(x) gives a function its name for the set, SIGNS(v) is a mask with bit i = sign of lane i.
 *
 * Only subtraction and OR are used: a lane is out as soon as one of its differences is negative. These
 * run on every vector unit at full width, unlike comparisons into masks. Codes are -1..127: nothing wraps.
 */

static uint32_t FILTER(next_block)(const Lanes *cells, uint32_t block, uint32_t stop, const Window *window,
                                   int32_t width, uint64_t *left)
{
#define ONE_BLOCK(WIDTH)                                                                                 \
    for (; block < stop; block++) {                                                                      \
        const Lanes *row = cells + (size_t)block * (size_t)(WIDTH);                                      \
        Lanes out = {0};                                                                                 \
        for (int32_t r = 0; r < (WIDTH); r++)                                                            \
            out |= (row[r] - window->least[r]) | (window->most[r] - row[r]);                             \
        uint64_t mask = ~(uint64_t)SIGNS(out);                                                           \
        if (mask) {                                                                                      \
            *left = mask;                                                                                \
            return block;                                                                                \
        }                                                                                                \
    }
    if (width == 8) {
        ONE_BLOCK(8)
    } else if (width == 4) {
        ONE_BLOCK(4)
    } else {
        ONE_BLOCK(width)
    }
#undef ONE_BLOCK
    return stop;
}

/* A pure read of the same bytes: what the memory allows. */
static int64_t FILTER(read_blocks)(const Lanes *cells, size_t count)
{
    Lanes a = {0}, b = {0}, c = {0}, d = {0};
    for (size_t i = 0; i + 4 <= count; i += 4) {
        a |= cells[i];
        b |= cells[i + 1];
        c |= cells[i + 2];
        d |= cells[i + 3];
    }
    a |= b | c | d;
    return SIGNS(a);
}

/* Amounts of the rows of the table, none negative and none above 2^40, so that all is exact: a quotient of
 * doubles below 2^52 is never rounded up to a whole number, and 2^52 is where whole numbers begin. */
static double FILTER(worth)(const Typical *typical, const double *amounts)
{
    double total[8] = {0};
    for (int32_t first = 0; first < typical->count; first += 8) {
        double fit[8];
        for (int i = 0; i < 8; i++)
            fit[i] = TYPICAL_SPARE;
        for (int32_t r = 0; r < typical->rows; r++)
            for (int i = 0; i < 8; i++) {
                double each = amounts[r] / typical->demand[r][first + i] + typical->spare[r][first + i];
                fit[i] = each < fit[i] ? each : fit[i];
            }
        for (int i = 0; i < 8; i++) {
            double whole = fit[i] + 0x1p52 - 0x1p52;
            whole -= whole > fit[i] ? 1.0 : 0.0;
            total[i] += whole * typical->weight[first + i];
        }
    }
    double sum = 0;
    for (int i = 0; i < 8; i++)
        sum += total[i];
    return sum;
}
