/* What all kernels need on top of an instruction set's lanes. */

INLINE vf vf_zero(void) { return vf_set(0.0f); }

INLINE float vf_reduce_max(vf a) {
    float lanes[16];
    vf_store(lanes, a);
    for (int half = 8; half; half /= 2)
        for (int i = 0; i < half; i++)
            lanes[i] = lanes[i] > lanes[i + half] ? lanes[i] : lanes[i + half];
    return lanes[0];
}

/* e^x by range reduction to |r| <= ln(2) / 2 and the Taylor polynomial of degree 6: 1.3e-7
 * relative. Arguments beyond the range of fp32 count as its ends, NaN as either. */
INLINE vf vf_exp(vf x) {
    x = vf_min(vf_max(x, vf_set(-87.0f)), vf_set(88.0f));
    vi n = vf_round(vf_mul(x, vf_set(1.44269504f)));
    vf count = vi_float(n);
    vf r = vf_fma(count, vf_set(-0.693145752f), x);
    r = vf_fma(count, vf_set(-1.42860677e-6f), r);
    vf p = vf_set(1.0f / 720);
    p = vf_fma(p, r, vf_set(1.0f / 120));
    p = vf_fma(p, r, vf_set(1.0f / 24));
    p = vf_fma(p, r, vf_set(1.0f / 6));
    p = vf_fma(p, r, vf_set(0.5f));
    p = vf_fma(p, r, vf_set(1.0f));
    p = vf_fma(p, r, vf_set(1.0f));
    return vf_mul(p, vf_from_bits(vi_shl(vi_add(n, vi_set(127)), 23)));
}

/* silu(gate) * up; NaN where one of them is. */
INLINE vf vf_swiglu(vf gate, vf up) {
    vf denominator = vf_add(vf_set(1.0f), vf_exp(vf_sub(vf_zero(), gate)));
    return vf_mul(vf_div(gate, denominator), up);
}

INLINE void prefetch(const uint8_t *p) { __builtin_prefetch(p, 0, 2); }

/* Column p of a line of fp32 values times its root mean square: Zhang and Sennrich 2019. */
static void rms_norm(const float *x, const float *weight, float eps, int columns, float *out) {
    vf sums[2] = {vf_zero(), vf_zero()};
    int k = 0;
    for (; k + 32 <= columns; k += 32)
        for (int i = 0; i < 2; i++) {
            vf a = vf_load(x + k + 16 * i);
            sums[i] = vf_fma(a, a, sums[i]);
        }
    float sum = vf_reduce_add(vf_add(sums[0], sums[1]));
    for (; k < columns; k++) sum += x[k] * x[k];
    float scale = 1.0f / sqrtf(sum / (float)columns + eps);
    for (k = 0; k < columns; k++) out[k] = weight[k] * (x[k] * scale);
}
