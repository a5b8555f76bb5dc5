/* 16 lanes in two registers: AVX2 with FMA and F16C, and with AVX_VNNI the 256-bit dot product. */
#include <immintrin.h>

typedef struct { __m256 a, b; } vf;
typedef struct { __m256i a, b; } vi;

/* Tiles that fit the registers. */
enum { TILE_TOKENS = 3, WIDE_TOKENS = 2, TILE_BLOCKS = 1, FLOAT_TOKENS = 2, FLOAT_ROWS = 2 };
enum { QUERIES = 2 };
enum { INT8_OFFSET = AVX_VNNI ? 128 : 0 }; /* without VNNI bytes are made signed: pairs fit int16 */

#define EACH_F(name, op) \
    INLINE vf name(vf x, vf y) { return (vf){op(x.a, y.a), op(x.b, y.b)}; }
#define EACH_I(name, op) \
    INLINE vi name(vi x, vi y) { return (vi){op(x.a, y.a), op(x.b, y.b)}; }
EACH_F(vf_add, _mm256_add_ps)
EACH_F(vf_sub, _mm256_sub_ps)
EACH_F(vf_mul, _mm256_mul_ps)
EACH_F(vf_div, _mm256_div_ps)
EACH_F(vf_max, _mm256_max_ps)
EACH_F(vf_min, _mm256_min_ps)
EACH_I(vi_add, _mm256_add_epi32)
EACH_I(vi_and, _mm256_and_si256)
EACH_I(vi_max, _mm256_max_epi32)

INLINE vf vf_load(const float *p) { return (vf){_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
INLINE void vf_store(float *p, vf x) {
    _mm256_storeu_ps(p, x.a);
    _mm256_storeu_ps(p + 8, x.b);
}
INLINE vf vf_set(float x) { return (vf){_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
INLINE vf vf_fma(vf x, vf y, vf z) {
    return (vf){_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)};
}
INLINE vi vf_bits(vf x) { return (vi){_mm256_castps_si256(x.a), _mm256_castps_si256(x.b)}; }
INLINE vf vf_from_bits(vi x) { return (vf){_mm256_castsi256_ps(x.a), _mm256_castsi256_ps(x.b)}; }
INLINE vi vf_round(vf x) { return (vi){_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b)}; }
/* The first `count` lanes of x, the others of y. */
INLINE vf vf_first(int count, vf x, vf y) {
    __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    __m256i low = _mm256_cmpgt_epi32(_mm256_set1_epi32(count), lanes);
    __m256i high = _mm256_cmpgt_epi32(_mm256_set1_epi32(count - 8), lanes);
    return (vf){_mm256_blendv_ps(y.a, x.a, _mm256_castsi256_ps(low)),
                _mm256_blendv_ps(y.b, x.b, _mm256_castsi256_ps(high))};
}
/* Lane i plus lane i + 8, then + 4, + 2, + 1: the order of every instruction set here. */
INLINE float vf_reduce_add(vf x) {
    __m256 eight = _mm256_add_ps(x.a, x.b);
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    four = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
}
INLINE __m256 half_bf16(const uint16_t *p) {
    __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}
INLINE vf vf_load_bf16(const uint16_t *p) { return (vf){half_bf16(p), half_bf16(p + 8)}; }
INLINE __m256 half_int8(const int8_t *p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p)));
}
INLINE vf vf_load_int8(const int8_t *p) { return (vf){half_int8(p), half_int8(p + 8)}; }
INLINE vf vf_load_fp16(const uint8_t *p) {
    return (vf){_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)),
                _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(p + 16)))};
}

INLINE vi vi_set(int32_t x) { return (vi){_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
INLINE vi vi_load(const uint8_t *p) {
    return (vi){_mm256_loadu_si256((const __m256i *)p),
                _mm256_loadu_si256((const __m256i *)(p + 32))};
}
INLINE vi vi_shl(vi x, int n) { return (vi){_mm256_slli_epi32(x.a, n), _mm256_slli_epi32(x.b, n)}; }
INLINE vf vi_float(vi x) { return (vf){_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
INLINE vi vi_low_nibbles(vi x) {
    __m256i mask = _mm256_set1_epi8(0x0F);
    return (vi){_mm256_and_si256(x.a, mask), _mm256_and_si256(x.b, mask)};
}
INLINE vi vi_high_nibbles(vi x) {
    return vi_low_nibbles((vi){_mm256_srli_epi32(x.a, 4), _mm256_srli_epi32(x.b, 4)});
}
INLINE vi vi_packed_bytes(vi x) {
    if (INT8_OFFSET) return x;
    __m256i flip = _mm256_set1_epi8((char)0x80);
    return (vi){_mm256_xor_si256(x.a, flip), _mm256_xor_si256(x.b, flip)};
}
INLINE void vi_store_bytes(int8_t *p, vi x) {
    __m256i pairs = _mm256_permute4x64_epi64(_mm256_packs_epi32(x.a, x.b), 0xD8);
    __m128i upper = _mm256_extracti128_si256(pairs, 1);
    __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(pairs), upper);
    _mm_storeu_si128((__m128i *)p, bytes);
}
INLINE __m128i quarter_max(vi x) {
    __m256i both = _mm256_max_epi32(x.a, x.b);
    return _mm_max_epi32(_mm256_castsi256_si128(both), _mm256_extracti128_si256(both, 1));
}
INLINE int32_t vi_reduce_max(vi x) {
    __m128i four = quarter_max(x);
    four = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0x4E));
    return _mm_cvtsi128_si32(_mm_max_epi32(four, _mm_shuffle_epi32(four, 0xB1)));
}
INLINE int32_t vi_reduce_add(vi x) {
    __m256i both = _mm256_add_epi32(x.a, x.b);
    __m128i four = _mm_add_epi32(_mm256_castsi256_si128(both), _mm256_extracti128_si256(both, 1));
    four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4E));
    return _mm_cvtsi128_si32(_mm_add_epi32(four, _mm_shuffle_epi32(four, 0xB1)));
}

INLINE __m256i quad_at(const int8_t *x) {
    int32_t quad;
    __builtin_memcpy(&quad, x, 4);
    return _mm256_set1_epi32(quad);
}
#if AVX_VNNI
/* Four unsigned bytes of a lane of w times four signed ones at x, added to the lane of s. */
INLINE vi vi_dot(vi s, vi w, const int8_t *x) {
    __m256i quad = quad_at(x);
    return (vi){_mm256_dpbusd_avx_epi32(s.a, w.a, quad), _mm256_dpbusd_avx_epi32(s.b, w.b, quad)};
}
#define vi_dot8 vi_dot
#define vi_whole(s) (s)
enum { PAIRS = 0 };
#else
INLINE __m256i widen(__m256i pairs) { return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)); }
/* Nibbles: lanes of 16 bits, where a group's 16 products of up to 15 * 127 have room; vi_whole
 * then makes lanes of 32. */
enum { PAIRS = 1 };
INLINE vi vi_dot(vi s, vi w, const int8_t *x) {
    __m256i quad = quad_at(x);
    return (vi){_mm256_add_epi16(s.a, _mm256_maddubs_epi16(w.a, quad)),
                _mm256_add_epi16(s.b, _mm256_maddubs_epi16(w.b, quad))};
}
INLINE vi vi_whole(vi s) { return (vi){widen(s.a), widen(s.b)}; }
/* Signed bytes in -127 .. 127: magnitude times the other factor with its sign. x never is -128
 * where w is negative, because quantised activations stay in -127 .. 127. */
INLINE __m256i dot8_half(__m256i s, __m256i w, __m256i quad) {
    __m256i pairs = _mm256_maddubs_epi16(_mm256_sign_epi8(w, w), _mm256_sign_epi8(quad, w));
    return _mm256_add_epi32(s, widen(pairs));
}
INLINE vi vi_dot8(vi s, vi w, const int8_t *x) {
    __m256i quad = quad_at(x);
    return (vi){dot8_half(s.a, w.a, quad), dot8_half(s.b, w.b, quad)};
}
#endif
#define ONCE(words) ((void)0)
