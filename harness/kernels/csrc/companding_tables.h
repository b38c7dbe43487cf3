/* A layer's curve as tables: what the passes of companding.c look up. The fp32 arithmetic is that of
 * harness/quantization/curve.py. */
#define MOST_INTERVALS 64
#define MOST_CODES 128
#define CELLS 1024
#define LOG_RATIO 10.0 /* as in harness/quantization/curve.py */

/* A layer's curve, in steps: the compressor at its knots, and of each code its level and the expander's slope there.
 * Places are what lies between two neighbouring bounds; a place has one code and one interval. */
typedef struct {
    double share[MOST_INTERVALS], total;
    int32_t learns[MOST_INTERVALS];
    float source[MOST_INTERVALS + 1], target[MOST_INTERVALS + 1], slope[MOST_INTERVALS + 1];
    float level[MOST_CODES], rate[MOST_CODES], bound[MOST_PLACES], scale;
    int32_t intervals, high, places, tries, cells, first[CELLS];
    uint8_t code[MOST_PLACES], interval[MOST_PLACES], within[MOST_PLACES], origin[MOST_CODES];
} Tables;

_Static_assert(MOST_PLACES == MOST_INTERVALS + MOST_CODES + 2, "MOST_PLACES in companding_sums.h");
_Static_assert(sizeof(Tables) <= 8192, "TABLES in harness/kernels/cpu_companding.py");

/* Slopes to follow from each knot, of which none leads beyond the next one; in fp32, as `safe_slopes` has it. */
static void safe_slopes(const float *source, const float *target, float *slope, int32_t count) {
    for (int32_t k = 0; k < count; k++) {
        float width = source[k + 1] - source[k], rise = target[k + 1] - target[k];
        if (target[k] + slope[k] * width > target[k + 1]) {
            float less = rise / width * (float)(1 - 8 * 0x1p-23) - slope[k];
            slope[k] = slope[k] + less;
        }
    }
    slope[count] = slope[count - 1];
}

static void find_curve(Tables *by, const float *logs) {
    int32_t count = by->intervals;
    double most = logs[0], sum = 0;
    for (int32_t k = 1; k < count; k++) most = logs[k] > most ? logs[k] : most;
    for (int32_t k = 0; k < count; k++) {
        double below = logs[k] - most;
        by->learns[k] = below >= -LOG_RATIO;
        by->share[k] = exp(below < -LOG_RATIO ? -LOG_RATIO : below);
    }
    for (int32_t k = 0; k < count; k++) sum += by->share[k];
    by->total = sum, sum = 0;
    for (int32_t k = 0; k <= count; k++) {
        by->source[k] = (float)(by->high * ((double)k / count));
        by->target[k] = (float)(by->high * (sum / by->total));
        if (k < count) by->slope[k] = (float)(by->share[k] / (by->total / count)), sum += by->share[k];
    }
}

/* The last knot that is not above x. */
ALWAYS int32_t reached(const float *knots, int32_t count, float x) {
    int32_t k = 0;
    while (k < count && x >= knots[k + 1]) k++;
    return k;
}

static void find_levels(Tables *by) {
    int32_t count = by->intervals;
    float inverse[MOST_INTERVALS + 1], rates[MOST_INTERVALS];
    for (int32_t k = 0; k < count; k++) inverse[k] = rates[k] = 1 / by->slope[k];
    safe_slopes(by->target, by->source, inverse, count);
    for (int32_t c = 0; c <= by->high; c++) {
        int32_t k = reached(by->target, count, (float)c), inner = k < count ? k : count - 1;
        by->level[c] = by->source[k] + inverse[k] * ((float)c - by->target[k]);
        by->rate[c] = rates[inner];
        by->origin[c] = (uint8_t)k;
    }
}

/* The smallest x that is rounded to `code` or more, by bisection: of floats that are not negative, bits are in order. */
static float threshold(const Tables *by, int32_t code) {
    uint32_t low = 0, high;
    memcpy(&high, &by->source[by->intervals], 4);
    while (high - low > 1) {
        uint32_t middle = low + (high - low) / 2;
        float x;
        memcpy(&x, &middle, 4);
        int32_t k = reached(by->source, by->intervals, x);
        if (rintf(by->target[k] + by->slope[k] * (x - by->source[k])) >= (float)code) high = middle;
        else low = middle;
    }
    float found;
    memcpy(&found, &high, 4);
    return found;
}

/* Bounds in ascending order: where codes change, knots, and what is just outside of the range. */
static void find_places(Tables *by, float reach) {
    float change[MOST_CODES];
    int32_t code = 0, interval = 0, within = 1, place = 0;
    for (int32_t c = 1; c <= by->high; c++) change[c] = threshold(by, c);
    for (;; place++) {
        by->code[place] = (uint8_t)code, by->interval[place] = (uint8_t)interval, by->within[place] = (uint8_t)within;
        float next = code < by->high ? change[code + 1] : INFINITY;
        float knot = interval < by->intervals ? by->source[interval + 1] : INFINITY;
        if (next == INFINITY && knot == INFINITY) {
            if (!within) break;
            by->bound[place] = nextafterf(reach, INFINITY), within = 0;
        } else if (next <= knot) {
            by->bound[place] = next, code++;
        } else {
            by->bound[place] = knot, interval++;
        }
    }
    by->bound[place] = NAN; /* nothing reaches it */
    by->places = place + 1;
}

ALWAYS int32_t cell_of(float v, float scale, int32_t cells) {
    float at = v * scale, last = (float)(cells - 1);
    return (int32_t)(at < last ? at : last); /* NaN is in the last one */
}

/* Of each cell the places below it, and how many bounds the fullest one has. */
static void find_cells(Tables *by, float reach) {
    int32_t inside[CELLS] = {0}, below = 0, cells = by->places <= FEW_PLACES ? FEW_PLACES : CELLS;
    by->cells = cells, by->scale = (float)(cells - 1) / reach, by->tries = 0;
    for (int32_t place = 0; place < by->places - 1; place++) inside[cell_of(by->bound[place], by->scale, cells)]++;
    for (int32_t cell = 0; cell < cells; cell++) {
        by->first[cell] = below, below += inside[cell];
        by->tries = inside[cell] > by->tries ? inside[cell] : by->tries;
    }
}

/* logs: `count` logarithms of slopes; reach: the largest size, in steps, that counts as inside. */
static void find_tables(Tables *by, const float *logs, int32_t count, int32_t high, float reach) {
    by->intervals = count, by->high = high;
    find_curve(by, logs);
    find_levels(by);
    safe_slopes(by->source, by->target, by->slope, count);
    find_places(by, reach);
    find_cells(by, reach);
}
