/* Causal attention over the cache with the online softmax of Milakov and Gimelshein 2018, in
 * blocks of 64 positions counted from the start of the sequence: so a query meets the same sums in
 * the same order whichever queries share its tile.
 *
 * The cache is bf16, fp32, or int8 with one fp16 scale for the key or value of a head and token. A
 * scale is met once, by the score of its key or by the weight of its value. */

enum { KEYS = 64, MOST_DIM = 256, DIM_VECTORS = MOST_DIM / 16 };

typedef struct {
    const Attend *call;
    float *queries; /* [T, heads, D], rotated and scaled */
    int group;      /* query heads of a KV head */
} AttendWork;

INLINE size_t cache_row(const Attend *call, int sequence, int head, int64_t position) {
    int64_t line = (int64_t)sequence * call->kv_heads + head;
    return (size_t)(line * call->capacity + position);
}

INLINE int position_of(const Attend *call, int token) {
    return call->positions ? call->positions[token] : call->past + token;
}

INLINE int sequence_of(const Attend *call, int token) {
    return call->sequences ? call->sequences[token] : call->sequence;
}

INLINE vf cache_load(const void *rows, int bits, size_t place) {
    return bits == 8    ? vf_load_int8((const int8_t *)rows + place)
           : bits == 16 ? vf_load_bf16((const uint16_t *)rows + place)
                        : vf_load((const float *)rows + place);
}

/* Rounds to the nearest bf16, ties to even; NaN stays NaN. */
INLINE uint16_t to_bf16(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    if (x != x) return (uint16_t)(bits >> 16 | 0x40);
    return (uint16_t)((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

/* The nearest fp16 of what is not negative, ties to even; infinite beyond its range, and of NaN. */
INLINE uint16_t to_fp16(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    if (bits >= 0x47800000) return 0x7C00;
    if (bits < 0x38800000) return (uint16_t)rintf(x * 0x1p24f);
    return (uint16_t)((bits - 0x38000000 + 0xFFF + (bits >> 13 & 1)) >> 13);
}

/* Up to 64 fp16 scales; zeros behind them. */
INLINE void load_scales(const uint16_t *scales, int count, float *out) {
    for (int i = 0; i < count; i += 16) {
        uint8_t line[32] = {0};
        memcpy(line, scales + i, (size_t)(count - i < 16 ? count - i : 16) * 2);
        vf_store(out + i, vf_load_fp16(line));
    }
}

/* A row in steps of its largest magnitude over 127, as fp16 has it. What holds NaN or infinity, or is
 * beyond fp16, gets an infinite scale, and zeros times that are NaN. */
static void store_int8(int8_t *row, uint16_t *scale, const float *x, int dim) {
    vi most = vi_set(0);
    for (int d = 0; d < dim; d += 16)
        most = vi_max(most, vi_and(vf_bits(vf_load(x + d)), vi_set(0x7FFFFFFF)));
    int32_t bits = vi_reduce_max(most);
    float largest, step[16];
    memcpy(&largest, &bits, 4);
    *scale = to_fp16(largest / 127.0f);
    load_scales(scale, 1, step);
    if (!(step[0] > 0.0f && step[0] <= 65504.0f)) {
        memset(row, 0, (size_t)dim);
        return;
    }
    vf inverse = vf_set(1.0f / step[0]), end = vf_set(127.0f);
    for (int d = 0; d < dim; d += 16) {
        vf q = vf_mul(vf_load(x + d), inverse);
        vi_store_bytes(row + d, vf_round(vf_min(vf_max(q, vf_set(-127.0f)), end)));
    }
}

/* A token's key or value to row `row`. */
INLINE void cache_store(void *rows, uint16_t *scales, int bits, size_t row, const float *x,
                        int dim) {
    const size_t place = row * (size_t)dim;
    if (bits == 8) store_int8((int8_t *)rows + place, scales + row, x, dim);
    else if (bits == 32) memcpy((float *)rows + place, x, (size_t)dim * 4);
    else
        for (int d = 0; d < dim; d++) ((uint16_t *)rows)[place + (size_t)d] = to_bf16(x[d]);
}

/* Su et al. 2021 in the half-rotation form, times a factor. */
INLINE void rotate(const float *x, const float *cos, const float *sin, int dim, float factor,
                   float *out) {
    int half = dim / 2;
    for (int d = 0; d < half; d++) {
        out[d] = (x[d] * cos[d] - x[d + half] * sin[d]) * factor;
        out[d + half] = (x[d + half] * cos[d + half] + x[d] * sin[d + half]) * factor;
    }
}

/* One KV head of one token: its queries to scratch, its key and value to the cache. */
static void rotate_and_store(const AttendWork *work, int token, int head) {
    const Attend *call = work->call;
    const int dim = call->dim, position = position_of(call, token);
    const size_t d = (size_t)dim;
    const float *line =
        call->qkv + (size_t)token * (size_t)(call->heads + 2 * call->kv_heads) * d;
    const float *cos = call->cos + (size_t)position * d, *sin = call->sin + (size_t)position * d;
    const float scale = 1.0f / sqrtf((float)dim);
    for (int q = head * work->group; q < (head + 1) * work->group; q++)
        rotate(line + (size_t)q * d, cos, sin, dim, scale,
               work->queries + ((size_t)token * (size_t)call->heads + (size_t)q) * d);
    float key[MOST_DIM];
    rotate(line + (size_t)(call->heads + head) * d, cos, sin, dim, 1.0f, key);
    size_t row = cache_row(call, sequence_of(call, token), head, position);
    cache_store(call->keys, call->key_scales, call->cache_bits, row, key, dim);
    cache_store(call->values, call->value_scales, call->cache_bits, row,
                line + (size_t)(call->heads + call->kv_heads + head) * d, dim);
}

typedef struct {
    vf mixed[DIM_VECTORS];
    float largest, total;
    const float *query;
    float *out;
    int limit; /* positions it sees */
} Query;

/* Scores of up to 64 keys for each query: p[q][key]. */
INLINE void score(const Attend *call, int vectors, size_t row, int keys, const Query *queries,
                  int count, float (*p)[KEYS]) {
    for (int key = 0; key < keys; key++, row += (size_t)call->dim) {
        vf sums[QUERIES];
        UNROLL for (int q = 0; q < count; q++) sums[q] = vf_zero();
        UNROLL_KNOWN for (int v = 0; v < vectors; v++) {
            vf k = cache_load(call->keys, call->cache_bits, row + 16 * (size_t)v);
            UNROLL for (int q = 0; q < count; q++)
                sums[q] = vf_fma(k, vf_load(queries[q].query + 16 * v), sums[q]);
        }
        UNROLL for (int q = 0; q < count; q++) p[q][key] = vf_reduce_add(sums[q]);
    }
}

/* Scores to e^(score - largest); positions that a query does not see become 0. */
INLINE void soften(Query *query, int vectors, int first, float *p) {
    int seen = query->limit - first;
    vf scores[KEYS / 16], top = vf_set(query->largest), sum = vf_zero();
    for (int i = 0; i < KEYS / 16; i++) {
        int lanes = seen - 16 * i;
        lanes = lanes < 0 ? 0 : lanes > 16 ? 16 : lanes;
        scores[i] = vf_first(lanes, vf_load(p + 16 * i), vf_set(-INFINITY));
        top = vf_max(top, scores[i]);
    }
    float largest = vf_reduce_max(top);
    for (int i = 0; i < KEYS / 16; i++) {
        int lanes = seen - 16 * i;
        lanes = lanes < 0 ? 0 : lanes > 16 ? 16 : lanes;
        vf distance = vf_sub(scores[i], vf_set(largest));
        /* 0 * distance keeps what is not a number; e^x does not. */
        vf e = vf_fma(vf_set(0.0f), distance, vf_exp(distance));
        e = vf_first(lanes, e, vf_zero());
        vf_store(p + 16 * i, e);
        sum = vf_add(sum, e);
    }
    if (largest != query->largest && first > 0) {
        float lanes[16];
        vf_store(lanes, vf_exp(vf_set(query->largest - largest)));
        UNROLL_KNOWN for (int v = 0; v < vectors; v++)
            query->mixed[v] = vf_mul(query->mixed[v], vf_set(lanes[0]));
        query->total *= lanes[0];
    }
    query->largest = largest;
    query->total += vf_reduce_add(sum);
}

/* Adds the values of `keys` positions from `first` on, times p. What a query does not see stays out
 * of its sums, because 0 times a value that is not finite would spoil them. */
INLINE void mix(const Attend *call, int vectors, size_t row, int first, int keys, Query *queries,
                int count, float (*p)[KEYS]) {
    int common = keys;
    UNROLL for (int q = 0; q < count; q++)
        if (queries[q].limit - first < common) common = queries[q].limit - first;
    for (int v = 0; v < vectors; v++) {
        vf sums[QUERIES];
        UNROLL for (int q = 0; q < count; q++) sums[q] = queries[q].mixed[v];
        size_t place = row + 16 * (size_t)v;
        int key = 0;
        for (; key < common; key++, place += (size_t)call->dim) {
            vf value = cache_load(call->values, call->cache_bits, place);
            UNROLL for (int q = 0; q < count; q++)
                sums[q] = vf_fma(vf_set(p[q][key]), value, sums[q]);
        }
        for (; key < keys; key++, place += (size_t)call->dim) {
            vf value = cache_load(call->values, call->cache_bits, place);
            UNROLL for (int q = 0; q < count; q++)
                if (key < queries[q].limit - first)
                    sums[q] = vf_fma(vf_set(p[q][key]), value, sums[q]);
        }
        UNROLL for (int q = 0; q < count; q++) queries[q].mixed[v] = sums[q];
    }
}

/* What 64 integers of each query meet, times the scales of their rows. */
INLINE void times_scales(const uint16_t *scales, int keys, int count, float (*p)[KEYS]) {
    float of_keys[KEYS] = {0};
    load_scales(scales, keys, of_keys);
    UNROLL for (int q = 0; q < count; q++)
        for (int i = 0; i < KEYS; i += 16)
            vf_store(p[q] + i, vf_mul(vf_load(p[q] + i), vf_load(of_keys + i)));
}

/* Queries of one KV head of one sequence; the last one sees most. */
INLINE void attend_tile(const Attend *call, int vectors, int sequence, int head, Query *queries,
                        int count) {
    float p[QUERIES][KEYS] = {{0}};
    int end = 0;
    for (int q = 0; q < count; q++) {
        end = queries[q].limit > end ? queries[q].limit : end;
        queries[q].largest = -INFINITY;
        queries[q].total = 0.0f;
        for (int v = 0; v < vectors; v++) queries[q].mixed[v] = vf_zero();
    }
    for (int first = 0; first < end; first += KEYS) {
        int keys = end - first < KEYS ? end - first : KEYS;
        size_t row = cache_row(call, sequence, head, first), place = row * (size_t)call->dim;
        score(call, vectors, place, keys, queries, count, p);
        if (call->cache_bits == 8) times_scales(call->key_scales + row, keys, count, p);
        UNROLL for (int q = 0; q < count; q++)
            if (queries[q].limit > first) soften(&queries[q], vectors, first, p[q]);
        if (call->cache_bits == 8) times_scales(call->value_scales + row, keys, count, p);
        mix(call, vectors, place, first, keys, queries, count, p);
    }
    for (int q = 0; q < count; q++)
        for (int v = 0; v < vectors; v++)
            vf_store(queries[q].out + 16 * v,
                     vf_div(queries[q].mixed[v], vf_set(queries[q].total)));
}

#define ATTEND_CASE(vectors, count) \
    if (count <= QUERIES && some == count) { \
        attend_tile(call, vectors, sequence, head, queries, count); \
        return; \
    }
#define ATTEND_CASES(name, vectors) \
    static NOINLINE void name(const Attend *call, int sequence, int head, Query *queries, \
                              int some) { \
        ATTEND_CASE(vectors, 1) \
        ATTEND_CASE(vectors, 2) \
        ATTEND_CASE(vectors, 3) \
        ATTEND_CASE(vectors, 4) \
    }
ATTEND_CASES(attend_80, 5)
ATTEND_CASES(attend_128, 8)
ATTEND_CASES(attend_any, call->dim / 16)

INLINE int tile_of_tokens(const AttendWork *work) {
    return work->group >= QUERIES || work->call->positions ? 1 : QUERIES / work->group;
}

/* All query heads of one KV head for a tile of tokens. */
static void attend_head(const AttendWork *work, int token, int tokens, int head) {
    const Attend *call = work->call;
    Query queries[QUERIES];
    int count = 0;
    for (int i = 0; i < tokens * work->group; i++) {
        int t = token + i / work->group, q = head * work->group + i % work->group;
        size_t place = ((size_t)t * (size_t)call->heads + (size_t)q) * (size_t)call->dim;
        Query *query = &queries[count++];
        query->query = work->queries + place;
        query->out = call->out + place;
        query->limit = position_of(call, t) + 1;
        if (count < QUERIES && i + 1 < tokens * work->group) continue;
        (call->dim == 80 ? attend_80 : call->dim == 128 ? attend_128 : attend_any)(
            call, sequence_of(call, token), head, queries, count);
        count = 0;
    }
}

static void store_units(const void *job, int first, int last) {
    const AttendWork *work = job;
    for (int unit = first; unit < last; unit++)
        rotate_and_store(work, unit / work->call->kv_heads, unit % work->call->kv_heads);
}

static void attend_units(const void *job, int first, int last) {
    const AttendWork *work = job;
    const Attend *call = work->call;
    int per_tile = tile_of_tokens(work), tiles = (call->tokens + per_tile - 1) / per_tile;
    for (int unit = first; unit < last; unit++) {
        int head = unit / tiles, token = unit % tiles * per_tile;
        int tokens = call->tokens - token < per_tile ? call->tokens - token : per_tile;
        attend_head(work, token, tokens, head);
    }
}

/* A single tile: everything of a head in one go. */
static void head_units(const void *job, int first, int last) {
    const AttendWork *work = job;
    for (int head = first; head < last; head++) {
        for (int t = 0; t < work->call->tokens; t++) rotate_and_store(work, t, head);
        attend_head(work, 0, work->call->tokens, head);
    }
}

static int attend(const Attend *call) {
    AttendWork work = {call, NULL, call->heads / call->kv_heads};
    pool_lock();
    work.queries = scratch(0, (size_t)call->tokens * (size_t)call->heads * (size_t)call->dim * 4);
    if (work.queries) {
        int per_tile = tile_of_tokens(&work), tiles = (call->tokens + per_tile - 1) / per_tile;
        if (tiles == 1) {
            pool_run(head_units, &work, call->kv_heads, 1);
        } else {
            pool_run(store_units, &work, call->tokens * call->kv_heads, 64);
            pool_run(attend_units, &work, call->kv_heads * tiles, tiles);
        }
    }
    pool_unlock();
    return work.queries == NULL;
}
