/* Fake quantization of activations: the codes' range is given for each row, since it follows from what was observed.
 *
 * An input is `groups` rows of `size` floats with a step, a lowest and a highest code each. The arithmetic, fp32, is that
 * of harness/quantization/on_grid.py.
 */
#include "common.h"

/* NaN stays NaN. */
ALWAYS float clipped(float k, float low, float high) { return k > high ? high : k < low ? low : k; }

/* out = step * code. */
void on_grid(const float *x, float *out, int64_t groups, int64_t size, const float *step, const float *low,
             const float *high) {
    int64_t per = blocks(size), all = groups * per;
    EACH_BLOCK(b, all) {
        int64_t g = b / per, n = length(size, b % per), at = g * size + b % per * BLOCK;
        float s = step[g], safe = s > 0 ? s : 1.0f, least = low[g], most = high[g];
        for (int64_t i = at; i < at + n; i++) out[i] = s * clipped(rintf(x[i] / safe), least, most);
    }
}

ALWAYS float between(float v, float low, float high) { return v >= low && v <= high ? 1.0f : 0.0f; }

ALWAYS double block_handed(const float *restrict x, const float *restrict grad, float *restrict out, int64_t n, float step,
                           float low, float high, float slack) {
    float pull[LANES] = {0};
    double sum = 0;
    IN_LANES(n, float v = x[i + j] / step; float within = between(v, low - slack, high + slack);
             pull[j] += grad[i + j] * (clipped(rintf(v), low, high) - v * within); out[i + j] = grad[i + j] * within;)
    for (int j = 0; j < LANES; j++) sum += pull[j];
    return sum;
}

/* The gradient `grad` of what is on the grid, handed on to the input: where it is within the range, or less than `slack`
 * steps beyond. pulls: room for the gradient of each step. partial: a double a block.
 */
void on_grid_backward(const float *x, const float *grad, float *out, int64_t groups, int64_t size, const float *step,
                      const float *low, const float *high, float slack, float *pulls, double *partial) {
    int64_t per = blocks(size), all = groups * per;
    EACH_BLOCK(b, all) {
        int64_t g = b / per, n = length(size, b % per), at = g * size + b % per * BLOCK;
        float s = step[g];
        if (s > 0) {
            partial[b] = block_handed(x + at, grad + at, out + at, n, s, low[g], high[g], slack);
            continue;
        }
        float nothing = s == 0 ? 0 : NAN; /* a constant 0; or no number, as by plain operations */
        for (int64_t i = at; i < at + n; i++) out[i] = nothing;
        partial[b] = nothing;
    }
    for (int64_t g = 0; g < groups; g++) {
        double sum = 0;
        for (int64_t b = g * per; b < (g + 1) * per; b++) sum += partial[b];
        pulls[g] = (float)sum;
    }
}
