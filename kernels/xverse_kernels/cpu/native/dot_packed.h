/* Row blocks of packed integers times several tokens: 16 rows in the lanes.
 *
 * Integer sums of a group are exact; they are scaled and added to fp32 group after group. */

enum { MOST_TOKENS = 6, MOST_SUMS = 12 };

/* Columns of a group: 8 steps of 4 columns, from 4 words of nibbles or 8 of bytes. */
INLINE void group_dot(Form form, int tokens, int blocks, int wide, const uint8_t *integers,
                      const uint8_t *scales, size_t pitch, const uint8_t *const *x, vf *sum) {
    vi low[MOST_SUMS], high[MOST_SUMS];
    const int pairs = PAIRS && form == INT4;
    UNROLL for (int t = 0; t < tokens; t++) {
        const Wide *group = (const Wide *)x[t];
        UNROLL for (int b = 0; b < blocks; b++) {
            low[t * blocks + b] = vi_set(pairs ? 0 : group->offset);
            if (wide) high[t * blocks + b] = vi_set(0);
        }
    }
    const int steps = form == INT4 ? 4 : 8, halves = form == INT4 ? 2 : 1;
    UNROLL for (int step = 0; step < steps; step++) {
        UNROLL for (int b = 0; b < blocks; b++) {
            vi words = vi_load(integers + pitch * (size_t)b + 64 * step);
            ONCE(words);
            UNROLL for (int half = 0; half < halves; half++) {
                vi w = form != INT4 ? vi_packed_bytes(words)
                       : half ? vi_high_nibbles(words) : vi_low_nibbles(words);
                int column = form == INT4 ? 8 * step + 4 * half : 4 * step;
                UNROLL for (int t = 0; t < tokens; t++) {
                    const Wide *group = (const Wide *)x[t];
                    const int8_t *near = (wide ? group->low : group->high) + column;
                    vi *narrow = &low[t * blocks + b], *wider = &high[t * blocks + b];
                    *narrow = form == INT4 ? vi_dot(*narrow, w, near) : vi_dot8(*narrow, w, near);
                    if (!wide) continue;
                    const int8_t *far = group->high + column;
                    *wider = form == INT4 ? vi_dot(*wider, w, far) : vi_dot8(*wider, w, far);
                }
            }
        }
    }
    UNROLL for (int b = 0; b < blocks; b++) {
        vf scale = vf_load_fp16(scales + pitch * (size_t)b);
        UNROLL for (int t = 0; t < tokens; t++) {
            int i = t * blocks + b;
            const Wide *group = (const Wide *)x[t];
            vi whole = pairs ? vi_add(vi_whole(low[i]), vi_set(group->offset)) : low[i];
            if (wide) {
                vi upper = pairs ? vi_whole(high[i]) : high[i];
                whole = vi_add(vi_shl(upper, 8), whole);
            }
            vf scaled = vf_mul(vi_float(whole), vf_set(group->scale));
            sum[i] = vf_fma(scaled, scale, sum[i]);
        }
    }
}

/* `blocks` row blocks, `pitch` bytes apart, times `tokens` tokens: out[t * blocks + b]. `ahead`
 * bytes of the stream of weights are fetched before they are needed; 0 fetches nothing. */
INLINE void tile(Form form, int tokens, int blocks, int wide, const uint8_t *data, size_t pitch,
                 int columns, int ahead, const uint8_t *const *activations, vf *out) {
    const size_t group_integers = (size_t)ROWS * GROUP * form / 8;
    const uint8_t *x[MOST_TOKENS];
    vf sum[MOST_SUMS];
    UNROLL for (int t = 0; t < tokens; t++) x[t] = activations[t];
    UNROLL for (int i = 0; i < tokens * blocks; i++) sum[i] = vf_zero();
    int groups = columns / GROUP;
    for (; groups >= 2; groups -= 2) {
        const uint8_t *scales = data + 2 * group_integers;
        if (ahead)
            UNROLL for (int b = 0; b < blocks; b++)
                for (size_t line = 0; line < 2 * group_integers + 64; line += 64)
                    prefetch(data + pitch * (size_t)b + ahead + line);
        UNROLL for (int half = 0; half < 2; half++) {
            group_dot(form, tokens, blocks, wide, data + (size_t)half * group_integers,
                      scales + 32 * half, pitch, x, sum);
            UNROLL for (int t = 0; t < tokens; t++) x[t] += group_bytes(wide);
        }
        data = scales + 64;
    }
    if (groups)
        group_dot(form, tokens, blocks, wide, data, data + group_integers, pitch, x, sum);
    UNROLL for (int i = 0; i < tokens * blocks; i++) out[i] = sum[i];
}

/* How far ahead of a stream of weights lines are fetched, in bytes. */
enum { AHEAD = 12 * 576 };

/* The same for any number of tokens up to a tile's; `fresh` weights are not in a cache yet. */
#define TILES(name, form, wide, most) \
    static NOINLINE void name(int tokens, int blocks, int fresh, const uint8_t *data, \
                              size_t pitch, int columns, const uint8_t *const *x, vf *out) { \
        TILE_CASE(form, wide, most, 1, 1) \
        TILE_CASE(form, wide, most, 2, 1) \
        TILE_CASE(form, wide, most, 3, 1) \
        TILE_CASE(form, wide, most, 4, 1) \
        TILE_CASE(form, wide, most, 5, 1) \
        TILE_CASE(form, wide, most, 6, 1) \
        TILE_CASE(form, wide, most, 1, 2) \
        TILE_CASE(form, wide, most, 2, 2) \
        TILE_CASE(form, wide, most, 3, 2) \
        TILE_CASE(form, wide, most, 4, 2) \
        TILE_CASE(form, wide, most, 5, 2) \
        TILE_CASE(form, wide, most, 6, 2) \
    }
#define TILE_CASE(form, wide, most, t, b) \
    if (t <= most && b <= TILE_BLOCKS && tokens == t && blocks == b) { \
        tile(form, t, b, wide, data, pitch, columns, fresh ? AHEAD : 0, x, out); \
        return; \
    }

TILES(tile_int4, INT4, 0, TILE_TOKENS)
TILES(tile_int4_wide, INT4, 1, WIDE_TOKENS)
TILES(tile_int8, INT8, 0, TILE_TOKENS)
TILES(tile_int8_wide, INT8, 1, WIDE_TOKENS)
