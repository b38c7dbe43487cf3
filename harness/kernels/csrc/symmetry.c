/* The pass of harness/methods/symreg.py over a large layer, whose docstring has the mathematics: counts of sizes |w| by
 * bucket and sign, mean signs for each bucket from these, and their look-up for each weight. Nothing is sorted.
 */
#include "common.h"

#define SHIFT 12 /* of an fp32's 23 bits of fraction 11 count: 2048 buckets an octave */
#define BUCKETS 32768
#define PLACES (2 * BUCKETS) /* of each bucket: first all for positive weights, then all for negative ones */
#define SHARES 2             /* of the weights, counted apart from each other */
#define CHUNK 512

ALWAYS int32_t place_of(float w, int32_t base) {
    uint32_t bits;
    memcpy(&bits, &w, 4);
    int32_t bucket = (int32_t)((bits & 0x7fffffff) >> SHIFT) - base;
    return (bucket > 0 ? bucket : 0) + (int32_t)(bits >> 31) * BUCKETS;
}

/* The middle of a bucket; bucket 0 counts as 0. */
ALWAYS float size_of(int32_t bucket, int32_t base) {
    uint32_t bits = bucket ? (uint32_t)(bucket + base) << SHIFT | 1u << (SHIFT - 1) : 0;
    float size;
    memcpy(&size, &bits, 4);
    return size;
}

/* By itself, so that it is made of vectors. */
static void find_places(const float *restrict w, int32_t *restrict out, int64_t n, int32_t base) {
    for (int64_t i = 0; i < n; i++) out[i] = place_of(w[i], base);
}

/* counts: `shares` times PLACES; the first come to hold those of all. */
static void count_places(const float *w, int64_t count, int32_t base, int64_t shares, int32_t *counts) {
    int64_t share = (count + shares - 1) / shares;
#pragma omp parallel for schedule(static) if (shares > 1)
    for (int64_t s = 0; s < shares; s++) {
        int64_t end = (s + 1) * share < count ? (s + 1) * share : count;
        int32_t *own = counts + s * PLACES, found[CHUNK];
        memset(own, 0, PLACES * sizeof *own);
        for (int64_t i = s * share; i < end; i += CHUNK) {
            int64_t n = end - i < CHUNK ? end - i : CHUNK;
            find_places(w + i, found, n, base);
            for (int64_t j = 0; j < n; j++) own[found[j]]++;
        }
    }
    for (int64_t s = 1; s < shares; s++)
        for (int64_t a = 0; a < PLACES; a++) counts[a] += counts[s * PLACES + a];
}

/* How many more positive than negative weights n buckets from `first` on have. */
static int32_t surplus(const int32_t *restrict counts, int32_t first, int32_t n) {
    const int32_t *restrict positive = counts + first, *restrict negative = counts + BUCKETS + first;
    int32_t sum = 0;
    for (int32_t i = 0; i < n; i++) sum += positive[i] - negative[i];
    return sum;
}

ALWAYS int32_t within(int32_t x, int32_t high) { return x < 0 ? 0 : x > high ? high : x; }

/* Mean signs of n buckets from `first` on. balance: how many more positive than negative weights are in larger ones.
 * Returns what they add to the value. */
static double give_means(const int32_t *restrict counts, int32_t balance, int32_t first, int32_t n, int32_t base,
                         float *restrict signs) {
    const int32_t *restrict positive = counts + first, *restrict negative = counts + BUCKETS + first;
    float *restrict above = signs + first, *restrict below = signs + BUCKETS + first;
    int32_t leads[BLOCK];
    float sums[BLOCK];
    for (int32_t i = n - 1; i >= 0; i--) {
        leads[i] = balance;
        balance += positive[i] - negative[i];
    }
    for (int32_t i = 0; i < n; i++) {
        int32_t p = positive[i], m = negative[i], lead = leads[i];
        int32_t up = within(p - m + lead, p) - within(-lead, p), down = within(lead, m) - within(m - p - lead, m);
        above[i] = (float)up / (float)(p > 0 ? p : 1);
        below[i] = (float)down / (float)(m > 0 ? m : 1);
        sums[i] = size_of(first + i, base) * (float)(up - down);
    }
    double lane[LANES] = {0}, sum = 0;
    IN_LANES(n, lane[j] += sums[i + j])
    for (int j = 0; j < LANES; j++) sum += lane[j];
    return sum;
}

/* Takes the sign of the weight in the middle, which has no partner, from its bucket's; returns what it added. */
static double leave_out(int64_t middle, const int32_t *counts, int32_t base, float *signs) {
    for (int side = 0; side < 2; side++) {
        int64_t larger = 0;
        for (int32_t b = BUCKETS - 1; b > 0 && larger < middle; b--) {
            int32_t own = counts[side * BUCKETS + b];
            if (larger + own >= middle) {
                signs[side * BUCKETS + b] -= (side ? -1.0f : 1.0f) / own;
                return size_of(b, base);
            }
            larger += own;
        }
    }
    return 0;
}

/* signs: of each of PLACES, the mean sign of the sums that its weights are in; value: that of all sums' sizes. base: where
 * bucket 0 begins, which all smaller weights are in, too. counts: SHARES times PLACES, scratch. */
void symmetry(const float *w, int64_t count, int32_t base, int32_t *counts, float *signs, double *value) {
    int64_t shares = count < PLACES ? 1 : SHARES;
    int32_t balances[BUCKETS / BLOCK + 1] = {0};
    double partial[BUCKETS / BLOCK];
    count_places(w, count, base, shares, counts);
    /* The first bucket is by itself. */
    for (int b = BUCKETS / BLOCK - 1; b >= 0; b--)
        balances[b] = balances[b + 1] + surplus(counts, b * BLOCK + !b, BLOCK - !b);
    EACH_BLOCK(b, BUCKETS / BLOCK)
        partial[b] = give_means(counts, balances[b + 1], (int32_t)(b * BLOCK + !b), BLOCK - !b, base, signs);
    int32_t lead = balances[0], zeros = counts[0] + counts[BUCKETS];
    int32_t led = lead < -zeros ? -zeros : lead > zeros ? zeros : lead;
    signs[0] = signs[BUCKETS] = (float)led / (float)(zeros > 0 ? zeros : 1);
    *value = count % 2 ? -leave_out(count / 2 + 1, counts, base, signs) : 0;
    for (int b = 0; b < BUCKETS / BLOCK; b++) *value += partial[b];
}

/* By itself, so that it is made of vectors. */
static void look_up(const int32_t *restrict found, const float *restrict signs, float *restrict out, int64_t n,
                    float factor, int add) {
    if (add) {
        for (int64_t i = 0; i < n; i++) out[i] += factor * signs[found[i]];
    } else {
        for (int64_t i = 0; i < n; i++) out[i] = factor * signs[found[i]];
    }
}

/* out, or where `add` what it gains: factor times each weight's mean sign. */
void mean_signs(const float *w, int64_t count, int32_t base, const float *signs, float *out, float factor, int add) {
    EACH_BLOCK(b, blocks(count)) {
        int32_t found[CHUNK];
        int64_t end = b * BLOCK + length(count, b);
        for (int64_t i = b * BLOCK; i < end; i += CHUNK) {
            int64_t n = end - i < CHUNK ? end - i : CHUNK;
            find_places(w + i, found, n, base);
            look_up(found, signs, out + i, n, factor, add);
        }
    }
}
