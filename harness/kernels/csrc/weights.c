/* The passes over all weights that a step makes on a CPU: regularizer, tracker, fake quantization.
 *
 * A weight is `groups` rows of `size` floats that share a step each. Work goes in blocks of BLOCK weights whose sums
 * are added in order, in lanes of fixed number: results depend neither on the number of threads nor on how wide the
 * vectors of the processor are. The arithmetic, fp32, is that of harness/oscillation/regularizer.py,
 * harness/oscillation/tracker.py and harness/quantization.
 */
#include "common.h"

/* |w| by its bits: of floats that are not negative the larger has the larger bits, and a NaN has the largest. */
ALWAYS uint32_t magnitude(float w) {
    uint32_t bits;
    memcpy(&bits, &w, 4);
    return bits & 0x7fffffff;
}

static uint32_t block_peak(const float *restrict w, int64_t n) {
    uint32_t lane[LANES] = {0}, peak = 0;
    IN_LANES(n, uint32_t size = magnitude(w[i + j]); lane[j] = size > lane[j] ? size : lane[j])
    for (int j = 0; j < LANES; j++) peak = lane[j] > peak ? lane[j] : peak;
    return peak;
}

/* max|w| of each group, NaN where a weight is. partial: scratch, four bytes a block. */
void peaks(const float *w, int64_t groups, int64_t size, uint32_t *partial, float *out) {
    int64_t per = blocks(size), all = groups * per;
    EACH_BLOCK(b, all)
        partial[b] = block_peak(w + b / per * size + b % per * BLOCK, length(size, b % per));
    for (int64_t g = 0; g < groups; g++) {
        uint32_t peak = 0;
        for (int64_t b = g * per; b < (g + 1) * per; b++) peak = partial[b] > peak ? partial[b] : peak;
        memcpy(out + g, &peak, 4);
    }
}

/* One weight and what belongs to it; harness/kernels/cpu_layers.py has the same fields. low, high: the codes' range.
 *
 * ratio: of each group's step to max|w| / high, where the step is to be found; else `step` is given, or the codes
 * themselves are. clipped: whether weights may lie outside the range. graph: whether the step takes part in the
 * regularizer's gradient. scratch: three doubles a block. size 0: the layer is left out.
 */
typedef struct {
    const float *w;
    float *grad;
    int8_t *code, *direction;
    uint16_t *frequency;
    int64_t *flips, *oscillations;
    const int8_t *codes;
    const float *ratio;
    float *peak, *step;
    void *scratch;
    int64_t groups, size;
    float low, high;
    int32_t clipped, graph;
} Layer;

static void find_steps(const Layer *layer) {
    peaks(layer->w, layer->groups, layer->size, layer->scratch, layer->peak);
    for (int64_t g = 0; g < layer->groups; g++) layer->step[g] = layer->peak[g] / layer->high * layer->ratio[g];
}

typedef struct { double value, pull, ties; } Sums;
typedef struct { float value[LANES], pull[LANES], ties[LANES]; } Lanes;

static Sums added(const Lanes *lanes) {
    Sums sums = {0, 0, 0};
    for (int j = 0; j < LANES; j++) sums.value += lanes->value[j], sums.pull += lanes->pull[j], sums.ties += lanes->ties[j];
    return sums;
}

/* One weight of the regularizer's gradient. */
ALWAYS void regularize_one(const float *w, float *grad, Lanes *sums, int j, float step, float factor, float peak, float high,
                       float slack) {
    float v = w[j] / step, k = code_of(v, high), within = inside(v, high, slack);
    sums->value[j] += (k + v) * (k - v);
    sums->pull[j] += k * (k - v * within);
    sums->ties[j] += fabsf(w[j]) == peak ? 1.0f : 0.0f;
    grad[j] += (k * within - v) * factor;
}

/* `high` is a constant wherever this is inlined, so that what does not clip pays nothing for clipping. */
ALWAYS Sums block_gradient(const float *restrict w, float *restrict grad, int64_t n, float step, float factor, float peak,
                           float high, float slack) {
    Lanes sums = {{0}, {0}, {0}};
    IN_LANES(n, regularize_one(w + i, grad + i, &sums, j, step, factor, peak, high, slack))
    return added(&sums);
}

/* The scale's share of the gradient: shared evenly by the weights that attain the peak. */
static void add_to_largest(const float *w, float *grad, int64_t size, const Sums *sums, float peak, double share) {
    for (int64_t b = 0; b < blocks(size); b++) {
        if (sums[b].ties == 0) continue;
        for (int64_t i = b * BLOCK; i < b * BLOCK + length(size, b); i++)
            if (fabsf(w[i]) == peak) grad[i] += (float)(w[i] > 0 ? share : -share);
    }
}

/* Adds the gradient of strength * mean(q^2 - w^2) to one layer's; returns its value. */
static double regularize_layer(const Layer *layer, double strength, float slack) {
    int64_t size = layer->size, per = blocks(size), all = layer->groups * per;
    float factor = (float)(2 * strength / (double)(layer->groups * size)), high = layer->clipped ? layer->high : -1;
    const float *w = layer->w, *step = layer->step, *peak = layer->peak;
    float *grad = layer->grad;
    Sums *partial = layer->scratch;
    find_steps(layer);
    EACH_BLOCK(b, all) {
        int64_t g = b / per, at = g * size + b % per * BLOCK, n = length(size, b % per);
        float s = step[g] > 0 ? step[g] : 1.0f, each = factor * step[g];
        partial[b] = high < 0 ? block_gradient(w + at, grad + at, n, s, each, peak[g], -1, slack)
                              : block_gradient(w + at, grad + at, n, s, each, peak[g], high, slack);
    }
    double value = 0;
    for (int64_t g = 0; g < layer->groups; g++) {
        Sums sums = {0, 0, 0};
        for (int64_t b = g * per; b < (g + 1) * per; b++)
            sums.value += partial[b].value, sums.pull += partial[b].pull, sums.ties += partial[b].ties;
        value += 0.5 * factor * sums.value * step[g] * step[g];
        if (layer->graph && peak[g] > 0)
            add_to_largest(w + g * size, grad + g * size, size, partial + g * per, peak[g],
                           (double)factor * step[g] / peak[g] * sums.pull * step[g] / sums.ties);
    }
    return value;
}

/* The regularizer, over all layers; its value comes to `value`. */
void regularize(const Layer *layers, int64_t count, double strength, float slack, double *value) {
    *value = 0;
    for (int64_t l = 0; l < count; l++)
        if (layers[l].size) *value += regularize_layer(layers + l, strength, slack);
}

ALWAYS void quantize_block(const float *restrict w, float *restrict out, uint16_t *restrict halves, int64_t n, float step,
                           float high, int bf16) {
    float safe = step > 0 ? step : 1.0f;
    for (int64_t i = 0; i < n; i++) {
        float value = step * code_of(w[i] / safe, high);
        if (bf16) halves[i] = to_bf16(value);
        else out[i] = value;
    }
}

/* Fake quantization: out = step * code, in fp32 or bf16. */
void quantize(const float *w, void *out, int64_t groups, int64_t size, const float *step, float high, int bf16) {
    int64_t per = blocks(size), all = groups * per;
    EACH_BLOCK(b, all) {
        int64_t n = length(size, b % per), at = b / per * size + b % per * BLOCK;
        float s = step[b / per];
        if (bf16) quantize_block(w + at, NULL, (uint16_t *)out + at, n, s, high, 1);
        else quantize_block(w + at, (float *)out + at, NULL, n, s, high, 0);
    }
}

/* One weight of its backward pass. */
ALWAYS void hand_on(const float *w, const float *grad, float *out, Lanes *sums, int j, float step, float peak, float high,
                    float slack) {
    float v = w[j] / step, within = inside(v, high, slack);
    sums->pull[j] += grad[j] * (code_of(v, high) - v * within);
    sums->ties[j] += fabsf(w[j]) == peak ? 1.0f : 0.0f;
    out[j] = grad[j] * within;
}

ALWAYS Sums block_backward(const float *restrict w, const float *restrict grad, float *restrict out, int64_t n, float step,
                           float peak, float high, float slack) {
    Lanes sums = {{0}, {0}, {0}};
    IN_LANES(n, hand_on(w + i, grad + i, out + i, &sums, j, step, peak, high, slack))
    return added(&sums);
}

/* The gradient `grad` of a fake-quantized weight, in fp32 or bf16, handed on to the weight itself. high < 0: no clipping.
 *
 * graph: the step is a multiple of the peak, and its gradient goes to the weights that attain it. further: each step's
 * gradient from elsewhere, or NULL. pulls: room for each step's gradient, or NULL.
 */
void quantize_backward(const float *w, const void *grad, int bf16, float *out, int64_t groups, int64_t size,
                       const float *peak, const float *step, float high, float slack, int graph, const double *further, float *pulls,
                       Sums *partial) {
    int64_t per = blocks(size), all = groups * per;
    EACH_BLOCK(b, all) {
        int64_t g = b / per, at = g * size + b % per * BLOCK;
        int64_t n = length(size, b % per);
        float s = step[g], room[BLOCK];
        if (s == 0) { /* a constant 0, whatever the weights do next */
            memset(out + at, 0, n * sizeof *out);
            partial[b] = (Sums){0, 0, 0};
            continue;
        }
        if (!isfinite(s)) { /* nor is any gradient, as by plain operations */
            for (int64_t i = 0; i < n; i++) out[at + i] = NAN;
            partial[b] = (Sums){NAN, NAN, 0};
            continue;
        }
        float most = peak ? peak[g] : -1;
        const float *up = floats(grad, at, n, bf16, room);
        partial[b] = high < 0 ? block_backward(w + at, up, out + at, n, s, most, -1, slack)
                              : block_backward(w + at, up, out + at, n, s, most, high, slack);
    }
    for (int64_t g = 0; g < groups; g++) {
        Sums sums = {0, further ? further[g] : 0, 0};
        for (int64_t b = g * per; b < (g + 1) * per; b++) sums.pull += partial[b].pull, sums.ties += partial[b].ties;
        if (pulls) pulls[g] = (float)sums.pull;
        if (graph && step[g] > 0 && isfinite(step[g]))
            add_to_largest(w + g * size, out + g * size, size, partial + g * per, peak[g],
                           (double)step[g] / peak[g] * sums.pull / sums.ties);
    }
}

/* Halves that are never negative, by their bits: old compilers have no type for them. */
static float from_half(uint16_t half) {
    uint32_t bits = (uint32_t)half << 13;
    float value;
    memcpy(&value, &bits, 4);
    return value * 0x1p112f;
}
static uint16_t to_half(float value) {
    uint32_t bits;
    value *= 0x1p-112f;
    memcpy(&bits, &value, 4);
    return (uint16_t)((bits + 0xFFF + (bits >> 13 & 1)) >> 13);
}

typedef struct { int64_t flips, oscillations; } Counts;

/* Compares codes eight at a time; few change in a step. */
static Counts block_changes(const int8_t *restrict now, int8_t *restrict code, int8_t *restrict direction,
                            uint16_t *restrict frequency, int64_t n, float increment) {
    Counts counts = {0, 0};
    for (int64_t start = 0; start < n; start += 8) {
        int64_t end = start + 8 < n ? start + 8 : n;
        if (end - start == 8 && !memcmp(now + start, code + start, 8)) continue;
        for (int64_t i = start; i < end; i++) {
            if (now[i] == code[i]) continue;
            int8_t change = now[i] > code[i] ? 1 : -1;
            counts.flips++;
            if (direction[i] == -change) {
                counts.oscillations++;
                frequency[i] = to_half(from_half(frequency[i]) + increment);
            }
            direction[i] = change;
            code[i] = now[i];
        }
    }
    return counts;
}

/* A layer's update: its codes are round(w / step), clipped, unless they are there already. */
static void track_layer(const Layer *layer, float increment) {
    int64_t size = layer->size, per = blocks(size), all = layer->groups * per, changed = 0, reversed = 0;
    float low = layer->low, high = layer->high;
    if (!layer->codes && layer->ratio) find_steps(layer);
#pragma omp parallel for schedule(static) reduction(+ : changed, reversed) if (all >= FEW)
    for (int64_t b = 0; b < all; b++) {
        int64_t n = length(size, b % per), at = b / per * size + b % per * BLOCK;
        int8_t made[BLOCK];
        const int8_t *now = layer->codes ? layer->codes + at : made;
        if (!layer->codes) {
            float s = layer->step[b / per] > 0 ? layer->step[b / per] : 1.0f;
            for (int64_t i = 0; i < n; i++) {
                float k = rintf(layer->w[at + i] / s);
                made[i] = (int8_t)(int)(k < low ? low : k > high ? high : k);
            }
        }
        Counts counts = block_changes(now, layer->code + at, layer->direction + at, layer->frequency + at, n, increment);
        changed += counts.flips, reversed += counts.oscillations;
    }
    *layer->flips += changed;
    *layer->oscillations += reversed;
}

/* The tracker, over all layers. */
void track(const Layer *layers, int64_t count, float increment) {
    for (int64_t l = 0; l < count; l++)
        if (layers[l].size) track_layer(layers + l, increment);
}
