/* Attention of a few rows of one sequence over its blocks, for the query heads of one KV head.
 *
 *     block, of one layer   keys (K, D, P), values (K, P, D) in bfloat16
 *     chunk                 CHUNK keys at an absolute place: [0, 256) [256, 512) ...
 *
 * A row's result depends on its own position alone: within a chunk, scores are sums over D in ascending
 * order, the weights are relative to the chunk's maximum, and values are added in the order of the keys;
 * chunks are then merged in ascending order (FlashDecoding's way, Dao et al., 2023). Whether one thread
 * went through all chunks or several took one each makes no difference to the bits.
 */
#pragma once
#include <math.h>
#include "simd.h"

#define CHUNK 256
#define TILE_ROWS 8 /* positions of a sequence that are attended together */
#define MAX_SHARED 16 /* query heads of a KV head */
#define MAX_DIM 256

/* What is known of a row after some chunks: the largest score, the sum of weights, the mixed values. */
typedef struct {
    float most, total;
} state;

static inline f8 load8(const void *b, int bf16, int64_t at) {
    return bf16 ? f8_from_bf16((const uint16_t *)b + at) : _mm256_loadu_ps((const float *)b + at);
}

/* c[m][0, 8*N) += a[m][k] * b[k][0, 8*N) for k ascending, M rows: one fused multiply-add each. */
#define MICRO(NAME, M, N)                                                                                  \
    static inline __attribute__((always_inline)) void NAME(                                                \
        const float *a, int lda, const void *b, int ldb, int bf16, float *c, int ldc, int depth, int fresh) { \
        f8 s[M][N];                                                                                        \
        for (int m = 0; m < M; m++)                                                                        \
            for (int n = 0; n < N; n++)                                                                    \
                s[m][n] = fresh ? _mm256_setzero_ps() : _mm256_loadu_ps(c + m * ldc + 8 * n);              \
        for (int k = 0; k < depth; k++) {                                                                  \
            f8 v[N];                                                                                       \
            for (int n = 0; n < N; n++) v[n] = load8(b, bf16, (int64_t)k * ldb + 8 * n);                   \
            for (int m = 0; m < M; m++) {                                                                  \
                f8 x = _mm256_broadcast_ss(a + m * lda + k);                                               \
                for (int n = 0; n < N; n++) s[m][n] = _mm256_fmadd_ps(x, v[n], s[m][n]);                   \
            }                                                                                              \
        }                                                                                                  \
        for (int m = 0; m < M; m++)                                                                        \
            for (int n = 0; n < N; n++) _mm256_storeu_ps(c + m * ldc + 8 * n, s[m][n]);                    \
    }
MICRO(micro6, 6, 2)
MICRO(micro3, 3, 2)
MICRO(micro1, 1, 4)
MICRO(micro1x2, 1, 2)

/* c (rows, width) += a (rows, depth) b (depth, width); width is a multiple of 16. */
static inline __attribute__((always_inline)) void product(
    const float *a, int lda, const void *b, int ldb, int bf16, float *c, int ldc, int rows, int width, int depth, int fresh) {
    const int64_t size = bf16 ? 2 : 4;
    int m = 0;
    for (; m + 6 <= rows; m += 6)
        for (int n = 0; n < width; n += 16)
            micro6(a + m * lda, lda, (const char *)b + n * size, ldb, bf16, c + m * ldc + n, ldc, depth, fresh);
    for (; m + 3 <= rows; m += 3)
        for (int n = 0; n < width; n += 16)
            micro3(a + m * lda, lda, (const char *)b + n * size, ldb, bf16, c + m * ldc + n, ldc, depth, fresh);
    for (; m < rows; m++) {
        int n = 0;
        for (; n + 32 <= width; n += 32)
            micro1(a + m * lda, lda, (const char *)b + n * size, ldb, bf16, c + m * ldc + n, ldc, depth, fresh);
        for (; n < width; n += 16)
            micro1x2(a + m * lda, lda, (const char *)b + n * size, ldb, bf16, c + m * ldc + n, ldc, depth, fresh);
    }
}

/* Scores (base 2 logarithms) of `seen` keys to weights; those behind are zero. */
static state weigh(float *scores, int seen, int width) {
    int i = 0;
    for (int pad = seen; pad < width; pad++) scores[pad] = -INFINITY;
    f8 most = _mm256_set1_ps(-INFINITY);
    for (i = 0; i < width; i += 8) most = _mm256_max_ps(most, _mm256_loadu_ps(scores + i));
    const float largest = f8_max(most);
    const f8 by = _mm256_set1_ps(largest);
    f8 total = _mm256_setzero_ps();
    for (i = 0; i < width; i += 8) {
        f8 w = f8_exp2(_mm256_sub_ps(_mm256_loadu_ps(scores + i), by));
        total = _mm256_add_ps(total, w);
        _mm256_storeu_ps(scores + i, w);
    }
    return (state){largest, f8_sum(total)};
}

/* Merge a chunk's result into what the chunks before it gave. */
static void merge(state *to, float *values, const state *chunk, const float *chunk_values, int dim) {
    const float most = to->most > chunk->most ? to->most : chunk->most;
    const f8 differences = _mm256_setr_ps(to->most - most, chunk->most - most, 0, 0, 0, 0, 0, 0);
    float factors[8];
    _mm256_storeu_ps(factors, f8_exp2(differences));
    const f8 old = _mm256_set1_ps(factors[0]), new = _mm256_set1_ps(factors[1]);
    for (int d = 0; d < dim; d += 8) {
        f8 kept = _mm256_mul_ps(_mm256_loadu_ps(values + d), old);
        _mm256_storeu_ps(values + d, _mm256_fmadd_ps(_mm256_loadu_ps(chunk_values + d), new, kept));
    }
    to->most = most;
    to->total = to->total * factors[0] + chunk->total * factors[1];
}

typedef struct {
    const uint16_t *pool; /* of this layer and KV head: keys of block 0 */
    int64_t block_stride; /* elements from block to block */
    int64_t values;       /* elements from a block's keys to its values */
    const int32_t *table; /* block ids of the sequence */
    int block_tokens, dim;
} paged;

typedef struct {
    _Alignas(64) float scores[TILE_ROWS * MAX_SHARED * CHUNK];
    _Alignas(64) float block[MAX_DIM * 128]; /* a block's keys or values in fp32 */
} attention_room;

static void widen(const uint16_t *from, float *to, int count) {
    for (int i = 0; i < count; i += 8) _mm256_store_ps(to + i, f8_from_bf16(from + i));
}

/* One chunk for rows of queries (rows, dim), already scaled: row i sees `seen[i]` keys of the chunk.
 * Writes states (rows,) and values (rows, dim), not divided by the total yet. */
static void attend_chunk(
    const paged *kv, int chunk, const float *queries, int rows, const int *seen, int most_seen,
    attention_room *room, state *states, float *values) {
    const int tokens = kv->block_tokens, dim = kv->dim, first = chunk * (CHUNK / tokens);
    const int blocks = (most_seen + tokens - 1) / tokens, width = blocks * tokens, wide = rows > 6;
    for (int b = 0; b < blocks; b++) {
        const uint16_t *keys = kv->pool + kv->table[first + b] * kv->block_stride;
        float *to = room->scores + b * tokens;
        if (wide) {
            widen(keys, room->block, dim * tokens);
            product(queries, dim, room->block, tokens, 0, to, CHUNK, rows, tokens, dim, 1);
        } else {
            product(queries, dim, keys, tokens, 1, to, CHUNK, rows, tokens, dim, 1);
        }
    }
    for (int i = 0; i < rows; i++) states[i] = weigh(room->scores + i * CHUNK, seen[i], width);
    for (int b = 0; b < blocks; b++) {
        const uint16_t *from = kv->pool + kv->table[first + b] * kv->block_stride + kv->values;
        const int left = most_seen - b * tokens, depth = left < tokens ? left : tokens;
        const float *weights = room->scores + b * tokens;
        if (wide) {
            widen(from, room->block, dim * tokens);
            product(weights, CHUNK, room->block, dim, 0, values, dim, rows, dim, depth, b == 0);
        } else {
            product(weights, CHUNK, from, dim, 1, values, dim, rows, dim, depth, b == 0);
        }
    }
}
