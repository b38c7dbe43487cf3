/* What the passes in C share: blocks of weights, lanes of sums, codes. */
#include <math.h>
#include <stdint.h>
#include <string.h>

#define BLOCK 4096
#define LANES 16
/* Fewer blocks than this are not worth waking threads up for. */
#define FEW 8
#define ALWAYS static inline __attribute__((always_inline))

ALWAYS int64_t blocks(int64_t size) { return (size + BLOCK - 1) / BLOCK; }
ALWAYS int64_t length(int64_t size, int64_t block) {
    int64_t left = size - block * BLOCK;
    return left < BLOCK ? left : BLOCK;
}

#define PRAGMA(text) _Pragma(#text)
/* A loop over the blocks 0 <= b < all, in threads where there are enough. */
#define EACH_BLOCK(b, all) \
    PRAGMA(omp parallel for schedule(static) if ((all) >= FEW)) \
    for (int64_t b = 0; b < (all); b++)
/* The statement for each weight i + j < n, `j` its lane: whole rows of lanes in vectors, then the rest. */
#define IN_LANES(n, ...) \
    { \
        int64_t i = 0; \
        for (; i + LANES <= n; i += LANES) { \
            PRAGMA(omp simd) \
            for (int j = 0; j < LANES; j++) { __VA_ARGS__; } \
        } \
        for (int j = 0; j < n - i; j++) { __VA_ARGS__; } \
    }

/* bf16 is the upper half of an fp32; rounded to even. */
ALWAYS float from_bf16(uint16_t half) {
    uint32_t bits = (uint32_t)half << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}
ALWAYS uint16_t to_bf16(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return value == value ? (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16) : 0x7fc0;
}

/* The address of value `at` of a tensor of floats or of bf16. */
ALWAYS const void *skip(const void *from, int64_t at, int bf16) {
    return bf16 ? (const void *)((const uint16_t *)from + at) : (const void *)((const float *)from + at);
}

/* Up to BLOCK values from a tensor of floats, or of bf16, which are made floats in `room`. */
ALWAYS const float *floats(const void *from, int64_t at, int64_t n, int bf16, float *restrict room) {
    if (!bf16) return (const float *)from + at;
    const uint16_t *restrict halves = (const uint16_t *)from + at;
    for (int64_t i = 0; i < n; i++) room[i] = from_bf16(halves[i]);
    return room;
}

/* The code of v = w / step. high < 0: no clipping. */
ALWAYS float code_of(float v, float high) {
    float k = rintf(v);
    return high < 0 ? k : k > high ? high : k < -high ? -high : k;
}
/* 1 where rounding passes a gradient on: within the range, or a little beyond. */
ALWAYS float inside(float v, float high, float slack) { return high < 0 || fabsf(v) <= high + slack ? 1.0f : 0.0f; }
