/* The passes of harness/quantization/companding.py: rounding between a compressor and its inverse, with all gradients.
 *
 * What happens to a weight depends on where its size in steps, v = |w| / step, lies among few bounds: the knots of the
 * compressor, where codes change, and the end of the range. The bounds are found with the fp32 arithmetic of the plain
 * operations, so that codes are theirs to the last bit. Each gradient needs no more than the sums of `grad` and of
 * `grad * w` between two bounds, in doubles; what follows from them is arithmetic on tables, in doubles too.
 */
#include "companding_sums.h"
#include "companding_tables.h"

/* Of the blocks: each has sums of its own, which are added in order. */
#define PARTS 32

/* Of `n` weights the places, and what `values` has for them, with the weight's sign; NaN stays NaN. */
static void place_some(const float *restrict w, float *restrict out, uint8_t *restrict places, int64_t n, float safe,
                       const float *restrict values, const Tables *restrict by) {
    float v[CHUNK], scale = by->scale;
    int32_t found[CHUNK], tries = by->tries, cells = by->cells;
    for (int64_t i = 0; i < n; i++) v[i] = fabsf(w[i]) / safe;
    for (int64_t i = 0; i < n; i++) found[i] = cell_of(v[i], scale, cells);
    for (int64_t i = 0; i < n; i++) {
        int32_t p = by->first[found[i]];
        for (int32_t t = 0; t < tries; t++) p += v[i] >= by->bound[p];
        found[i] = p, places[i] = (uint8_t)p;
    }
    for (int64_t i = 0; i < n; i++) out[i] = v[i] == v[i] ? copysignf(values[found[i]], w[i]) : NAN;
}

#ifdef __AVX512F__
typedef struct { __m512 low, high; } Floats; /* a table of FEW_PLACES */
ALWAYS Floats table_of(const float *from) { return (Floats){_mm512_loadu_ps(from), _mm512_loadu_ps(from + 16)}; }
ALWAYS __m512 look_up(Floats table, __m512i at) { return _mm512_permutex2var_ps(table.low, at, table.high); }

/* The same for few places, sixteen weights at a time; returns how many it did. */
static int64_t place_few(const float *w, float *out, uint8_t *places, int64_t n, float safe, const float *values,
                         const Tables *by) {
    __m512i first = _mm512_loadu_si512(by->first), later = _mm512_loadu_si512(by->first + 16);
    Floats bound = table_of(by->bound), value = table_of(values);
    __m512i sign = _mm512_set1_epi32((int32_t)0x80000000);
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) {
        __m512i bits = _mm512_loadu_si512(w + i);
        __m512 v = _mm512_div_ps(_mm512_castsi512_ps(_mm512_andnot_si512(sign, bits)), _mm512_set1_ps(safe));
        __m512 at = _mm512_min_ps(_mm512_mul_ps(v, _mm512_set1_ps(by->scale)), _mm512_set1_ps(FEW_PLACES - 1));
        __m512i p = _mm512_permutex2var_epi32(first, _mm512_cvttps_epi32(at), later);
        for (int32_t t = 0; t < by->tries; t++)
            p = _mm512_mask_add_epi32(p, _mm512_cmp_ps_mask(v, look_up(bound, p), _CMP_GE_OQ), p, _mm512_set1_epi32(1));
        __m512i size = _mm512_castps_si512(look_up(value, p)), signs = _mm512_and_si512(bits, sign);
        __m512 signed_ = _mm512_castsi512_ps(_mm512_or_si512(size, signs));
        __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
        _mm512_storeu_ps(out + i, _mm512_mask_mov_ps(signed_, nan, v));
        _mm_storeu_si128((__m128i *)(places + i), _mm512_cvtepi32_epi8(p));
    }
    return i;
}
#endif

static void place_block(const float *w, float *out, uint8_t *places, int64_t n, float safe, const float *values,
                        const Tables *by) {
    int64_t from = 0;
#ifdef __AVX512F__
    if (by->cells == FEW_PLACES) from = place_few(w, out, places, n, safe, values, by);
#endif
    for (; from < n; from += CHUNK)
        place_some(w + from, out + from, places + from, n - from < CHUNK ? n - from : CHUNK, safe, values, by);
}

/* Of each group: the step; and, for a range in deviations, the mean, the deviation, and whether weights differ at all. */
typedef struct { float *step, *mean, *deviation, *differ; } Scales;

ALWAYS Scales scales_of(float *scales, int64_t groups) {
    return (Scales){scales, scales + groups, scales + 2 * groups, scales + 3 * groups};
}

static void find_deviations(const float *w, int64_t groups, int64_t size, Scales found, double *partial);

/* What a layer's curve is, and what a pass over its weight needs first. reach: the ranges; logs: `count` logarithms of
 * slopes; beyond: the largest size, in steps, that counts as inside; scales: four floats for each group; partial: a double
 * for each block. */
#define CURVE const float *reach, const float *logs, int count, int high, float beyond, int normalize
#define ROOM float *scales, Tables *by, double *partial

static void prepare(const float *w, int64_t groups, int64_t size, CURVE, ROOM) {
    Scales found = scales_of(scales, groups);
    find_tables(by, logs, count, high, beyond);
    if (normalize) find_deviations(w, groups, size, found, partial);
    for (int64_t g = 0; g < groups; g++)
        found.step[g] = (normalize ? reach[g] * found.deviation[g] : reach[g]) / (float)high;
}

/* out = sign(w) step level, in fp32 or bf16; places: of each weight. */
void compand(const float *w, int64_t groups, int64_t size, CURVE, ROOM, void *out, int bf16, uint8_t *places) {
    int64_t per = blocks(size), all = groups * per;
    prepare(w, groups, size, reach, logs, count, high, beyond, normalize, scales, by, partial);
    EACH_BLOCK(b, all) {
        int64_t n = length(size, b % per), at = b / per * size + b % per * BLOCK;
        float s = scales_of(scales, groups).step[b / per], values[MOST_PLACES] = {0}, room[BLOCK];
        for (int32_t p = 0; p < by->places; p++) values[p] = s * by->level[by->code[p]];
        place_block(w + at, bf16 ? room : (float *)out + at, places + at, n, s > 0 ? s : 1.0f, values, by);
        for (int64_t i = 0; bf16 && i < n; i++) ((uint16_t *)out)[at + i] = to_bf16(room[i]);
    }
}

/* The codes alone, with their signs. */
void companded_codes(const float *w, int64_t groups, int64_t size, CURVE, ROOM, int8_t *out) {
    int64_t per = blocks(size), all = groups * per;
    prepare(w, groups, size, reach, logs, count, high, beyond, normalize, scales, by, partial);
    EACH_BLOCK(b, all) {
        int64_t n = length(size, b % per), at = b / per * size + b % per * BLOCK;
        float s = scales_of(scales, groups).step[b / per], values[MOST_PLACES] = {0}, codes[BLOCK];
        uint8_t places[BLOCK];
        for (int32_t p = 0; p < by->places; p++) values[p] = by->code[p];
        place_block(w + at, codes, places, n, s > 0 ? s : 1.0f, values, by);
        for (int64_t i = 0; i < n; i++) out[at + i] = codes[i] == codes[i] ? (int8_t)codes[i] : 0;
    }
}

/* Of each place: by how much a gradient within it is multiplied on its way to v, and so to the weight. */
ALWAYS void find_factors(const Tables *by, float step, float factor[MOST_PLACES]) {
    double ratio = step > 0 ? 1.0 : step;
    memset(factor, 0, MOST_PLACES * sizeof *factor);
    for (int32_t p = 0; p < by->places; p++)
        if (by->within[p]) factor[p] = (float)(ratio * by->rate[by->code[p]] * by->slope[by->interval[p]]);
}

/* Weights of one group: their sums go to those of their part, in steps, and to the step's gradient, which it returns. */
static double add_run(const float *w, const void *grad, int bf16, const uint8_t *places, int64_t n, float step,
                      const Tables *by, Pair *part) {
    Pair sums[MOST_PLACES];
    float factor[MOST_PLACES];
    double pull = 0, safe = step > 0 ? step : 1.0;
    find_factors(by, step, factor);
    sum_by_place(w, grad, bf16, places, n, by->places, sums);
    for (int32_t p = 0; p < by->places; p++) {
        double size = step > 0 ? sums[p][1] : 0.0;
        pull += by->level[by->code[p]] * sums[p][0] - factor[p] * (size / safe);
        part[p] += (Pair){step * sums[p][0], size};
    }
    return pull;
}

/* The gradient of the logarithms, from sums over all weights. */
static void to_logs(const Tables *by, const Pair *sums, float *out) {
    int32_t count = by->intervals;
    double target[MOST_INTERVALS + 1] = {0}, slope[MOST_INTERVALS + 1] = {0}, level[MOST_CODES] = {0}, all = 0, later = 0;
    for (int32_t p = 0; p < by->places; p++) {
        int32_t c = by->code[p], k = by->interval[p];
        double rate = by->rate[c];
        level[c] += sums[p][0];
        target[k] += rate * sums[p][0];
        if (k < count) slope[k] += rate * (sums[p][1] - by->source[k] * sums[p][0]); /* beyond, x is the last knot */
    }
    for (int32_t c = 0; c <= by->high; c++) {
        int32_t k = by->origin[c];
        double inverse = by->rate[c];
        target[k] -= inverse * level[c];
        if (k < count) slope[k] -= inverse * inverse * (c - by->target[k]) * level[c];
    }
    for (int32_t k = 0; k <= count; k++) all += target[k] * by->target[k];
    for (int32_t k = 0; k < count; k++) all += slope[k] * by->share[k] * count / by->total;
    for (int32_t k = count - 1; k >= 0; k--) {
        later += target[k + 1] * by->high;
        double to_share = (later + slope[k] * count - all) / by->total;
        out[k] = by->learns[k] ? (float)(by->share[k] * to_share) : 0.0f;
    }
}

/* out = grad times what its place has, and by way of the deviation `share` times (w - mean). */
static void hand_on_block(const float *restrict w, const float *restrict grad, float *restrict out,
                          const uint8_t *restrict places, int64_t n, const float *restrict factor, float mean, float share,
                          const Tables *by) {
    int64_t i = 0, few = by->cells == FEW_PLACES;
#ifdef __AVX512F__
    Floats table = table_of(factor);
    for (; few && i + 16 <= n; i += 16) {
        __m512i p = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(places + i)));
        __m512 off = _mm512_mul_ps(_mm512_set1_ps(share), _mm512_sub_ps(_mm512_loadu_ps(w + i), _mm512_set1_ps(mean)));
        _mm512_storeu_ps(out + i, _mm512_add_ps(_mm512_mul_ps(_mm512_loadu_ps(grad + i), look_up(table, p)), off));
    }
#endif
    (void)few;
    for (; i < n; i++) out[i] = grad[i] * factor[places[i]] + share * (w[i] - mean);
}

/* `grad` of what `compand` gave, handed on: to the weight as `out`, to each group's range and to the logarithms. partial:
 * two doubles for each block; parts: pairs of doubles, PARTS times MOST_PLACES. The rest as `compand` left it. */
void compand_backward(const float *w, const void *grad, int bf16, float *out, const uint8_t *places, int64_t groups, int64_t size,
                      const float *reach, int normalize, float *scales, const Tables *by, float *to_reach, float *logs,
                      double *partial, Pair *parts) {
    int64_t per = blocks(size), all = groups * per, share = (all + PARTS - 1) / PARTS, used = (all + share - 1) / share;
    Scales given = scales_of(scales, groups);
    double *shares = partial + all; /* of each group */
    memset(parts, 0, used * MOST_PLACES * sizeof *parts);
#pragma omp parallel for schedule(static) if (all >= FEW)
    for (int64_t part = 0; part < used; part++) {
        int64_t end = (part + 1) * share < all ? (part + 1) * share : all;
        for (int64_t b = part * share, next; b < end; b = next) { /* to the end of the group, or of the part */
            int64_t g = b / per, at = g * size + b % per * BLOCK;
            next = (g + 1) * per < end ? (g + 1) * per : end;
            int64_t n = (next - 1 - b) * BLOCK + length(size, (next - 1) % per);
            memset(partial + b, 0, (next - b) * sizeof *partial);
            partial[b] = add_run(w + at, skip(grad, at, bf16), bf16, places + at, n, given.step[g], by, parts + part * MOST_PLACES);
        }
    }
    for (int64_t g = 0; g < groups; g++) {
        double pull = 0;
        for (int64_t b = g * per; b < (g + 1) * per; b++) pull += partial[b];
        pull /= by->high;
        to_reach[g] = (float)(normalize ? pull * given.deviation[g] : pull);
        shares[g] = normalize ? given.differ[g] * pull * reach[g] / ((double)size * given.deviation[g]) : 0;
    }
    EACH_BLOCK(b, all) {
        int64_t n = length(size, b % per), at = b / per * size + b % per * BLOCK, g = b / per;
        float factor[MOST_PLACES], room[BLOCK];
        const float *up = floats(grad, at, n, bf16, room);
        find_factors(by, given.step[g], factor);
        hand_on_block(w + at, up, out + at, places + at, n, factor, normalize ? given.mean[g] : 0, (float)shares[g], by);
    }
    for (int64_t part = 1; part < used; part++)
        for (int32_t p = 0; p < by->places; p++) parts[p] += parts[part * MOST_PLACES + p];
    to_logs(by, parts, logs);
}

static double block_sum(const float *restrict w, int64_t n) {
    double lane[LANES] = {0}, sum = 0;
    IN_LANES(n, lane[j] += w[i + j])
    for (int j = 0; j < LANES; j++) sum += lane[j];
    return sum;
}

static double block_squares(const float *restrict w, int64_t n, float centre) {
    double lane[LANES] = {0}, sum = 0;
    IN_LANES(n, float off = w[i + j] - centre; lane[j] += off * off)
    for (int j = 0; j < LANES; j++) sum += lane[j];
    return sum;
}

ALWAYS float mean_of(const double *partial, int64_t count, int64_t size) {
    double sum = 0;
    for (int64_t b = 0; b < count; b++) sum += partial[b];
    return (float)(sum / (double)size);
}

/* As `spread` of harness/quantization/companding.py: differences in fp32, sums in doubles, rounded once. */
static void find_deviations(const float *w, int64_t groups, int64_t size, Scales found, double *partial) {
    int64_t per = blocks(size), all = groups * per;
    EACH_BLOCK(b, all) partial[b] = block_sum(w + b / per * size + b % per * BLOCK, length(size, b % per));
    for (int64_t g = 0; g < groups; g++) found.mean[g] = mean_of(partial + g * per, per, size);
    EACH_BLOCK(b, all)
        partial[b] = block_squares(w + b / per * size + b % per * BLOCK, length(size, b % per), found.mean[b / per]);
    for (int64_t g = 0; g < groups; g++) {
        float variance = mean_of(partial + g * per, per, size), rounding = 16 * 0x1p-23f * found.mean[g];
        float smallest = rounding * rounding;
        found.differ[g] = variance > (smallest < 0x1p-126f ? 0x1p-126f : smallest) ? 1.0f : 0.0f;
        found.deviation[g] = sqrtf(found.differ[g] > 0 ? variance : 1.0f);
    }
}
