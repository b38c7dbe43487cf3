/* Batches of images (harness/data/base.py): rows of uint8, cropped and mirrored, as fp32 by a table of their 256 values. */
#include "common.h"

/* Rows of a crop are short, so their loops are unrolled by hand: what a compiler adds around its own takes longer. */
#define UNROLLED 8
#define EACH_PIXEL(n, ...) \
    { \
        int64_t x = 0; \
        for (; x + UNROLLED <= (n); x += UNROLLED) { \
            PRAGMA(GCC unroll 8) \
            for (int64_t j = 0; j < UNROLLED; j++) { __VA_ARGS__; } \
        } \
        for (int64_t j = 0; j < (n) - x; j++) { __VA_ARGS__; } \
    }

static void fill(float *to, int64_t count, float value) {
    for (int64_t x = 0; x < count; x++) to[x] = value;
}

/* Pixels `from` as `to`, from left to right or the other way round. */
static void look_up(const uint8_t *restrict from, float *restrict to, int64_t count, int mirrored,
                    const float *restrict table) {
    if (mirrored)
        EACH_PIXEL(count, to[x + j] = table[from[count - 1 - x - j]])
    else
        EACH_PIXEL(count, to[x + j] = table[from[x + j]])
}

ALWAYS int64_t within(int64_t x, int64_t low, int64_t high) { return x < low ? low : x > high ? high : x; }

/* One channel (height, width), moved up and to the left by `down` and `right`: black, table[0], where nothing was. */
static void crop_channel(const uint8_t *from, float *to, int64_t height, int64_t width, int64_t down, int64_t right,
                         int mirrored, const float *table) {
    int64_t first = within(-right, 0, width), end = within(width - right, first, width), count = end - first;
    int64_t before = mirrored ? width - end : first;
    for (int64_t y = down; y < height + down; y++, to += width) {
        if (y < 0 || y >= height || count == 0) {
            fill(to, width, table[0]);
            continue;
        }
        fill(to, before, table[0]);
        look_up(from + y * width + right + first, to + before, count, mirrored, table);
        fill(to + before + count, width - before - count, table[0]);
    }
}

/* rows: which images of (?, channels, height, width) make the batch, `count` of them; NULL for the first ones. table:
 * (channels, 256). offsets: (count, 2) from 0 to 2 padding, how far down and right in the padded image each crop
 * begins, and mirrored: (count,); both NULL where images stay as they are. */
void image_batch(const uint8_t *images, const int64_t *rows, int64_t count, int64_t channels, int64_t height,
                 int64_t width, const float *table, int64_t padding, const int64_t *offsets, const uint8_t *mirrored,
                 float *out) {
    int64_t pixels = height * width;
#pragma omp parallel for schedule(static) if (count * channels * pixels >= FEW * BLOCK)
    for (int64_t b = 0; b < count; b++) {
        const uint8_t *from = images + (rows ? rows[b] : b) * channels * pixels;
        float *to = out + b * channels * pixels;
        for (int64_t c = 0; c < channels; c++, from += pixels, to += pixels) {
            const float *values = table + c * 256;
            if (offsets)
                crop_channel(from, to, height, width, offsets[2 * b] - padding, offsets[2 * b + 1] - padding,
                             mirrored[b], values);
            else
                for (int64_t i = 0; i < pixels; i++) to[i] = values[from[i]];
        }
    }
}
