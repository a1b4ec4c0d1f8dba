/* Vectors of 8 (AVX2) or 16 (AVX-512) lanes under one set of names.
 *
 * A lane is an output channel, and what happens in a lane does not depend on how many there are: integer
 * sums are exact, and every float operation is one per lane in a fixed order. So both widths give the
 * same bits. KVGATE_EMULATE_512 builds the wide layout out of two narrow halves, which is how a machine
 * without AVX-512 tests it.
 */
#pragma once
#include <immintrin.h>
#include <stdint.h>
#include <string.h>

/* -- 256 bits: what sums over lanes always uses these, so that its order is the same everywhere ------ */

typedef __m256 f8;
typedef __m256i i8x;

static inline f8 f8_exp2(f8 x) { /* 2**x for x <= 126; below -126 it is 0; relative error < 2e-7 */
    f8 low = _mm256_cmp_ps(x, _mm256_set1_ps(-126.0f), _CMP_LT_OQ);
    x = _mm256_max_ps(x, _mm256_set1_ps(-126.0f));
    f8 n = _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    f8 f = _mm256_sub_ps(x, n);
    f8 p = _mm256_set1_ps(1.5403530e-4f); /* Taylor coefficients of 2**f, ln2^k / k! */
    p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(1.3333558e-3f));
    p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(9.6181291e-3f));
    p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(5.5504109e-2f));
    p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(2.4022651e-1f));
    p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(6.9314718e-1f));
    p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(1.0f));
    __m256i e = _mm256_slli_epi32(_mm256_cvtps_epi32(n), 23);
    p = _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), e));
    return _mm256_andnot_ps(low, p);
}

static inline float f8_sum(f8 x) {
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
}

static inline float f8_max(f8 x) {
    __m128 half = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    half = _mm_max_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_max_ss(half, _mm_movehdup_ps(half)));
}

static inline f8 f8_from_bf16(const uint16_t *p) {
    return _mm256_castsi256_ps(
        _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p)), 16));
}

static inline uint16_t to_bf16(float x) { /* round to nearest even; x is finite */
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

/* -- LANES of them: channels of a matrix ------------------------------------------------------------ */

#if defined(__AVX512BW__) && defined(__AVX512VL__) && !defined(KVGATE_EMULATE_512)
#define LANES 16
typedef __m512 vf;
typedef __m512i vi;
static inline vi vi_load(const void *p) { return _mm512_loadu_si512(p); }
static inline vi vi_set32(int32_t x) { return _mm512_set1_epi32(x); }
static inline vi vi_set16(int16_t x) { return _mm512_set1_epi16(x); }
static inline vi vi_set8(int8_t x) { return _mm512_set1_epi8(x); }
static inline vi vi_and(vi a, vi b) { return _mm512_and_si512(a, b); }
static inline vi vi_high_nibbles(vi a) { return _mm512_and_si512(_mm512_srli_epi16(a, 4), vi_set8(15)); }
static inline vi vi_add16(vi a, vi b) { return _mm512_add_epi16(a, b); }
static inline vi vi_add32(vi a, vi b) { return _mm512_add_epi32(a, b); }
static inline vi vi_maddubs(vi u, vi s) { return _mm512_maddubs_epi16(u, s); }
static inline vi vi_madd(vi a, vi b) { return _mm512_madd_epi16(a, b); }
static inline vi vi_abs8(vi a) { return _mm512_abs_epi8(a); }
static inline vi vi_signed_as(vi a, vi w) { /* -a where w < 0; where w is 0 its factor is, too */
    return _mm512_mask_sub_epi8(a, _mm512_movepi8_mask(w), _mm512_setzero_si512(), a);
}
static inline vf vf_zero(void) { return _mm512_setzero_ps(); }
static inline vf vf_set(float x) { return _mm512_set1_ps(x); }
static inline vf vf_load(const float *p) { return _mm512_loadu_ps(p); }
static inline void vf_store(float *p, vf x) { _mm512_storeu_ps(p, x); }
static inline vf vf_half(const void *p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p)); }
static inline vf vf_int(vi a) { return _mm512_cvtepi32_ps(a); }
static inline vf vf_mul(vf a, vf b) { return _mm512_mul_ps(a, b); }
static inline vf vf_fma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }
#elif defined(KVGATE_EMULATE_512)
#define LANES 16
typedef struct { __m256 a, b; } vf;
typedef struct { __m256i a, b; } vi;
#define TWO(type, one) (type) { one(a), one(b) }
static inline vi vi_load(const void *p) {
    return (vi){_mm256_loadu_si256((const __m256i *)p), _mm256_loadu_si256((const __m256i *)p + 1)};
}
static inline vi vi_set32(int32_t x) { return (vi){_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
static inline vi vi_set16(int16_t x) { return (vi){_mm256_set1_epi16(x), _mm256_set1_epi16(x)}; }
static inline vi vi_set8(int8_t x) { return (vi){_mm256_set1_epi8(x), _mm256_set1_epi8(x)}; }
static inline vi vi_and(vi x, vi y) { return (vi){_mm256_and_si256(x.a, y.a), _mm256_and_si256(x.b, y.b)}; }
static inline vi vi_high_nibbles(vi x) {
    vi s = {_mm256_srli_epi16(x.a, 4), _mm256_srli_epi16(x.b, 4)};
    return vi_and(s, vi_set8(15));
}
static inline vi vi_add16(vi x, vi y) { return (vi){_mm256_add_epi16(x.a, y.a), _mm256_add_epi16(x.b, y.b)}; }
static inline vi vi_add32(vi x, vi y) { return (vi){_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)}; }
static inline vi vi_maddubs(vi x, vi y) { return (vi){_mm256_maddubs_epi16(x.a, y.a), _mm256_maddubs_epi16(x.b, y.b)}; }
static inline vi vi_madd(vi x, vi y) { return (vi){_mm256_madd_epi16(x.a, y.a), _mm256_madd_epi16(x.b, y.b)}; }
static inline vi vi_abs8(vi x) { return (vi){_mm256_abs_epi8(x.a), _mm256_abs_epi8(x.b)}; }
static inline vi vi_signed_as(vi x, vi w) { return (vi){_mm256_sign_epi8(x.a, w.a), _mm256_sign_epi8(x.b, w.b)}; }
static inline vf vf_zero(void) { return (vf){_mm256_setzero_ps(), _mm256_setzero_ps()}; }
static inline vf vf_set(float x) { return (vf){_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
static inline vf vf_load(const float *p) { return (vf){_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
static inline void vf_store(float *p, vf x) { _mm256_storeu_ps(p, x.a); _mm256_storeu_ps(p + 8, x.b); }
static inline vf vf_half(const void *p) {
    const __m128i *h = (const __m128i *)p;
    return (vf){_mm256_cvtph_ps(_mm_loadu_si128(h)), _mm256_cvtph_ps(_mm_loadu_si128(h + 1))};
}
static inline vf vf_int(vi x) { return (vf){_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
static inline vf vf_mul(vf x, vf y) { return (vf){_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
static inline vf vf_fma(vf x, vf y, vf z) {
    return (vf){_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)};
}
#else
#define LANES 8
typedef __m256 vf;
typedef __m256i vi;
static inline vi vi_load(const void *p) { return _mm256_loadu_si256((const __m256i *)p); }
static inline vi vi_set32(int32_t x) { return _mm256_set1_epi32(x); }
static inline vi vi_set16(int16_t x) { return _mm256_set1_epi16(x); }
static inline vi vi_set8(int8_t x) { return _mm256_set1_epi8(x); }
static inline vi vi_and(vi a, vi b) { return _mm256_and_si256(a, b); }
static inline vi vi_high_nibbles(vi a) { return _mm256_and_si256(_mm256_srli_epi16(a, 4), vi_set8(15)); }
static inline vi vi_add16(vi a, vi b) { return _mm256_add_epi16(a, b); }
static inline vi vi_add32(vi a, vi b) { return _mm256_add_epi32(a, b); }
static inline vi vi_maddubs(vi u, vi s) { return _mm256_maddubs_epi16(u, s); }
static inline vi vi_madd(vi a, vi b) { return _mm256_madd_epi16(a, b); }
static inline vi vi_abs8(vi a) { return _mm256_abs_epi8(a); }
static inline vi vi_signed_as(vi a, vi w) { return _mm256_sign_epi8(a, w); }
static inline vf vf_zero(void) { return _mm256_setzero_ps(); }
static inline vf vf_set(float x) { return _mm256_set1_ps(x); }
static inline vf vf_load(const float *p) { return _mm256_loadu_ps(p); }
static inline void vf_store(float *p, vf x) { _mm256_storeu_ps(p, x); }
static inline vf vf_half(const void *p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)); }
static inline vf vf_int(vi a) { return _mm256_cvtepi32_ps(a); }
static inline vf vf_mul(vf a, vf b) { return _mm256_mul_ps(a, b); }
static inline vf vf_fma(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }
#endif
