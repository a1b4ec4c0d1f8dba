/* Weights as their file has them, in 4 or 8 bits with a scale for 32 inputs, times rows in 8 bits.
 *
 *     tile of 4 bits   LANES channels x 32 inputs: 16*LANES bytes of nibbles, LANES scales, LANES minima
 *     tile of 8 bits                               32*LANES bytes,            LANES scales
 *     matrix           for each LANES channels the tiles of all inputs, one after the other
 *
 * Four neighbouring inputs of a channel lie side by side, so that one lane of a vector is one channel.
 * Rows are quantised by groups of 32 as well (llama.cpp's Q8_1 scheme): a = scale * q, |q| <= 127. The
 * sum of a group is an integer, exact in any order; groups are added in ascending order, each by one
 * fused multiply-add. A row's result has the same bits whatever other rows stand beside it.
 */
#pragma once
#include <math.h>
#include "simd.h"

#define GROUP 32
#define NOTHING 1e-36f /* a group whose largest number is no larger is zeros */
#ifndef AHEAD
#define AHEAD 4096 /* bytes: how far ahead one row asks for weights */
#endif

typedef struct {
    int32_t outputs, inputs, bits; /* outputs padded to whole LANES when packed */
    const uint8_t *tiles;
    const float *bias; /* (outputs,) or NULL */
} matrix;

/* Rows in 8 bits, group by group: codes (groups, stride, 32), scales and sums (groups, stride). */
typedef struct {
    int8_t *codes;
    float *scales, *sums; /* sums: scale * the sum of the codes, for the minima */
    int32_t stride;
} rows8;

static inline int64_t tile_bytes(int bits) { return (bits == 4 ? 16 + 4 : 32 + 2) * (int64_t)LANES; }

static inline const uint8_t *channel_tiles(const matrix *w, int channel) {
    return w->tiles + channel / LANES * (int64_t)(w->inputs / GROUP) * tile_bytes(w->bits);
}

/* One group of a row: 32 floats to codes. */
static inline void quantise(const float *x, const rows8 *to, int group, int row) {
    const f8 sign = _mm256_set1_ps(-0.0f);
    f8 v[4], most = _mm256_setzero_ps();
    for (int i = 0; i < 4; i++) {
        v[i] = _mm256_loadu_ps(x + 8 * i);
        most = _mm256_max_ps(most, _mm256_andnot_ps(sign, v[i]));
    }
    const float largest = f8_max(most);
    const int some = !(largest <= NOTHING); /* 127 / 1e-38 would be infinite */
    const float scale = some ? largest / 127.0f : 0.0f, by = some ? 127.0f / largest : 0.0f;
    const int64_t at = (int64_t)group * to->stride + row;
    int8_t *codes = to->codes + at * GROUP;
    __m256i n[4], sum = _mm256_setzero_si256();
    for (int i = 0; i < 4; i++) {
        n[i] = _mm256_cvtps_epi32(_mm256_mul_ps(v[i], _mm256_set1_ps(by)));
        sum = _mm256_add_epi32(sum, n[i]);
    }
    __m256i low = _mm256_packs_epi32(n[0], n[1]), high = _mm256_packs_epi32(n[2], n[3]);
    __m256i all = _mm256_permutevar8x32_epi32(
        _mm256_packs_epi16(low, high), _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    _mm256_storeu_si256((__m256i *)codes, all);
    __m128i s = _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1));
    to->scales[at] = scale;
    to->sums[at] = scale * (float)_mm_cvtsi128_si32(s);
}

static inline void unpack4(const uint8_t *tile, vi v[8]) {
    for (int i = 0; i < 4; i++) {
        vi both = vi_load(tile + i * 4 * LANES);
        v[2 * i] = vi_and(both, vi_set8(15));
        v[2 * i + 1] = vi_high_nibbles(both);
    }
}

/* 32 products a lane: |sum| <= 8 * 2 * 15 * 127 = 30480 stays inside 16 bits. */
static inline vi dot4(const vi v[8], const int32_t *a) {
    vi x = vi_add16(vi_maddubs(v[0], vi_set32(a[0])), vi_maddubs(v[1], vi_set32(a[1])));
    vi y = vi_add16(vi_maddubs(v[2], vi_set32(a[2])), vi_maddubs(v[3], vi_set32(a[3])));
    x = vi_add16(x, vi_maddubs(v[4], vi_set32(a[4])));
    y = vi_add16(y, vi_maddubs(v[5], vi_set32(a[5])));
    x = vi_add16(x, vi_maddubs(v[6], vi_set32(a[6])));
    y = vi_add16(y, vi_maddubs(v[7], vi_set32(a[7])));
    return vi_madd(vi_add16(x, y), vi_set16(1));
}

/* 8 bits by 8: the weight's sign moves over to the row, as the instruction wants one side unsigned. */
static inline vi dot8(const uint8_t *tile, const int32_t *a) {
    vi sum = vi_set32(0);
    for (int j = 0; j < 8; j++) {
        vi w = vi_load(tile + j * 4 * LANES);
        vi pair = vi_maddubs(vi_abs8(w), vi_signed_as(vi_set32(a[j]), w));
        sum = vi_add32(sum, vi_madd(pair, vi_set16(1)));
    }
    return sum;
}

static inline vf with_group(vf sum, vi dot, vf scale, vf least, float a_scale, float a_sum) {
    sum = vf_fma(vf_int(dot), vf_mul(scale, vf_set(a_scale)), sum);
    return vf_fma(least, vf_set(a_sum), sum);
}

/* out[row * step + lane], LANES channels from `tile` on, rows [first, first + count) of `x`. */
static void multiply(
    const uint8_t *tile, int bits, int groups, const rows8 *x, int first, int count, float *out, int step) {
    const int64_t bytes = tile_bytes(bits);
    if (count == 1) { /* the sum stays in a register */
        vf sum = vf_zero();
        for (int g = 0; g < groups; g++, tile += bytes) {
            const int64_t at = (int64_t)g * x->stride + first;
            const int32_t *a = (const int32_t *)(x->codes + at * GROUP);
            for (int64_t b = 0; b < bytes; b += 64) _mm_prefetch((const char *)tile + AHEAD + b, _MM_HINT_T0);
            if (bits == 4) {
                vi v[8];
                unpack4(tile, v);
                const uint8_t *s = tile + 16 * LANES;
                sum = with_group(sum, dot4(v, a), vf_half(s), vf_half(s + 2 * LANES), x->scales[at], x->sums[at]);
            } else {
                vf scale = vf_mul(vf_half(tile + 32 * LANES), vf_set(x->scales[at]));
                sum = vf_fma(vf_int(dot8(tile, a)), scale, sum);
            }
        }
        vf_store(out, sum);
        return;
    }
    for (int g = 0; g < groups; g++, tile += bytes) {
        const int64_t at = (int64_t)g * x->stride + first;
        const int8_t *codes = x->codes + at * GROUP;
        const float *scales = x->scales + at, *sums = x->sums + at;
        float *to = out;
        if (bits == 4) {
            vi v[8];
            unpack4(tile, v);
            const vf scale = vf_half(tile + 16 * LANES), least = vf_half(tile + 18 * LANES);
            for (int m = 0; m < count; m++, to += step) {
                vi dot = dot4(v, (const int32_t *)(codes + m * GROUP));
                vf sum = g ? vf_load(to) : vf_zero();
                vf_store(to, with_group(sum, dot, scale, least, scales[m], sums[m]));
            }
        } else {
            const vf scale = vf_half(tile + 32 * LANES);
            for (int m = 0; m < count; m++, to += step) {
                vi dot = dot8(tile, (const int32_t *)(codes + m * GROUP));
                vf sum = g ? vf_load(to) : vf_zero();
                vf_store(to, vf_fma(vf_int(dot), vf_mul(scale, vf_set(scales[m])), sum));
            }
        }
    }
}

/* Channels [channel, channel + width) of rows [first, first + count): out[row * width + channel]. */
static void linear(const matrix *w, int channel, int width, const rows8 *x, int first, int count, float *out) {
    const int groups = w->inputs / GROUP;
    for (int c = 0; c < width; c += LANES)
        multiply(channel_tiles(w, channel + c), w->bits, groups, x, first, count, out + c, width);
    if (w->bias)
        for (int m = 0; m < count; m++)
            for (int c = 0; c < width; c++) out[(int64_t)m * width + c] += w->bias[channel + c];
}

/* GGUF's rows of Q4_1 blocks (scale, minimum, 16 bytes) or Q8_0 blocks (scale, 32 bytes) into tiles. */
static void pack(const uint8_t *rows, int outputs, int inputs, int bits, uint8_t *tiles) {
    const int groups = inputs / GROUP, block = bits == 4 ? 20 : 34;
    for (int base = 0; base < outputs; base += LANES)
        for (int g = 0; g < groups; g++, tiles += tile_bytes(bits))
            for (int lane = 0; lane < LANES; lane++) {
                const int row = base + lane;
                if (row >= outputs) continue; /* the tiles begin as zeros */
                const uint8_t *from = rows + ((int64_t)row * groups + g) * block;
                uint8_t *halves = tiles + (bits == 4 ? 16 : 32) * LANES;
                memcpy(halves + 2 * lane, from, 2);
                if (bits == 8) {
                    for (int j = 0; j < 8; j++) memcpy(tiles + j * 4 * LANES + 4 * lane, from + 2 + 4 * j, 4);
                    continue;
                }
                memcpy(halves + 2 * LANES + 2 * lane, from + 2, 2);
                const uint8_t *q = from + 4; /* input i < 16: low nibble of byte i; the others: high */
                for (int i = 0; i < GROUP; i++) {
                    const int code = i < 16 ? q[i] & 15 : q[i - 16] >> 4, j = i / 4;
                    tiles[j / 2 * 4 * LANES + 4 * lane + i % 4] |= (uint8_t)(j % 2 ? code << 4 : code);
                }
            }
}

/* One row of a matrix of 8 bits as floats: the embedding of a token. */
static void dequantise_row(const matrix *w, int row, float *out) {
    const uint8_t *tile = channel_tiles(w, row);
    const int lane = row % LANES;
    for (int g = 0; g < w->inputs / GROUP; g++, tile += tile_bytes(w->bits)) {
        uint16_t half;
        memcpy(&half, tile + (w->bits == 4 ? 16 : 32) * LANES + 2 * lane, 2);
        const float scale = _cvtsh_ss(half);
        if (w->bits == 8) {
            for (int i = 0; i < GROUP; i++)
                out[g * GROUP + i] = scale * (float)(int8_t)tile[i / 4 * 4 * LANES + 4 * lane + i % 4];
            continue;
        }
        memcpy(&half, tile + 18 * LANES + 2 * lane, 2);
        const float least = _cvtsh_ss(half);
        for (int i = 0; i < GROUP; i++) {
            const uint8_t both = tile[i / 8 * 4 * LANES + 4 * lane + i % 4];
            out[g * GROUP + i] = fmaf(scale, (float)(i / 4 % 2 ? both >> 4 : both & 15), least);
        }
    }
}
