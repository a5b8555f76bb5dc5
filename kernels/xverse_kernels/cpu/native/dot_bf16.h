/* Rows of bf16 times several tokens in fp32: the lanes run along K and are added at the end. */

INLINE void float_tile(int tokens, int rows, const uint16_t *weights, int columns,
                       const float *const *x, float (*out)[ROWS]) {
    vf sum[FLOAT_ROWS * FLOAT_TOKENS];
    UNROLL for (int i = 0; i < rows * tokens; i++) sum[i] = vf_zero();
    for (int k = 0; k < columns; k += 16) {
        vf w[FLOAT_ROWS];
        UNROLL for (int r = 0; r < rows; r++) {
            const uint16_t *row = weights + (size_t)r * (size_t)columns + k;
            w[r] = vf_load_bf16(row);
            if (tokens == 1 && k % 32 == 0) prefetch((const uint8_t *)(row + 512));
        }
        UNROLL for (int t = 0; t < tokens; t++) {
            vf a = vf_load(x[t] + k);
            UNROLL for (int r = 0; r < rows; r++)
                sum[r * tokens + t] = vf_fma(w[r], a, sum[r * tokens + t]);
        }
    }
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int t = 0; t < tokens; t++) out[t][r] = vf_reduce_add(sum[r * tokens + t]);
}

#define FLOAT_CASE(t, r) \
    if (t <= FLOAT_TOKENS && r <= FLOAT_ROWS && tokens == t && rows == r) { \
        float_tile(t, r, weights, columns, x, out); \
        return; \
    }

static NOINLINE void float_rows(int tokens, int rows, const uint16_t *weights, int columns,
                                const float *const *x, float (*out)[ROWS]) {
    FLOAT_CASE(1, FLOAT_ROWS)
    FLOAT_CASE(2, FLOAT_ROWS)
    FLOAT_CASE(3, FLOAT_ROWS)
    FLOAT_CASE(4, FLOAT_ROWS)
    FLOAT_CASE(5, FLOAT_ROWS)
    FLOAT_CASE(1, 1)
    FLOAT_CASE(2, 1)
    FLOAT_CASE(3, 1)
    FLOAT_CASE(4, 1)
    FLOAT_CASE(5, 1)
}

/* Up to 16 rows: out[t] holds the lanes of a token, zero beyond the last row. */
static void tile_bf16(int tokens, int rows, const uint8_t *data, int columns,
                      const uint8_t *const *x, vf *out) {
    const uint16_t *weights = (const uint16_t *)data;
    float lanes[FLOAT_TOKENS][ROWS] = {{0}};
    const float *values[FLOAT_TOKENS];
    for (int t = 0; t < tokens; t++) values[t] = (const float *)x[t];
    for (int r = 0; r < rows;) {
        int some = rows - r >= FLOAT_ROWS ? FLOAT_ROWS : 1;
        float part[FLOAT_TOKENS][ROWS];
        float_rows(tokens, some, weights + (size_t)r * (size_t)columns, columns, values, part);
        for (int t = 0; t < tokens; t++)
            memcpy(lanes[t] + r, part[t], sizeof(float) * (size_t)some);
        r += some;
    }
    for (int t = 0; t < tokens; t++) out[t] = vf_load(lanes[t]);
}

/* Most tokens that a tile takes. */
INLINE int tile_tokens(Form form, int wide) {
    return form == BF16 ? FLOAT_TOKENS : wide ? WIDE_TOKENS : TILE_TOKENS;
}

/* One or TILE_BLOCKS row blocks, `rows` rows in all, times up to tile_tokens tokens:
 * out[t * blocks + b]. `fresh` packed weights are fetched ahead. */
static void dot_tile(Form form, int wide, int tokens, int blocks, int rows, int fresh,
                     const uint8_t *data, size_t pitch, int columns, const uint8_t *const *x,
                     vf *out) {
    if (form == BF16) {
        for (int b = 0; b < blocks; b++) {
            vf lanes[FLOAT_TOKENS];
            int some = rows - ROWS * b < ROWS ? rows - ROWS * b : ROWS;
            tile_bf16(tokens, some, data + pitch * (size_t)b, columns, x, lanes);
            for (int t = 0; t < tokens; t++) out[t * blocks + b] = lanes[t];
        }
        return;
    }
    (form == INT4 ? wide ? tile_int4_wide : tile_int4 : wide ? tile_int8_wide : tile_int8)(
        tokens, blocks, fresh, data, pitch, columns, x, out);
}
