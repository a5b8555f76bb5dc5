/* 16 lanes in one register: AVX-512 with VNNI. Vectors hold fp32 (`vf`) or int32 (`vi`). */
#include <immintrin.h>

typedef __m512 vf;
typedef __m512i vi;

/* Tiles that fit the registers. */
enum { TILE_TOKENS = 6, WIDE_TOKENS = 4, TILE_BLOCKS = 2, FLOAT_TOKENS = 5, FLOAT_ROWS = 4 };
enum { QUERIES = 4 };
enum { INT8_OFFSET = 128 }; /* packed bytes count as unsigned */

INLINE vf vf_load(const float *p) { return _mm512_loadu_ps(p); }
INLINE void vf_store(float *p, vf a) { _mm512_storeu_ps(p, a); }
INLINE vf vf_set(float a) { return _mm512_set1_ps(a); }
INLINE vf vf_add(vf a, vf b) { return _mm512_add_ps(a, b); }
INLINE vf vf_sub(vf a, vf b) { return _mm512_sub_ps(a, b); }
INLINE vf vf_mul(vf a, vf b) { return _mm512_mul_ps(a, b); }
INLINE vf vf_div(vf a, vf b) { return _mm512_div_ps(a, b); }
INLINE vf vf_max(vf a, vf b) { return _mm512_max_ps(a, b); }
INLINE vf vf_min(vf a, vf b) { return _mm512_min_ps(a, b); }
INLINE vf vf_fma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }
INLINE vi vf_bits(vf a) { return _mm512_castps_si512(a); }
INLINE vf vf_from_bits(vi a) { return _mm512_castsi512_ps(a); }
INLINE vi vf_round(vf a) { return _mm512_cvtps_epi32(a); }
/* The first `count` lanes of a, the others of b. */
INLINE vf vf_first(int count, vf a, vf b) {
    return _mm512_mask_mov_ps(b, (__mmask16)((1u << count) - 1), a);
}
/* Lane i plus lane i + 8, then + 4, + 2, + 1: the order of every instruction set here. */
INLINE float vf_reduce_add(vf a) {
    __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    four = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
}
INLINE vf vf_load_bf16(const uint16_t *p) {
    __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}
INLINE vf vf_load_int8(const int8_t *p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)));
}
INLINE vf vf_load_fp16(const uint8_t *p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
}

INLINE vi vi_set(int32_t a) { return _mm512_set1_epi32(a); }
INLINE vi vi_load(const uint8_t *p) { return _mm512_loadu_si512(p); }
INLINE vi vi_add(vi a, vi b) { return _mm512_add_epi32(a, b); }
INLINE vi vi_and(vi a, vi b) { return _mm512_and_si512(a, b); }
INLINE vi vi_max(vi a, vi b) { return _mm512_max_epi32(a, b); }
INLINE vi vi_shl(vi a, int n) { return _mm512_slli_epi32(a, (unsigned)n); }
INLINE vf vi_float(vi a) { return _mm512_cvtepi32_ps(a); }
INLINE vi vi_low_nibbles(vi a) { return _mm512_and_si512(a, _mm512_set1_epi8(0x0F)); }
INLINE vi vi_high_nibbles(vi a) { return vi_low_nibbles(_mm512_srli_epi32(a, 4)); }
INLINE vi vi_packed_bytes(vi a) { return a; }
INLINE void vi_store_bytes(int8_t *p, vi a) {
    _mm_storeu_si128((__m128i *)p, _mm512_cvtepi32_epi8(a));
}
INLINE int32_t vi_reduce_max(vi a) { return _mm512_reduce_max_epi32(a); }
INLINE int32_t vi_reduce_add(vi a) { return _mm512_reduce_add_epi32(a); }

/* Four unsigned bytes of a lane of w times four signed ones at x, added to the lane of a. */
INLINE vi vi_dot(vi a, vi w, const int8_t *x) {
    int32_t quad;
    __builtin_memcpy(&quad, x, 4);
    return _mm512_dpbusd_epi32(a, w, _mm512_set1_epi32(quad));
}
#define vi_dot8 vi_dot
#define vi_whole(a) (a)
enum { PAIRS = 0 };
/* Keeps a compiler from loading it again for each use: loads are what decoding runs out of. */
#define ONCE(words) __asm__("" : "+v"(words))
