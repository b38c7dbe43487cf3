/* Batches of images (harness/data/base.py): rows of uint8 as fp32, each channel by a table of its 256 values. */
#include "common.h"

/* rows: which images of (?, channels, pixels) make the batch, `count` of them; NULL for the first ones. table: (channels,
 * 256). */
void image_batch(const uint8_t *images, const int64_t *rows, int64_t count, int64_t channels, int64_t pixels,
                 const float *table, float *out) {
#pragma omp parallel for schedule(static) if (count * channels * pixels >= FEW * BLOCK)
    for (int64_t b = 0; b < count; b++) {
        const uint8_t *from = images + (rows ? rows[b] : b) * channels * pixels;
        float *to = out + b * channels * pixels;
        for (int64_t c = 0; c < channels; c++)
            for (int64_t i = c * pixels; i < (c + 1) * pixels; i++) to[i] = table[c * 256 + from[i]];
    }
}
