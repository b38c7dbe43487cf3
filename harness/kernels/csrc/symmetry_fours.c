/* The pass of harness/methods/symreg.py for sums of two neighbouring pairs; symmetry.c has that for single pairs.
 *
 * Weights fall into buckets in ascending order, symmetric about 0: a bucket and its mirror image hold the same sizes. Of
 * a pair whose weights fall into buckets of different size the larger one decides the sign, whatever the values. Only
 * buckets where signs differ, few unless weights are nearly symmetric already, are sorted.
 */
#include <stdlib.h>

#include "common.h"

#define PARTS 4 /* of the weights, counted apart from each other */
#define CHUNK 512
#define MIXED 2 /* a bucket's sign, beside -1, 0 and 1: that of each weight is its own */

typedef struct { float w; int32_t index; } Member;
/* Of 2 * half buckets: where each one's ranks begin, where its members are, and the sign of them all. */
typedef struct {
    int64_t half, count, pairs;
    float scale;
    int32_t *start, *place;
    int8_t *sign;
    Member *members;
} Buckets;

/* Never decreasing in w, and symmetric: w and -w are in buckets that mirror each other (a zero apart). */
ALWAYS int32_t bucket_of(float w, float scale, int32_t half) {
    int32_t size = (int32_t)(fabsf(w) * scale);
    size = size < half ? size : half - 1;
    return half + (size ^ -(int32_t)(w < 0)); /* half - 1 - size of negative ones, without a branch */
}

/* By itself, so that it is made of vectors. */
static void find_buckets(const float *restrict w, int32_t *restrict out, int64_t n, float scale, int32_t half) {
    for (int64_t i = 0; i < n; i++) out[i] = bucket_of(w[i], scale, half);
}

static void count_weights(const float *w, Buckets *all, int32_t *counts) {
    int64_t share = (all->count + PARTS - 1) / PARTS;
    float scale = all->scale;
    int32_t half = (int32_t)all->half;
#pragma omp parallel for schedule(static) if (all->count >= FEW * BLOCK)
    for (int64_t part = 0; part < PARTS; part++) {
        int32_t *own = counts + part * 2 * half;
        int64_t end = (part + 1) * share < all->count ? (part + 1) * share : all->count;
        memset(own, 0, 2 * half * sizeof *own);
        for (int64_t i = part * share; i < end; i += CHUNK) {
            int64_t n = end - i < CHUNK ? end - i : CHUNK;
            int32_t found[CHUNK];
            find_buckets(w + i, found, n, scale, half);
            for (int64_t j = 0; j < n; j++) own[found[j]]++;
        }
    }
    all->start[0] = 0;
    for (int64_t a = 0; a < 2 * half; a++) {
        int32_t sum = 0;
        for (int64_t part = 0; part < PARTS; part++) sum += counts[part * 2 * half + a];
        all->start[a + 1] = all->start[a] + sum;
    }
}

/* A run of pairs first <= j < end: the lower weight, of rank j, in bucket `low`, the upper one in `high`. */
typedef struct { int64_t first, end, low, high; } Run;

static int next_run(const Buckets *all, Run *run) {
    run->first = run->end;
    if (run->first >= all->pairs) return 0;
    while (all->start[run->low + 1] <= run->first) run->low++;
    while (all->start[run->high] > all->count - 1 - run->first) run->high--;
    int64_t lower = all->start[run->low + 1], upper = all->count - all->start[run->high];
    run->end = lower < upper ? lower : upper;
    run->end = run->end < all->pairs ? run->end : all->pairs;
    return 1;
}

ALWAYS Run before_all(const Buckets *all) { return (Run){0, 0, 0, 2 * all->half - 1}; }

/* The sign of all sums of a run; MIXED where values decide it, as they do where both may be 0. */
ALWAYS int8_t sign_of(const Buckets *all, const Run *run) {
    if (run->low == all->half && run->high == all->half) return MIXED;
    int64_t balance = run->low + run->high - (2 * all->half - 1);
    return balance > 0 ? 1 : balance < 0 ? -1 : MIXED;
}

ALWAYS void touch(int8_t *sign, int8_t by) { *sign = *sign == 0 || *sign == by ? by : MIXED; }

/* A run's last pair may go with the first one of the next. */
static void find_signs(Buckets *all) {
    memset(all->sign, 0, 2 * all->half);
    Run run = before_all(all), last = run;
    for (int8_t sign, previous = 0; next_run(all, &run); last = run, previous = sign) {
        sign = sign_of(all, &run);
        touch(all->sign + run.low, sign), touch(all->sign + run.high, sign);
        if (previous && previous != sign)
            all->sign[run.low] = all->sign[run.high] = all->sign[last.low] = all->sign[last.high] = MIXED;
    }
    for (int64_t rank = all->pairs, a = 0; rank < all->count - all->pairs; rank++) { /* without a partner */
        while (all->start[a + 1] <= rank) a++;
        all->sign[a] = MIXED;
    }
}

/* The signs of a block; returns what those that are known add to the value. */
static double give_block(const float *restrict w, const Buckets *all, int8_t *restrict signs, int64_t n) {
    double lane[LANES] = {0}, sum = 0;
    int32_t found[BLOCK];
    const int8_t *restrict sign = all->sign;
    find_buckets(w, found, n, all->scale, (int32_t)all->half);
    for (int64_t i = 0; i < n; i++) signs[i] = sign[found[i]];
    IN_LANES(n, float s = signs[i + j]; lane[j] += (s == MIXED ? 0.0f : s) * w[i + j])
    for (int j = 0; j < LANES; j++) sum += lane[j];
    return sum;
}

static void give_signs(const float *w, const Buckets *all, int8_t *signs, double *partial) {
    int64_t each = blocks(all->count);
    EACH_BLOCK(b, each) partial[b] = give_block(w + b * BLOCK, all, signs + b * BLOCK, length(all->count, b));
}

static int by_value(const void *one, const void *other) {
    const Member *a = one, *b = other;
    return a->w != b->w ? (a->w < b->w ? -1 : 1) : a->index < b->index ? -1 : 1;
}

static void sort_members(Member *members, int64_t count) {
    if (count > 64) {
        qsort(members, count, sizeof *members, by_value);
        return;
    }
    for (int64_t i = 1; i < count; i++) {
        Member each = members[i];
        int64_t j = i;
        for (; j > 0 && members[j - 1].w > each.w; j--) members[j] = members[j - 1];
        members[j] = each;
    }
}

/* Whether one of eight signs is MIXED: of all signs only that has bit 1 without bit 2. */
ALWAYS int any_mixed(const int8_t *signs) {
    uint64_t eight;
    memcpy(&eight, signs, 8);
    return (eight & ~(eight >> 1) & 0x0202020202020202u) != 0;
}

/* The members of mixed buckets, each bucket's in ascending order, equal ones by index. */
static void sort_mixed(const float *w, Buckets *all, const int8_t *signs, int32_t *cursor) {
    int32_t room = 0;
    for (int64_t a = 0; a < 2 * all->half; a++) {
        all->place[a] = cursor[a] = room;
        if (all->sign[a] == MIXED) room += all->start[a + 1] - all->start[a];
    }
    for (int64_t from = 0; from < all->count; from += 8) {
        int64_t end = from + 8 < all->count ? from + 8 : all->count;
        if (end - from == 8 && !any_mixed(signs + from)) continue;
        for (int64_t i = from; i < end; i++) {
            if (signs[i] != MIXED) continue;
            int32_t a = bucket_of(w[i], all->scale, (int32_t)all->half);
            all->members[cursor[a]++] = (Member){w[i], (int32_t)i};
        }
    }
#pragma omp parallel for schedule(dynamic, 256) if (room >= FEW * BLOCK)
    for (int64_t a = 0; a < 2 * all->half; a++)
        if (all->sign[a] == MIXED) sort_members(all->members + all->place[a], all->start[a + 1] - all->start[a]);
}

/* The member of a rank; NULL where its bucket has one sign. */
ALWAYS const Member *member(const Buckets *all, int64_t bucket, int64_t rank) {
    return all->sign[bucket] == MIXED ? all->members + all->place[bucket] + (rank - all->start[bucket]) : NULL;
}

typedef struct { const Member *low, *high; int8_t known; } Pair;

ALWAYS float sum_of(const Pair *pair) { return pair->low->w + pair->high->w; }

/* The sign goes to what is mixed of two pairs; returns what it adds to the value. */
static double settle_pairs(const Pair *pairs, int8_t *signs) {
    int values = pairs[0].low && pairs[0].high && pairs[1].low && pairs[1].high;
    float sum = values ? sum_of(pairs) + sum_of(pairs + 1) : 0;
    double added = 0;
    int8_t sign = values ? (int8_t)((sum > 0) - (sum < 0)) : pairs[0].known;
    for (int k = 0; k < 2; k++) {
        const Member *both[2] = {pairs[k].low, pairs[k].high};
        for (int side = 0; side < 2; side++)
            if (both[side]) signs[both[side]->index] = sign, added += (double)sign * both[side]->w;
    }
    return added;
}

/* From the pair `from` of a run up to `end`; pairs: the last ones, kept from run to run. */
static double settle_run(const Buckets *all, const Run *run, int64_t from, int64_t end, Pair *pairs, int8_t *signs) {
    double value = 0;
    int8_t known = sign_of(all, run);
    for (int64_t j = from; j < end; j++) {
        pairs[j % 2] = (Pair){member(all, run->low, j), member(all, run->high, all->count - 1 - j), known};
        if (j % 2) value += settle_pairs(pairs, signs);
    }
    return value;
}

static double settle_mixed(const Buckets *all, int8_t *signs) {
    double value = 0;
    Run run = before_all(all);
    Pair pairs[2];
    while (next_run(all, &run)) {
        if (all->sign[run.low] == MIXED || all->sign[run.high] == MIXED) {
            value += settle_run(all, &run, run.first, run.end, pairs, signs);
        } else { /* only the ends, which may share a sum with a pair of a mixed run */
            value += settle_run(all, &run, run.first, run.first + run.first % 2, pairs, signs);
            value += settle_run(all, &run, run.end - run.end % 2, run.end, pairs, signs);
        }
    }
    for (int64_t rank = all->pairs, a = 0; rank < all->count - all->pairs; rank++) {
        while (all->start[a + 1] <= rank) a++;
        signs[member(all, a, rank)->index] = 0;
    }
    return value;
}

/* signs: of the sum that each of `count` weights is in, times which the weights add up to `value`: 2 * half buckets,
 * half a power of two, `scale` times the largest |w| about half. room: int32, (PARTS + 2) times
 * 2 * half + 1; sign: a byte for each bucket; members: 8 bytes for each weight; partial: a double for each block. */
void symmetry_fours(const float *w, int64_t count, int64_t half, float scale, int8_t *signs, double *value, int32_t *room,
                    int8_t *sign, void *members, double *partial) {
    int64_t pairs = count / 2;
    Buckets all = {half, count, pairs - pairs % 2, scale, room, room + 2 * half + 1, sign, members};
    int32_t *counts = room + 4 * half + 1;
    count_weights(w, &all, counts);
    find_signs(&all);
    give_signs(w, &all, signs, partial);
    sort_mixed(w, &all, signs, counts);
    *value = settle_mixed(&all, signs);
    for (int64_t b = 0; b < blocks(count); b++) *value += partial[b];
}

/* out, or where `add` what it gains: factor times the signs. */
void signed_factor(const int8_t *signs, float *out, int64_t count, float factor, int add) {
    EACH_BLOCK(b, blocks(count)) {
        int64_t end = b * BLOCK + length(count, b);
        if (add) {
            for (int64_t i = b * BLOCK; i < end; i++) out[i] += factor * signs[i];
        } else {
            for (int64_t i = b * BLOCK; i < end; i++) out[i] = factor * signs[i];
        }
    }
}
