/* The passes of harness/quantization/companding.py: fake quantization between a compressor and its inverse, by tables.
 *
 * The arithmetic, fp32, is that of the plain operations there. Sums as in harness/kernels/csrc/weights.c: in blocks of fixed size, added
 * in order; in doubles.
 */
#include "common.h"

#define MOST_INTERVALS 64
#define MOST_CODES 128
/* Sums kept apart, so that one weight need not wait for what the one before it adds to the same interval. */
#define APART 8

/* The compressor on [0, high]: knots (count + 1,) and slopes (count + 1,); of each code its level and 1 / slope there. */
typedef struct {
    const float *source, *target, *slopes, *levels, *rates;
    float scale, high;
    int32_t count;
} Tables;

/* Where a weight falls: its size in steps, not clipped and clipped, its interval and its code. */
typedef struct { float size, x; int32_t piece, code; } Place;

ALWAYS Place place_of(float w, float safe, const Tables *by) {
    float size = fabsf(w) / safe, x = size > by->high ? by->high : size;
    int32_t piece = x == x ? (int32_t)(x * by->scale) : 0;
    piece = piece > by->count - 1 ? by->count - 1 : piece;
    piece += x >= by->source[piece + 1];
    float y = by->target[piece] + by->slopes[piece] * (x - by->source[piece]);
    float k = rintf(y);
    return (Place){size, x, piece, k == k ? (int32_t)(k > by->high ? by->high : k < 0 ? 0 : k) : -1};
}

static Tables tables_of(const float *tables, int32_t count, int32_t high) {
    int32_t knots = count + 1;
    Tables by = {tables, tables + knots, tables + 2 * knots, tables + 3 * knots, tables + 3 * knots + high + 1, 0, high, count};
    by.scale = (float)((1 - 8 * 0x1p-23) * count) / by.source[count];
    return by;
}

/* out = sign(w) step level. tables: knots, their images, slopes, (count + 1,) each, levels and rates, (high + 1,) each. */
void compand(const float *w, float *out, int64_t groups, int64_t size, const float *step, const float *tables,
             int count, int high) {
    int64_t per = blocks(size), all = groups * per;
    Tables by = tables_of(tables, count, high);
    EACH_BLOCK(b, all) {
        int64_t n = length(size, b % per), at = b / per * size + b % per * BLOCK;
        float s = step[b / per], safe = s > 0 ? s : 1.0f;
        for (int64_t i = at; i < at + n; i++) {
            Place found = place_of(w[i], safe, &by);
            out[i] = found.code < 0 ? NAN : copysignf(1.0f, w[i]) * (s * by.levels[found.code]);
        }
    }
}

/* Of a block: for each interval what goes to its knot's image and to its slope, for each code to its level, the step's. */
typedef struct { double image[MOST_INTERVALS + 1], slope[MOST_INTERVALS + 1], level[MOST_CODES], pull; } Sums;

static void clear(Sums *sums, const Tables *by) {
    sums->pull = 0;
    for (int32_t k = 0; k <= by->count; k++) sums->image[k] = sums->slope[k] = 0;
    for (int32_t c = 0; c <= (int32_t)by->high; c++) sums->level[c] = 0;
}

static void add(Sums *sums, const Sums *more, const Tables *by) {
    sums->pull += more->pull;
    for (int32_t k = 0; k <= by->count; k++) sums->image[k] += more->image[k], sums->slope[k] += more->slope[k];
    for (int32_t c = 0; c <= (int32_t)by->high; c++) sums->level[c] += more->level[c];
}

static void block_backward(const float *restrict w, const float *restrict grad, float *restrict out, int64_t n,
                           float step, float slack, const Tables *by, Sums *restrict sums) {
    float safe = step > 0 ? step : 1.0f;
    Sums own[APART];
    for (int j = 0; j < APART; j++) clear(own + j, by);
    for (int64_t i = 0; i < n; i++) {
        Sums *to = own + i % APART;
        Place found = place_of(w[i], safe, by);
        float sign = copysignf(1.0f, w[i]), up = sign * grad[i], within = found.size <= by->high + slack ? 1.0f : 0.0f;
        int32_t code = found.code < 0 ? 0 : found.code;
        float to_level = up * step, to_code = to_level * by->rates[code];
        float to_size = to_code * by->slopes[found.piece] * within;
        out[i] = to_size / safe * sign;
        to->image[found.piece] += to_code;
        to->slope[found.piece] += to_code * (found.x - by->source[found.piece]);
        to->level[code] += to_level;
        to->pull += up * by->levels[code] - (step > 0 && within > 0 ? to_size * (found.size / safe) : 0.0f);
    }
    clear(sums, by);
    for (int j = 0; j < APART; j++) add(sums, own + j, by);
}

/* `grad` of what `compand` gave, handed on: to the weight as `out`, to each step as pulls, fp64 like `to_tables`, which is
 * laid out as the tables are (nothing goes to rates). partial: a Sums for each block. */
void compand_backward(const float *w, const float *grad, float *out, int64_t groups, int64_t size, const float *step,
                      const float *tables, int count, int high, float slack, double *pulls, double *to_tables,
                      Sums *partial) {
    int64_t per = blocks(size), all = groups * per, knots = count + 1;
    Tables by = tables_of(tables, count, high);
    EACH_BLOCK(b, all) {
        int64_t n = length(size, b % per), at = b / per * size + b % per * BLOCK;
        block_backward(w + at, grad + at, out + at, n, step[b / per], slack, &by, partial + b);
    }
    memset(to_tables, 0, (3 * knots + 2 * (high + 1)) * sizeof *to_tables);
    memset(pulls, 0, groups * sizeof *pulls);
    for (int64_t b = 0; b < all; b++) {
        pulls[b / per] += partial[b].pull;
        for (int64_t k = 0; k < knots; k++) {
            to_tables[k] -= partial[b].image[k] * by.slopes[k];
            to_tables[knots + k] += partial[b].image[k];
            to_tables[2 * knots + k] += partial[b].slope[k];
        }
        for (int64_t c = 0; c <= high; c++) to_tables[3 * knots + c] += partial[b].level[c];
    }
}
