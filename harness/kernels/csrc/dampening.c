/* The passes of harness/methods/dampening.py: the sum of (q - clip(w))^2 over a weight, and its gradient.
 *
 * A weight is `groups` rows of `size` floats with a step each; q = step * code, codes from `low` to `high`. Sums as in
 * harness/kernels/csrc/weights.c: in lanes and blocks of fixed size, added in order.
 */
#include "common.h"

/* q - clip(w), fp32 as the plain operations have it: 0 outside [bottom, top], where both are the same bound. */
ALWAYS float off_grid(float w, float step, float safe, float low, float high, float bottom, float top) {
    float k = rintf(w / safe);
    k = k > high ? high : k < low ? low : k;
    return w < bottom || w > top ? 0.0f : step * k - w; /* a NaN is not outside, so it shows */
}

static double block_squares(const float *restrict w, int64_t n, float step, float low, float high) {
    float lane[LANES] = {0}, safe = step > 0 ? step : 1.0f, bottom = step * low, top = step * high;
    double sum = 0;
    IN_LANES(n,
        float off = off_grid(w[i + j], step, safe, low, high, bottom, top);
        lane[j] += off * off)
    for (int j = 0; j < LANES; j++) sum += lane[j];
    return sum;
}

/* The sum of squares over all groups. partial: scratch, one double a block. */
void dampening_value(const float *w, int64_t groups, int64_t size, const float *step, float low, float high,
                     double *partial, double *value) {
    int64_t per = blocks(size), all = groups * per;
    EACH_BLOCK(b, all)
        partial[b] = block_squares(w + b / per * size + b % per * BLOCK, length(size, b % per), step[b / per], low, high);
    *value = 0;
    for (int64_t b = 0; b < all; b++) *value += partial[b];
}

/* out = -factor * (q - clip(w)): the gradient of factor / 2 times the sum of squares. */
void dampening_gradient(const float *w, float *out, int64_t groups, int64_t size, const float *step, float low,
                        float high, float factor) {
    int64_t per = blocks(size), all = groups * per;
    EACH_BLOCK(b, all) {
        int64_t at = b / per * size + b % per * BLOCK, end = at + length(size, b % per);
        float s = step[b / per], safe = s > 0 ? s : 1.0f, bottom = s * low, top = s * high;
#pragma omp simd
        for (int64_t i = at; i < end; i++) out[i] = -factor * off_grid(w[i], s, safe, low, high, bottom, top);
    }
}
