/* Batches of images (harness/data/base.py): rows of uint8, cropped and mirrored, as fp32 by a table of their 256 values. */
#include "common.h"

/* Of an image that is read next, so many bytes are asked for: images lie anywhere in memory. */
#define AHEAD 4096
/* Pixels of a row, at most; as in harness/kernels/dispatch.py. */
#define WIDEST 8192

/* What a pixel x becomes: (x / top - mean) / deviation, each operation rounded to fp32, as torch computes the table. */
typedef struct {
    float top, mean, deviation;
} Formula;
/* One channel's values, and its formula, if that gives the same. */
typedef struct {
    const float *table;
    const Formula *formula;
} Values;

#ifdef __FP_FAST_FMAF
/* x / d by the reciprocal of d and what is left of x, without the slow division; correctly rounded but for rare x. */
ALWAYS float quotient(float x, float d, float reciprocal) {
    float q = x * reciprocal;
    return fmaf(fmaf(-q, d, x), reciprocal, q);
}

static void compute(const uint8_t *restrict from, float *restrict to, int64_t count, Formula f) {
    float by_top = 1 / f.top, by_deviation = 1 / f.deviation;
    PRAGMA(omp simd)
    for (int64_t i = 0; i < count; i++)
        to[i] = quotient(quotient((float)from[i], f.top, by_top) - f.mean, f.deviation, by_deviation);
}

/* Whether the formula gives the table, to the last bit. */
static int agrees(const float *table, Formula f) {
    uint8_t pixels[256];
    float found[256];
    for (int i = 0; i < 256; i++) pixels[i] = (uint8_t)i;
    compute(pixels, found, 256, f);
    return memcmp(found, table, sizeof found) == 0;
}
#else
static void compute(const uint8_t *from, float *to, int64_t count, Formula f) {}
static int agrees(const float *table, Formula f) { return 0; }
#endif

static void look_up(const uint8_t *restrict from, float *restrict to, int64_t count, Values values) {
    if (values.formula)
        compute(from, to, count, *values.formula);
    else
        for (int64_t i = 0; i < count; i++) to[i] = values.table[from[i]];
}

#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define PIXELS_OF_ROW 16
typedef uint8_t Pixels __attribute__((vector_size(PIXELS_OF_ROW)));

ALWAYS Pixels reversed(const uint8_t *from) {
    Pixels v;
    memcpy(&v, from, sizeof v);
    return __builtin_shufflevector(v, v, 15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
}
#endif
#endif

/* The other way round, in place. */
ALWAYS void mirror(uint8_t *row, int64_t width) {
    int64_t x = 0, last = width - 1;
#ifdef PIXELS_OF_ROW
    for (; 2 * (x + PIXELS_OF_ROW) <= width; x += PIXELS_OF_ROW) {
        uint8_t *end = row + width - x - PIXELS_OF_ROW;
        Pixels left = reversed(row + x), right = reversed(end);
        memcpy(row + x, &right, sizeof right);
        memcpy(end, &left, sizeof left);
    }
#endif
    for (; x < last - x; x++) {
        uint8_t left = row[x];
        row[x] = row[last - x];
        row[last - x] = left;
    }
}

#define EDGE 8

/* The first or last `gone` pixels of each row. Few of them by one mask: loops as short as that, and calls, take longer. */
ALWAYS void blacken(uint8_t *rows, int64_t count, int64_t width, int64_t gone, int first) {
    uint64_t mask, edge;
    uint8_t kept[EDGE];
    int masked = gone <= EDGE && width >= EDGE;
    for (int64_t i = 0; i < EDGE; i++) kept[i] = (first ? i >= gone : i < EDGE - gone) ? 255 : 0;
    memcpy(&mask, kept, EDGE);
    uint8_t *at = rows + (first ? 0 : width - (masked ? EDGE : gone));
    for (int64_t i = 0; gone && i < count; i++, at += width) {
        if (masked) memcpy(&edge, at, EDGE), edge &= mask, memcpy(at, &edge, EDGE);
        else memset(at, 0, gone);
    }
}

/* How an image is moved: up and to the left, black where nothing was, then mirrored. */
typedef struct {
    int64_t height, width, down, right;
    int mirrored;
} Crop;

/* `count` rows from row y on. They are moved as one, since each is short; pixels that come from the row beside theirs are
 * made black afterwards. */
ALWAYS void crop_rows(const uint8_t *from, uint8_t *to, int64_t y, int64_t count, Crop how) {
    int64_t width = how.width, right = how.right, source = y + how.down, below = how.height - source;
    int64_t first = source < 0 ? -source : 0, end = below < count ? below : count;
    int64_t left = right < 0 ? -right : 0, gone = right < 0 ? -right : right;
    if (first >= end || gone >= width) {
        memset(to, 0, count * width);
        return;
    }
    memset(to, 0, first * width);
    memset(to + end * width, 0, (count - end) * width);
    memcpy(to + first * width + left, from + (first + source) * width + (right > 0 ? right : 0),
           (end - first) * width - gone);
    if (how.mirrored)
        for (int64_t i = first; i < end; i++) mirror(to + i * width, width);
    blacken(to + first * width, end - first, width, gone, how.mirrored ? !left : left > 0);
}

/* A channel, by as many rows at a time as stay in the nearest cache. */
static void crop_channel(const uint8_t *from, float *to, Crop how, Values values) {
    uint8_t moved[WIDEST];
    int64_t some = WIDEST / how.width;
    for (int64_t y = 0; y < how.height; y += some) {
        int64_t count = how.height - y < some ? how.height - y : some;
        crop_rows(from, moved, y, count, how);
        look_up(moved, to + y * how.width, count * how.width, values);
    }
}

ALWAYS void prefetch(const uint8_t *from, int64_t bytes) {
    for (int64_t i = 0; i < bytes && i < AHEAD; i += 64) __builtin_prefetch(from + i);
}

/* rows: which of `all` images (channels, height, width) make the batch, `count` of them; NULL for the first ones; -1 is
 * returned, and nothing done, if one is not there, else 0. table: (channels, 256); formulas: (channels, 3), the largest
 * value, mean and deviation that it was made of. offsets: (count, 2) from 0 to 2 padding, how far down and right in the padded image each crop begins, and mirrored: (count,);
 * both NULL where images stay as they are. */
int image_batch(const uint8_t *images, int64_t all, const int64_t *rows, int64_t count, int64_t channels,
                int64_t height, int64_t width, const float *table, const float *formulas, int64_t padding,
                const int64_t *offsets, const uint8_t *mirrored, float *out) {
    int64_t pixels = height * width;
    int computed = 1;
    for (int64_t b = 0; rows && b < count; b++)
        if (rows[b] < 0 || rows[b] >= all) return -1;
    for (int64_t c = 0; c < channels; c++) computed &= agrees(table + c * 256, ((const Formula *)formulas)[c]);
#pragma omp parallel for schedule(static) if (count * channels * pixels >= FEW * BLOCK)
    for (int64_t b = 0; b < count; b++) {
        const uint8_t *from = images + (rows ? rows[b] : b) * channels * pixels;
        float *to = out + b * channels * pixels;
        const uint8_t *next = b + 1 < count ? images + (rows ? rows[b + 1] : b + 1) * channels * pixels : from;
        for (int64_t c = 0; c < channels; c++, from += pixels, to += pixels) {
            prefetch(next + c * pixels, pixels);
            Values values = {table + c * 256, computed ? (const Formula *)formulas + c : NULL};
            if (offsets)
                crop_channel(from, to, (Crop){height, width, offsets[2 * b] - padding, offsets[2 * b + 1] - padding, mirrored[b]},
                             values);
            else
                look_up(from, to, pixels, values);
        }
    }
    return 0;
}
