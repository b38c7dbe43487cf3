/* Sums of sign(w) grad, and of |w| times that, by place, in doubles. */
#include "common.h"
#ifdef __AVX512F__
#include <immintrin.h>
#endif

#define CHUNK 512
/* Sums kept apart, so that one weight need not wait for what the one before it adds to the same place. */
#define APART 4
#define MOST_PLACES 194
/* Places of which two vectors of AVX-512 hold a table, whose look-ups are single instructions. */
#define FEW_PLACES 32
/* Fewer weights than this are not worth a table for every pair of places. */
#define WORTH_PAIRS 2048

/* Of sign(w) grad and of |w| times that, as one vector; and of two neighbouring weights. */
typedef double Pair __attribute__((vector_size(16)));
typedef double Two __attribute__((vector_size(32)));

/* Sums of up to CHUNK weights by place, in APART tables in turn. */
static void add_some(const float *restrict w, const float *restrict grad, const uint8_t *restrict places, int64_t n,
                     Pair own[APART][MOST_PLACES]) {
    double both[2 * CHUNK] __attribute__((aligned(64)));
    const Pair *pairs = (const Pair *)both;
    for (int64_t i = 0; i < n; i++) {
        both[2 * i] = copysignf(1.0f, w[i]) * grad[i];
        both[2 * i + 1] = (double)grad[i] * (double)w[i];
    }
    int64_t i = 0;
    for (; i + APART <= n; i += APART)
        for (int j = 0; j < APART; j++) own[j][places[i + j]] += pairs[i + j];
    for (; i < n; i++) own[0][places[i]] += pairs[i];
}

#ifdef __AVX512F__
/* Eight weights; at: of each two neighbours the place in the table. */
ALWAYS void add_eight(const float *w, const void *grad, int bf16, const uint16_t *at, Two *sums) {
    const __m512i first = _mm512_set_epi64(11, 3, 10, 2, 9, 1, 8, 0), last = _mm512_set_epi64(15, 7, 14, 6, 13, 5, 12, 4);
    __m256i halves = bf16 ? _mm256_cvtepu16_epi32(_mm_loadu_si128(grad)) : _mm256_loadu_si256(grad);
    __m512d up = _mm512_cvtps_pd(_mm256_castsi256_ps(bf16 ? _mm256_slli_epi32(halves, 16) : halves));
    __m512d own = _mm512_cvtps_pd(_mm256_loadu_ps(w)), moved = _mm512_mul_pd(up, own);
    __m512i sign = _mm512_and_si512(_mm512_castpd_si512(own), _mm512_set1_epi64(INT64_MIN));
    __m512d pushed = _mm512_castsi512_pd(_mm512_xor_si512(_mm512_castpd_si512(up), sign));
    __m512d four = _mm512_permutex2var_pd(pushed, first, moved), more = _mm512_permutex2var_pd(pushed, last, moved);
    sums[at[0]] += (Two)_mm512_castpd512_pd256(four), sums[at[1]] += (Two)_mm512_extractf64x4_pd(four, 1);
    sums[at[2]] += (Two)_mm512_castpd512_pd256(more), sums[at[3]] += (Two)_mm512_extractf64x4_pd(more, 1);
}

/* Sums of two neighbours at once by both of their places: half as many additions. Returns how many weights it did. */
static int64_t add_twos(const float *w, const void *grad, int bf16, const uint8_t *places, int64_t n, int32_t few, Pair *sums) {
    Two table[FEW_PLACES * FEW_PLACES];
    uint16_t at[CHUNK / 2];
    int64_t from = 0;
    memset(table, 0, few * few * sizeof *table);
    for (; from + CHUNK <= n; from += CHUNK) {
        for (int i = 0; i < CHUNK / 2; i++) at[i] = (uint16_t)(places[from + 2 * i] * few + places[from + 2 * i + 1]);
        for (int i = 0; i < CHUNK; i += 8) add_eight(w + from + i, skip(grad, from + i, bf16), bf16, at + i / 2, table);
    }
    for (int32_t p = 0; p < few; p++)
        for (int32_t q = 0; q < few; q++) {
            Two sum = table[p * few + q];
            sums[p] += (Pair){sum[0], sum[1]}, sums[q] += (Pair){sum[2], sum[3]};
        }
    return from;
}
#endif

/* sums: of `n` weights, a pair for each of `count` places; grad in fp32 or bf16. */
static void sum_by_place(const float *w, const void *grad, int bf16, const uint8_t *places, int64_t n, int32_t count, Pair *sums) {
    Pair own[APART][MOST_PLACES];
    float room[CHUNK];
    int64_t from = 0;
    memset(sums, 0, count * sizeof *sums);
#ifdef __AVX512F__
    if (count <= FEW_PLACES && n >= WORTH_PAIRS) from = add_twos(w, grad, bf16, places, n, count, sums);
#endif
    for (int j = 0; j < APART; j++) memset(own[j], 0, count * sizeof **own);
    for (; from < n; from += CHUNK) {
        int64_t some = n - from < CHUNK ? n - from : CHUNK;
        add_some(w + from, floats(grad, from, some, bf16, room), places + from, some, own);
    }
    for (int32_t p = 0; p < count; p++)
        for (int j = 0; j < APART; j++) sums[p] += own[j][p];
}
