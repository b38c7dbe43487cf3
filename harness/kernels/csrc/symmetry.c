/* The pass of harness/methods/symreg.py: the sign of the pair of ranks that each weight belongs to, without sorting all.
 *
 * Go through the weights by size |w|, the largest first, and count how many more positive ones there were than negative
 * ones. Of each pair the larger weight is on the side that leads, so its sum has the sign of this balance. Buckets of
 * sizes do wherever the balance cannot change its sign within one; the weights of the others, few unless weights are nearly
 * symmetric already, are sorted.
 */
#include "common.h"
#ifdef __AVX512F__
#include <immintrin.h>
#endif

#define MOST_BUCKETS 65536
#define CHUNK 512
#define SHARES 4 /* of the weights, counted apart from each other */
#define MIXED 2  /* a bucket's sign, beside -1 and 1: that of each weight is its own */
#define DIGITS 2048
#define CHUNKS 64  /* of mixed buckets, at most, that are sorted apart from each other */
#define MEMBERS 4096 /* of a chunk, about */

/* A bucket whose members are sorted: how many positive and negative weights are larger, and its members. */
typedef struct { int32_t bucket, above, below, count; } Mixed;

typedef struct {
    int32_t half, middle; /* middle: the rank of the weight without a partner, or 0 */
    float scale;
    int32_t *positive, *negative, *sign; /* positive: later, of a mixed bucket, its chunk */
    Mixed *mixed;
} Buckets;
/* Mixed buckets first <= m < end, and the keys of their members. */
typedef struct { int32_t first, end; int64_t from, count; double value; } Chunk;

_Static_assert(sizeof(Mixed) == 16, "room, in harness/kernels/cpu.py");

ALWAYS int32_t bucket_of(float w, float scale, int32_t half) {
    float at = fabsf(w) * scale, last = (float)(half - 1);
    return (int32_t)(at < last ? at : last);
}

ALWAYS uint32_t bits_of(float w) {
    uint32_t bits;
    memcpy(&bits, &w, 4);
    return bits;
}

/* Counts by bucket, those of negative weights in the second half. Returns the largest bits of |w|. */
static uint32_t count_some(const float *restrict w, int64_t n, float scale, int32_t half, uint16_t *restrict counts) {
    int32_t found[CHUNK];
    uint32_t most = 0;
    for (int64_t i = 0; i < n; i++) {
        uint32_t size = bits_of(w[i]) & 0x7fffffff;
        most = size > most ? size : most;
    }
    for (int64_t i = 0; i < n; i++) found[i] = bucket_of(w[i], scale, half) + (w[i] < 0 ? half : 0);
    for (int64_t i = 0; i < n; i++) counts[found[i]]++;
    return most;
}

/* Adds the counts of some weights to those of all; returns the largest bits of |w|. In 16 bits for a bucket, of which fewer
 * have to be fetched; where that was too few for one, the total is wrong, and the weights are counted in pieces. */
static uint32_t count_range(const float *w, int64_t n, Buckets *all) {
    uint16_t own[2 * MOST_BUCKETS];
    int32_t half = all->half;
    uint32_t most = 0;
    for (int64_t from = 0, piece = n, some; from < n;) {
        some = n - from < piece ? n - from : piece;
        memset(own, 0, 2 * half * sizeof *own);
        for (int64_t i = from; i < from + some; i += CHUNK) {
            int64_t end = i + CHUNK < from + some ? i + CHUNK : from + some;
            uint32_t size = count_some(w + i, end - i, all->scale, half, own);
            most = size > most ? size : most;
        }
        int64_t total = 0;
        for (int32_t b = 0; b < 2 * half; b++) total += own[b];
        if (total != some) {
            piece = 0xffff;
            continue;
        }
#pragma omp critical(symmetry)
        for (int32_t b = 0; b < half; b++) all->positive[b] += own[b], all->negative[b] += own[half + b];
        from += some;
    }
    return most;
}

/* Whether all weights are finite; counts those of each sign in each bucket. */
static int count_weights(const float *w, int64_t count, Buckets *all) {
    int64_t share = (count + SHARES - 1) / SHARES;
    int32_t infinite = 0;
    memset(all->positive, 0, all->half * sizeof(int32_t));
    memset(all->negative, 0, all->half * sizeof(int32_t));
#pragma omp parallel for schedule(static) reduction(| : infinite) if (count >= FEW * BLOCK)
    for (int64_t from = 0; from < count; from += share)
        infinite |= count_range(w + from, count - from < share ? count - from : share, all) >= 0x7f800000u;
    return !infinite;
}

/* The signs of all buckets; returns how many are mixed. */
static int32_t find_signs(Buckets *all) {
    int32_t middle = all->middle, above = 0, below = 0, found = 0;
    for (int32_t b = all->half - 1; b >= 0; b--) {
        int32_t p = all->positive[b], n = all->negative[b], balance = above - below;
        int alone = (above < middle && above + p >= middle) || (below < middle && below + n >= middle);
        all->sign[b] = b == 0 || alone ? MIXED : balance >= n ? 1 : -balance >= p ? -1 : MIXED;
        if (all->sign[b] == MIXED && p + n) all->mixed[found++] = (Mixed){b, above, below, p + n};
        above += p, below += n;
    }
    return found;
}

/* What the weights of mixed buckets are sorted by, descending: size, sign, index. */
ALWAYS uint64_t key_of(float w, int32_t index) {
    uint32_t bits = bits_of(w);
    return (uint64_t)(bits & 0x7fffffff) << 32 | (bits & 0x80000000u) | (uint32_t)index;
}

/* Where signs are mixed, in order; returns how many are. places: n and 16 more. */
static int32_t find_mixed(const int32_t *restrict signs, int64_t n, int32_t *restrict places) {
    int32_t few = 0, i = 0;
#ifdef __AVX512F__
    __m512i at = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    for (; i + 16 <= n; i += 16) {
        __mmask16 mixed = _mm512_cmpeq_epi32_mask(_mm512_loadu_si512(signs + i), _mm512_set1_epi32(MIXED));
        __m512i here = _mm512_add_epi32(at, _mm512_set1_epi32(i));
        _mm512_storeu_si512(places + few, _mm512_maskz_compress_epi32(mixed, here));
        few += __builtin_popcount(mixed);
    }
#endif
    for (; i < n; i++) {
        places[few] = i;
        few += signs[i] == MIXED;
    }
    return few;
}

/* The signs of a block; the keys of those that are mixed, as many as it sets `listed` to. Returns what the others add to
 * the value. */
static double give_block(const float *restrict w, const Buckets *restrict all, int8_t *restrict signs, int64_t n,
                         int32_t first, uint64_t *restrict keys, int32_t *listed) {
    float lane[LANES] = {0};
    double sum = 0;
    int32_t found[BLOCK], places[BLOCK + 16], few;
    for (int64_t i = 0; i < n; i++) found[i] = bucket_of(w[i], all->scale, all->half);
    for (int64_t i = 0; i < n; i++) found[i] = all->sign[found[i]];
    for (int64_t i = 0; i < n; i++) signs[i] = (int8_t)found[i];
    IN_LANES(n, float s = found[i + j]; lane[j] += (s == MIXED ? 0.0f : s) * w[i + j])
    for (int j = 0; j < LANES; j++) sum += lane[j];
    few = find_mixed(found, n, places);
    for (int32_t k = 0; k < few; k++) keys[k] = key_of(w[places[k]], first + places[k]);
    *listed = few;
    return sum;
}

/* Descending by size, in three passes; equal ones stay in order. Returns where they are: in keys or in room. */
static uint64_t *sort_keys(uint64_t *keys, uint64_t *room, int64_t count) {
    for (int shift = 32; shift < 64; shift += 11) {
        int32_t start[DIGITS] = {0}, sum = 0;
        for (int64_t i = 0; i < count; i++) start[keys[i] >> shift & (DIGITS - 1)]++;
        for (int32_t d = DIGITS - 1; d >= 0; d--) {
            int32_t here = start[d];
            start[d] = sum, sum += here;
        }
        for (int64_t i = 0; i < count; i++) room[start[keys[i] >> shift & (DIGITS - 1)]++] = keys[i];
        uint64_t *other = keys;
        keys = room, room = other;
    }
    return keys;
}

ALWAYS int32_t is_negative(uint64_t key) { return key >> 31 & 1; }
ALWAYS float size_of(uint64_t key) {
    uint32_t bits = (uint32_t)(key >> 32);
    float size;
    memcpy(&size, &bits, 4);
    return size;
}
ALWAYS int32_t index_of(uint64_t key) { return (int32_t)(key & 0x7fffffff); }

/* The sign goes to a weight; returns what that adds to the value. */
ALWAYS double give(uint64_t key, int32_t sign, int8_t *signs) {
    signs[index_of(key)] = (int8_t)sign;
    return (double)(sign * (1 - 2 * is_negative(key))) * size_of(key);
}

/* Members of equal size, of which some cancel. Zeros are on neither side: what leads takes as many as it leads by. */
static double settle_equal(const uint64_t *keys, int32_t count, int32_t above, int32_t below, int32_t middle, int8_t *signs) {
    int32_t down = 0, up = 0, n = 0, balance = above - below;
    double value = 0;
    for (int32_t i = 0; i < count; i++) n += is_negative(keys[i]);
    int32_t p = count - n, zeros = keys[0] >> 32 == 0;
    for (int32_t i = 0; i < count; i++) {
        int32_t sign;
        if (zeros) up++, sign = up <= balance ? 1 : up <= -balance ? -1 : 0;
        else if (is_negative(keys[i])) down++, sign = down <= balance ? 1 : down <= balance + p ? 0 : -1;
        else up++, sign = up <= -balance ? -1 : up <= n - balance ? 0 : 1;
        if (!zeros && middle && (is_negative(keys[i]) ? below + down : above + up) == middle) sign = 0;
        value += give(keys[i], sign, signs);
    }
    return value;
}

/* The signs of a bucket's members, which are in order. */
static double settle(const uint64_t *keys, const Mixed *of, int32_t middle, int8_t *signs) {
    int32_t above = of->above, below = of->below, end;
    double value = 0;
    for (int32_t from = 0; from < of->count; from = end) {
        uint32_t size = (uint32_t)(keys[from] >> 32);
        int32_t n = is_negative(keys[from]);
        for (end = from + 1; end < of->count && (uint32_t)(keys[end] >> 32) == size; end++) n += is_negative(keys[end]);
        int32_t p = end - from - n;
        if (end == from + 1 && size && !middle) value += give(keys[from], 2 * (above - below + p > 0) - 1, signs);
        else value += settle_equal(keys + from, end - from, above, below, middle, signs);
        above += p, below += n;
    }
    return value;
}

/* Cuts the mixed buckets into chunks of about as many members each; returns how many. */
static int32_t find_chunks(Buckets *all, int32_t mixed, int64_t members, Chunk *chunks) {
    int64_t most = members / CHUNKS + 1, count = 0;
    int32_t last = 0;
    most = most > MEMBERS ? most : MEMBERS;
    chunks[0] = (Chunk){0, 0, 0, 0, 0};
    for (int32_t m = 0; m < mixed; m++) {
        if (count > 0 && count + all->mixed[m].count > most && last < CHUNKS - 1) {
            chunks[last + 1] = (Chunk){m, m, chunks[last].from + count, 0, 0};
            last++, count = 0;
        }
        count += all->mixed[m].count;
        chunks[last].end = m + 1, chunks[last].count = count;
        all->positive[all->mixed[m].bucket] = last;
    }
    return last + 1;
}

/* Moves the keys of each block to their chunks in `room`, in order: the blocks in SHARES parts, side by side. */
static void divide_keys(const Buckets *all, const uint64_t *keys, const int32_t *listed, int64_t each, uint64_t *room,
                        const Chunk *chunks, int32_t count) {
    int64_t places[SHARES][CHUNKS] = {{0}}, share = (each + SHARES - 1) / SHARES;
    for (int again = 0; again < 2; again++) {
#pragma omp parallel for schedule(static) if (each >= FEW)
        for (int64_t s = 0; s < SHARES; s++) {
            int64_t end = (s + 1) * share < each ? (s + 1) * share : each, *own = places[s];
            for (int64_t b = s * share; b < end; b++)
                for (int32_t k = 0; k < listed[b]; k++) {
                    uint64_t key = keys[b * BLOCK + k];
                    int32_t chunk = all->positive[bucket_of(size_of(key), all->scale, all->half)];
                    if (again) room[own[chunk]++] = key;
                    else own[chunk]++;
                }
        }
        for (int32_t c = 0; c < count && !again; c++) {
            int64_t place = chunks[c].from;
            for (int64_t s = 0; s < SHARES; s++) {
                int64_t here = places[s][c];
                places[s][c] = place, place += here;
            }
        }
    }
}

/* Buckets to a unit of size: most of them within the largest of a thousand weights. */
static float scale_for(const float *w, int64_t count, int32_t half) {
    float most = 0;
    for (int64_t stride = count / 1024 + 1; most == 0 && stride > 0; stride = stride > 1 ? 1 : 0)
        for (int64_t i = 0; i < count; i += stride) most = fabsf(w[i]) > most ? fabsf(w[i]) : most;
    float scale = (float)half / most;
    return most > 0 && isfinite(scale) ? scale : 0; /* all in one bucket, and sorted */
}

/* signs: of the sum that each of `count` weights is in, times which the weights add up to `value`; that is NaN where a
 * weight is not finite. half: the number of buckets. room: 28 bytes for each of them; keys: two for each weight;
 * partial, listed: one for each block. */
void symmetry(const float *w, int64_t count, int half, int8_t *signs, double *value, void *room, uint64_t *keys,
              double *partial, int32_t *listed) {
    int64_t each = blocks(count), members = 0;
    int32_t middle = count % 2 ? (int32_t)(count / 2 + 1) : 0, *numbers = (int32_t *)((Mixed *)room + half);
    Buckets all = {half, middle, scale_for(w, count, half), numbers, numbers + half, numbers + 2 * half, room};
    Chunk chunks[CHUNKS];
    *value = NAN;
    if (!count_weights(w, count, &all)) return;
    int32_t mixed = find_signs(&all);
    EACH_BLOCK(b, each) {
        int64_t at = b * BLOCK;
        partial[b] = give_block(w + at, &all, signs + at, length(count, b), (int32_t)at, keys + at, listed + b);
    }
    for (int64_t b = 0; b < each; b++) members += listed[b];
    int32_t apart = find_chunks(&all, mixed, members, chunks);
    divide_keys(&all, keys, listed, each, keys + count, chunks, apart);
#pragma omp parallel for schedule(dynamic) if (apart > 1)
    for (int32_t c = 0; c < apart; c++) {
        Chunk *own = chunks + c;
        uint64_t *sorted = sort_keys(keys + count + own->from, keys + own->from, own->count);
        for (int32_t m = own->first; m < own->end; sorted += all.mixed[m++].count)
            own->value += settle(sorted, all.mixed + m, middle, signs);
    }
    *value = 0;
    for (int64_t b = 0; b < each; b++) *value += partial[b];
    for (int32_t c = 0; c < apart; c++) *value += chunks[c].value;
}

/* out = factor times the signs. */
void signed_factor(const int8_t *signs, float *out, int64_t count, float factor) {
    EACH_BLOCK(b, blocks(count))
        for (int64_t i = b * BLOCK; i < b * BLOCK + length(count, b); i++) out[i] = factor * signs[i];
}
