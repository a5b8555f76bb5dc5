/* 16 lanes in four registers: arm64 with the dot-product extension. */
#include <arm_neon.h>

typedef struct { float32x4_t v[4]; } vf;
typedef struct { int32x4_t v[4]; } vi;

/* Tiles that fit the registers. */
enum { TILE_TOKENS = 2, WIDE_TOKENS = 1, TILE_BLOCKS = 1, FLOAT_TOKENS = 2, FLOAT_ROWS = 2 };
enum { QUERIES = 1 };
enum { INT8_OFFSET = 0 }; /* the dot product takes signed bytes */

#define QUARTERS UNROLL for (int i = 0; i < 4; i++)
#define EACH(type, name, args, value) \
    INLINE type name args { \
        type out; \
        QUARTERS out.v[i] = value; \
        return out; \
    }
EACH(vf, vf_load, (const float *p), vld1q_f32(p + 4 * i))
EACH(vf, vf_set, (float a), vdupq_n_f32(a))
EACH(vf, vf_add, (vf a, vf b), vaddq_f32(a.v[i], b.v[i]))
EACH(vf, vf_sub, (vf a, vf b), vsubq_f32(a.v[i], b.v[i]))
EACH(vf, vf_mul, (vf a, vf b), vmulq_f32(a.v[i], b.v[i]))
EACH(vf, vf_div, (vf a, vf b), vdivq_f32(a.v[i], b.v[i]))
EACH(vf, vf_max, (vf a, vf b), vmaxq_f32(a.v[i], b.v[i]))
EACH(vf, vf_min, (vf a, vf b), vminq_f32(a.v[i], b.v[i]))
EACH(vf, vf_fma, (vf a, vf b, vf c), vfmaq_f32(c.v[i], a.v[i], b.v[i]))
EACH(vi, vf_bits, (vf a), vreinterpretq_s32_f32(a.v[i]))
EACH(vf, vf_from_bits, (vi a), vreinterpretq_f32_s32(a.v[i]))
EACH(vi, vf_round, (vf a), vcvtnq_s32_f32(a.v[i]))
EACH(vf, vf_load_bf16, (const uint16_t *p),
     vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p + 4 * i), 16)))
EACH(vf, vf_load_fp16, (const uint8_t *p),
     vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(p + 8 * i))))

EACH(vi, vi_set, (int32_t a), vdupq_n_s32(a))
EACH(vi, vi_load, (const uint8_t *p), vreinterpretq_s32_u8(vld1q_u8(p + 16 * i)))
EACH(vi, vi_add, (vi a, vi b), vaddq_s32(a.v[i], b.v[i]))
EACH(vi, vi_and, (vi a, vi b), vandq_s32(a.v[i], b.v[i]))
EACH(vi, vi_max, (vi a, vi b), vmaxq_s32(a.v[i], b.v[i]))
EACH(vi, vi_shl, (vi a, int n), vshlq_s32(a.v[i], vdupq_n_s32(n)))
EACH(vf, vi_float, (vi a), vcvtq_f32_s32(a.v[i]))
EACH(vi, vi_low_nibbles, (vi a), vandq_s32(a.v[i], vdupq_n_s32(0x0F0F0F0F)))
EACH(vi, vi_high_nibbles, (vi a),
     vreinterpretq_s32_u8(vshrq_n_u8(vreinterpretq_u8_s32(a.v[i]), 4)))
EACH(vi, vi_packed_bytes, (vi a),
     vreinterpretq_s32_u8(veorq_u8(vreinterpretq_u8_s32(a.v[i]), vdupq_n_u8(0x80))))

INLINE vf vf_load_int8(const int8_t *p) {
    int8x16_t bytes = vld1q_s8(p);
    int16x8_t low = vmovl_s8(vget_low_s8(bytes)), high = vmovl_s8(vget_high_s8(bytes));
    return (vf){{vcvtq_f32_s32(vmovl_s16(vget_low_s16(low))),
                 vcvtq_f32_s32(vmovl_s16(vget_high_s16(low))),
                 vcvtq_f32_s32(vmovl_s16(vget_low_s16(high))),
                 vcvtq_f32_s32(vmovl_s16(vget_high_s16(high)))}};
}
INLINE void vf_store(float *p, vf a) { QUARTERS vst1q_f32(p + 4 * i, a.v[i]); }
/* The first `count` lanes of a, the others of b. */
INLINE vf vf_first(int count, vf a, vf b) {
    const int32_t lanes[4] = {0, 1, 2, 3};
    vf out;
    QUARTERS {
        uint32x4_t first = vcltq_s32(vld1q_s32(lanes), vdupq_n_s32(count - 4 * i));
        out.v[i] = vbslq_f32(first, a.v[i], b.v[i]);
    }
    return out;
}
/* Lane i plus lane i + 8, then + 4, + 2, + 1: the order of every instruction set here. */
INLINE float vf_reduce_add(vf a) {
    float32x4_t four = vaddq_f32(vaddq_f32(a.v[0], a.v[2]), vaddq_f32(a.v[1], a.v[3]));
    float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
    return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
}
INLINE void vi_store_bytes(int8_t *p, vi a) {
    int16x8_t low = vcombine_s16(vqmovn_s32(a.v[0]), vqmovn_s32(a.v[1]));
    int16x8_t high = vcombine_s16(vqmovn_s32(a.v[2]), vqmovn_s32(a.v[3]));
    vst1q_s8(p, vcombine_s8(vqmovn_s16(low), vqmovn_s16(high)));
}
INLINE int32_t vi_reduce_max(vi a) {
    return vmaxvq_s32(vmaxq_s32(vmaxq_s32(a.v[0], a.v[1]), vmaxq_s32(a.v[2], a.v[3])));
}
INLINE int32_t vi_reduce_add(vi a) {
    return vaddvq_s32(vaddq_s32(vaddq_s32(a.v[0], a.v[1]), vaddq_s32(a.v[2], a.v[3])));
}
/* Four signed bytes of a lane of w (a nibble is one) times the four at x, added to the lane. */
INLINE vi vi_dot(vi a, vi w, const int8_t *x) {
    int32_t quad;
    __builtin_memcpy(&quad, x, 4);
    int8x16_t quads = vreinterpretq_s8_s32(vdupq_n_s32(quad));
    QUARTERS a.v[i] = vdotq_s32(a.v[i], vreinterpretq_s8_s32(w.v[i]), quads);
    return a;
}
#define vi_dot8 vi_dot
#define vi_whole(a) (a)
enum { PAIRS = 0 };
#define ONCE(words) ((void)0)
