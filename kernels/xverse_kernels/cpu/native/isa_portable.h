/* 16 lanes in plain C, for any processor; compilers turn most loops into what it has. */
#include <math.h>

typedef struct { float v[16]; } vf;
typedef struct { int32_t v[16]; } vi;

/* Tiles that fit the registers. */
enum { TILE_TOKENS = 2, WIDE_TOKENS = 1, TILE_BLOCKS = 1, FLOAT_TOKENS = 1, FLOAT_ROWS = 2 };
enum { QUERIES = 1 };
enum { INT8_OFFSET = 0 };

#define LANES for (int i = 0; i < 16; i++)
#define EACH(type, name, args, value) \
    INLINE type name args { \
        type out; \
        LANES out.v[i] = value; \
        return out; \
    }
EACH(vf, vf_load, (const float *p), p[i])
EACH(vf, vf_set, (float a), a)
EACH(vf, vf_load_int8, (const int8_t *p), (float)p[i])
EACH(vf, vf_add, (vf a, vf b), a.v[i] + b.v[i])
EACH(vf, vf_sub, (vf a, vf b), a.v[i] - b.v[i])
EACH(vf, vf_mul, (vf a, vf b), a.v[i] * b.v[i])
EACH(vf, vf_div, (vf a, vf b), a.v[i] / b.v[i])
EACH(vf, vf_max, (vf a, vf b), a.v[i] > b.v[i] ? a.v[i] : b.v[i])
EACH(vf, vf_min, (vf a, vf b), a.v[i] < b.v[i] ? a.v[i] : b.v[i])
/* Two roundings: a fused one would be a call of the library where the processor has none. */
EACH(vf, vf_fma, (vf a, vf b, vf c), a.v[i] * b.v[i] + c.v[i])
EACH(vf, vf_first, (int count, vf a, vf b), i < count ? a.v[i] : b.v[i])
EACH(vi, vi_set, (int32_t a), a)
EACH(vi, vi_add, (vi a, vi b), a.v[i] + b.v[i])
EACH(vi, vi_and, (vi a, vi b), a.v[i] & b.v[i])
EACH(vi, vi_max, (vi a, vi b), a.v[i] > b.v[i] ? a.v[i] : b.v[i])
EACH(vi, vi_shl, (vi a, int n), (int32_t)((uint32_t)a.v[i] << n))
EACH(vf, vi_float, (vi a), (float)a.v[i])
EACH(vi, vi_low_nibbles, (vi a), a.v[i] & 0x0F0F0F0F)
EACH(vi, vi_high_nibbles, (vi a), (int32_t)((uint32_t)a.v[i] >> 4 & 0x0F0F0F0F))
EACH(vi, vi_packed_bytes, (vi a), (int32_t)((uint32_t)a.v[i] ^ 0x80808080u))
EACH(vi, vf_round, (vf a), a.v[i] != a.v[i] ? INT32_MIN : (int32_t)rintf(a.v[i]))

INLINE void vf_store(float *p, vf a) { memcpy(p, a.v, sizeof a.v); }
INLINE vi vf_bits(vf a) { vi out; memcpy(&out, &a, sizeof out); return out; }
INLINE vf vf_from_bits(vi a) { vf out; memcpy(&out, &a, sizeof out); return out; }
INLINE vi vi_load(const uint8_t *p) { vi out; memcpy(&out, p, sizeof out); return out; }
INLINE vf vf_load_bf16(const uint16_t *p) {
    vi out;
    LANES out.v[i] = (int32_t)((uint32_t)p[i] << 16);
    return vf_from_bits(out);
}
/* fp16 has no type in C11: exponent and mantissa are moved, and 2^112 makes up for the bias; what is
 * not finite is given the largest exponent again. */
INLINE vf vf_load_fp16(const uint8_t *p) {
    vf out;
    LANES {
        uint16_t half;
        memcpy(&half, p + 2 * i, 2);
        uint32_t bits = (uint32_t)(half & 0x7FFF) << 13, sign = (uint32_t)(half & 0x8000) << 16;
        float magnitude;
        memcpy(&magnitude, &bits, 4);
        magnitude *= 0x1p112f;
        memcpy(&bits, &magnitude, 4);
        bits |= sign | ((half & 0x7C00) == 0x7C00 ? 0x7F800000u : 0);
        memcpy(&out.v[i], &bits, 4);
    }
    return out;
}
/* Lane i plus lane i + 8, then + 4, + 2, + 1: the order of every instruction set here. */
INLINE float vf_reduce_add(vf a) {
    for (int half = 8; half; half /= 2)
        for (int i = 0; i < half; i++) a.v[i] += a.v[i + half];
    return a.v[0];
}
INLINE void vi_store_bytes(int8_t *p, vi a) { LANES p[i] = (int8_t)a.v[i]; }
INLINE int32_t vi_reduce_max(vi a) {
    int32_t most = a.v[0];
    LANES most = a.v[i] > most ? a.v[i] : most;
    return most;
}
INLINE int32_t vi_reduce_add(vi a) {
    int32_t sum = 0;
    LANES sum += a.v[i];
    return sum;
}
/* Four bytes of a lane of w, which are small enough to be positive, times the four at x. */
INLINE vi vi_dot(vi a, vi w, const int8_t *x) {
    LANES {
        uint32_t quad = (uint32_t)w.v[i];
        for (int k = 0; k < 4; k++) a.v[i] += (int32_t)(int8_t)(quad >> 8 * k) * x[k];
    }
    return a;
}
#define vi_dot8 vi_dot
#define vi_whole(a) (a)
enum { PAIRS = 0 };
#define ONCE(words) ((void)0)
