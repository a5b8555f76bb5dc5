/* Activations as the packed kernels read them: for each group of 32 columns its scale, a term that
 * undoes the offset of unsigned weights, and small integers.
 *
 * A narrow group has 8-bit integers. A wide one has 16-bit ones as 256 * high + low, because the
 * product of gate and up has heavy tails: with 8 bits alone its rounding is most of an expert's
 * error. int4 weights give nibbles 0, 2, 4, 6 of a word and then 1, 3, 5, 7, which docs/format.md
 * assigns to columns 0, 4, 1, 5 and 2, 6, 3, 7: the integers lie in that order. */

typedef struct {
    float scale;
    int32_t offset;
    int8_t high[GROUP]; /* of a narrow group the only ones */
    int8_t low[GROUP];
} Wide;

typedef struct {
    float scale;
    int32_t offset;
    int8_t q[GROUP];
} Narrow;

INLINE size_t group_bytes(int wide) { return wide ? sizeof(Wide) : sizeof(Narrow); }

INLINE size_t activation_bytes(Form form, int columns, int wide) {
    return form == BF16 ? (size_t)columns * 4 : (size_t)columns / GROUP * group_bytes(wide);
}

INLINE void permute_columns(int8_t *q) {
    static const uint8_t column[8] = {0, 4, 1, 5, 2, 6, 3, 7};
    int8_t natural[GROUP];
    memcpy(natural, q, GROUP);
    for (int i = 0; i < GROUP; i++) q[i] = natural[(i & ~7) + column[i & 7]];
}

/* 32 values to a narrow or wide group. One that holds NaN or infinity gets the scale NaN; one that
 * is too small to divide by is zero. */
INLINE void quantise_group(const float *x, Form form, int wide, void *out) {
    const int32_t finite = 0x7F800000, steps = wide ? 127 * 256 : 127;
    Wide *group = out;
    vf a = vf_load(x), b = vf_load(x + 16);
    vi magnitude = vi_set(0x7FFFFFFF);
    int32_t bits = vi_reduce_max(
        vi_max(vi_and(vf_bits(a), magnitude), vi_and(vf_bits(b), magnitude)));
    float largest;
    memcpy(&largest, &bits, 4);
    if (bits >= finite || largest < 1e-34f) {
        memset(out, 0, group_bytes(wide));
        group->scale = bits >= finite ? NAN : 0.0f;
        return;
    }
    vf inverse = vf_set((float)steps / largest);
    vi qa = vf_round(vf_mul(a, inverse)), qb = vf_round(vf_mul(b, inverse));
    group->scale = largest / (float)steps;
    int32_t sum = vi_reduce_add(vi_add(qa, qb));
    if (wide) {
        /* Rounded to the nearest 256; the rest stays in -127 .. 127, as every dot product needs. */
        int32_t values[GROUP];
        memcpy(values, &qa, 64);
        memcpy(values + 16, &qb, 64);
        for (int i = 0; i < GROUP; i++) {
            int32_t high = (values[i] + 128) >> 8, low = values[i] - high * 256;
            sum += low == -128;
            group->high[i] = (int8_t)high;
            group->low[i] = (int8_t)(low == -128 ? -127 : low);
        }
        if (form == INT4) permute_columns(group->low);
    } else {
        vi_store_bytes(group->high, qa);
        vi_store_bytes(group->high + 16, qb);
    }
    if (form == INT4) permute_columns(group->high);
    group->offset = -sum * (form == INT4 ? 8 : INT8_OFFSET);
}

/* A token's K values for weights of a form; `out` holds activation_bytes. */
static void prepare(const float *x, Form form, int columns, int wide, uint8_t *out) {
    if (form == BF16) {
        memcpy(out, x, (size_t)columns * 4);
        return;
    }
    for (int k = 0; k < columns; k += GROUP, out += group_bytes(wide))
        quantise_group(x + k, form, wide, out);
}
