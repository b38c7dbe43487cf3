/* The passes of harness/methods/kure.py: central moments of a weight, and the gradient of its kurtosis.
 *
 * In doubles, since squares and fourth powers of small differences are summed. Sums as in harness/kernels/csrc/weights.c: in lanes
 * and blocks of fixed size, added in order.
 */
#include "common.h"

static double total(const double *lane) {
    double sum = 0;
    for (int j = 0; j < LANES; j++) sum += lane[j];
    return sum;
}

static double block_sum(const float *restrict w, int64_t n) {
    double lane[LANES] = {0};
    IN_LANES(n, lane[j] += w[i + j])
    return total(lane);
}

typedef struct { double second[LANES], third[LANES], fourth[LANES]; } Powers;

ALWAYS void add_powers(Powers *sums, int j, double off) {
    double square = off * off;
    sums->second[j] += square;
    sums->third[j] += square * off;
    sums->fourth[j] += square * square;
}

static void block_powers(const float *restrict w, int64_t n, double mean, double *restrict out) {
    Powers sums = {{0}, {0}, {0}};
    IN_LANES(n, add_powers(&sums, j, w[i + j] - mean))
    out[0] = total(sums.second), out[1] = total(sums.third), out[2] = total(sums.fourth);
}

/* Of `size` weights the mean, and the sums of (w - mean) to the powers 2, 3, 4. partial: scratch, 3 doubles a block. */
void moments(const float *w, int64_t size, double *partial, double *out) {
    int64_t all = blocks(size);
    double sum = 0;
    EACH_BLOCK(b, all) partial[b] = block_sum(w + b * BLOCK, length(size, b));
    for (int64_t b = 0; b < all; b++) sum += partial[b];
    double mean = sum / size;
    EACH_BLOCK(b, all) block_powers(w + b * BLOCK, length(size, b), mean, partial + 3 * b);
    out[0] = mean, out[1] = out[2] = out[3] = 0;
    for (int64_t b = 0; b < all; b++)
        for (int power = 0; power < 3; power++) out[1 + power] += partial[3 * b + power];
}

/* out = z (cubic z^2 + linear) + constant, z = (w - mean) / deviation. */
void standardized_cubic(const float *w, float *out, int64_t size, double mean, double deviation, float cubic,
                        float linear, float constant) {
    int64_t all = blocks(size);
    double inverse = 1 / deviation;
    EACH_BLOCK(b, all) {
        int64_t end = b * BLOCK + length(size, b);
#pragma omp simd
        for (int64_t i = b * BLOCK; i < end; i++) {
            float z = (float)((w[i] - mean) * inverse);
            out[i] = z * (cubic * z * z + linear) + constant;
        }
    }
}
