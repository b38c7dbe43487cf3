/* The passes of a quantizer that holds some weights at codes of their own (harness/quantization/frozen.py).
 *
 * Rows, blocks and lanes as in harness/kernels/csrc/weights.c. held: 1 where a weight is held, at `code`. Sums over the held weights
 * are small, since few lanes of a block add more than a few hundred terms, and go on in double.
 */
#include "common.h"

/* out = step * code of a held weight, `others` elsewhere; `out` may be `others`. */
void hold(const float *others, const uint8_t *held, const int8_t *code, float *out, int64_t groups, int64_t size,
          const float *step) {
    int64_t per = blocks(size), all = groups * per;
    EACH_BLOCK(b, all) {
        int64_t n = length(size, b % per), at = b / per * size + b % per * BLOCK;
        float s = step[b / per];
#pragma omp simd
        for (int64_t i = at; i < at + n; i++) out[i] = held[i] ? s * (float)code[i] : others[i];
    }
}

/* The sum of terms, in lanes. */
static double added(const float *term, int64_t n) {
    float lane[LANES] = {0};
    double sum = 0;
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) {
#pragma omp simd
        for (int j = 0; j < LANES; j++) lane[j] += term[i + j];
    }
    for (; i < n; i++) lane[0] += term[i];
    for (int j = 0; j < LANES; j++) sum += lane[j];
    return sum;
}

/* The gradient `grad` of the above: of `others` to `out`, of each step to `sums`. partial: a double a block. */
void hold_backward(const float *restrict grad, const uint8_t *restrict held, const int8_t *restrict code,
                   float *restrict out, int64_t groups, int64_t size, double *sums, double *partial) {
    int64_t per = blocks(size), all = groups * per;
    EACH_BLOCK(b, all) {
        int64_t n = length(size, b % per), at = b / per * size + b % per * BLOCK;
        float pull[BLOCK];
#pragma omp simd
        for (int64_t i = 0; i < n; i++) { /* both sides of a choice are computed: a branch would often be guessed wrong */
            float each = grad[at + i], held_pull = each * (float)code[at + i];
            pull[i] = held[at + i] ? held_pull : 0.0f;
            out[at + i] = held[at + i] ? 0.0f : each;
        }
        partial[b] = added(pull, n);
    }
    for (int64_t g = 0; g < groups; g++) {
        sums[g] = 0;
        for (int64_t b = g * per; b < (g + 1) * per; b++) sums[g] += partial[b];
    }
}

/* out = the code of a held weight, round(w / step) in [low, high] elsewhere. */
void held_codes(const float *restrict w, const uint8_t *restrict held, const int8_t *restrict code, int8_t *restrict out,
                int64_t groups, int64_t size, const float *step, float low, float high) {
    int64_t per = blocks(size), all = groups * per;
    EACH_BLOCK(b, all) {
        int64_t n = length(size, b % per), at = b / per * size + b % per * BLOCK;
        float s = step[b / per] > 0 ? step[b / per] : 1.0f;
        for (int64_t i = at; i < at + n; i++) {
            float k = rintf(w[i] / s);
            int8_t own = (int8_t)(int)(k < low ? low : k > high ? high : k);
            out[i] = held[i] ? code[i] : own;
        }
    }
}

/* average += momentum * (now - average); what is not held and whose frequency, by its bits, is at least `limit` is held
 * from now on at the code nearest to its average. */
void settle(const int8_t *restrict now, float *restrict average, const uint16_t *restrict frequency,
            uint8_t *restrict held, int8_t *restrict code, int64_t size, float momentum, int limit) {
    int64_t all = blocks(size);
    EACH_BLOCK(b, all) {
        int64_t end = b * BLOCK + length(size, b);
        for (int64_t i = b * BLOCK; i < end; i++) average[i] += momentum * ((float)now[i] - average[i]);
        for (int64_t start = b * BLOCK; start < end; start += 64) {
            int64_t stop = start + 64 < end ? start + 64 : end;
            uint16_t any = 0; /* few settle in a step */
            for (int64_t i = start; i < stop; i++) any |= (frequency[i] >= limit) & !held[i];
            for (int64_t i = start; any && i < stop; i++)
                if (frequency[i] >= limit && !held[i]) held[i] = 1, code[i] = (int8_t)rintf(average[i]);
        }
    }
}
