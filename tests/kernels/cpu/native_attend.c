/* Attention over the cache. */
#include "native_test.h"

typedef struct {
    const Kernels *kernels;
    Attend call;
    int lines;            /* sequences in the cache */
    int consecutive;      /* the kernels are told a sequence and a past, and no positions */
    size_t rows, bytes;   /* of keys, and of values */
    void *keys, *values;  /* before the call, and the scales of int8 */
    uint16_t *key_scales, *value_scales;
} Problem;

typedef struct {
    int dim, past, kv_heads, group, tokens, bits, consecutive;
    double size, value_size; /* of queries and keys; of values */
} Shape;

static double cached(const Attend *call, const void *rows, size_t place) {
    const uint16_t *scales = rows == call->keys ? call->key_scales : call->value_scales;
    if (call->cache_bits == 8)
        return ((const int8_t *)rows)[place] * from_fp16(scales[place / (size_t)call->dim]);
    return call->cache_bits == 16 ? from_bf16(((const uint16_t *)rows)[place])
                                  : (double)((const float *)rows)[place];
}

static size_t row_of(const Attend *call, int sequence, int head, int position) {
    size_t line = (size_t)(sequence * call->kv_heads + head) * (size_t)call->capacity;
    return (line + (size_t)position) * (size_t)call->dim;
}

static size_t outs(const Attend *call) { return (size_t)(call->heads * call->dim); }

/* A token's output and then its lines of the cache. */
static size_t line_of(const Attend *call) {
    return outs(call) + (size_t)(2 * call->kv_heads * call->dim);
}

static void part(void *whole, int first, int count, float *out) {
    Problem *problem = whole;
    Attend call = problem->call;
    const size_t width = line_of(&call), from = (size_t)first, tokens = (size_t)count;
    if (first == 0) {
        memcpy(call.keys, problem->keys, problem->bytes);
        memcpy(call.values, problem->values, problem->bytes);
        memcpy(call.key_scales, problem->key_scales, problem->rows * 2);
        memcpy(call.value_scales, problem->value_scales, problem->rows * 2);
    }
    call.qkv = copy_of(call.qkv + from * width, tokens * width * 4);
    call.sequences = copy_of(call.sequences + first, tokens * 4);
    call.positions = copy_of(call.positions + first, tokens * 4);
    call.out = poisoned(tokens * outs(&call));
    call.tokens = count;
    Attend told = call;
    if (problem->consecutive) {
        told.sequence = call.sequences[0];
        told.past = call.positions[0];
        told.sequences = told.positions = NULL;
    }
    check(problem->kernels->attend(&told) == 0, "an error instead of a result");
    for (int t = 0; t < count; t++) {
        memcpy(out, call.out + (size_t)t * outs(&call), outs(&call) * 4);
        out += outs(&call);
        for (int head = 0; head < call.kv_heads; head++) {
            size_t row = row_of(&call, call.sequences[t], head, call.positions[t]);
            for (int d = 0; d < call.dim; d++) {
                *out++ = (float)cached(&call, call.keys, row + (size_t)d);
                *out++ = (float)cached(&call, call.values, row + (size_t)d);
            }
        }
    }
}

static float *compute(Problem *problem) {
    size_t tokens = (size_t)problem->call.tokens;
    float *out = poisoned(tokens * line_of(&problem->call));
    part(problem, 0, problem->call.tokens, out);
    return out;
}

/* Consecutive tokens of one sequence, or one token each of several. */
static void place_tokens(Problem *problem, const Shape *shape) {
    Attend *call = &problem->call;
    int32_t *sequences = exact((size_t)shape->tokens * 4), *positions = exact((size_t)shape->tokens * 4);
    problem->lines = shape->consecutive ? 2 : shape->tokens + 1;
    call->capacity = shape->past + (shape->consecutive ? shape->tokens : 1) + between(0, 2);
    int turn = between(0, problem->lines - 1);
    for (int t = 0; t < shape->tokens; t++) {
        sequences[t] = shape->consecutive ? turn : (turn + t) % problem->lines;
        positions[t] = shape->consecutive ? shape->past + t : t ? between(0, shape->past) : shape->past;
    }
    call->sequences = sequences;
    call->positions = positions;
}

/* What comes before a token; all else is NaN. */
static void *fill_cache(const Problem *problem, double size, uint16_t *scales) {
    const Attend *call = &problem->call;
    size_t values = problem->bytes / (size_t)(call->cache_bits / 8);
    uint16_t *brains = exact(problem->bytes);
    float *floats = (float *)brains;
    int8_t *integers = (int8_t *)brains;
    for (size_t i = 0; i < problem->rows; i++) scales[i] = 0x7E00;
    for (size_t i = 0; i < values; i++)
        if (call->cache_bits == 16) brains[i] = 0x7FC0;
        else if (call->cache_bits == 32) floats[i] = NAN;
        else integers[i] = 77;
    for (int t = 0; t < call->tokens; t++)
        for (int head = 0; head < call->kv_heads; head++)
            for (int p = 0; p < call->positions[t] && (!t || !problem->consecutive); p++)
                for (int d = 0; d < call->dim; d++) {
                    size_t place = row_of(call, call->sequences[t], head, p) + (size_t)d;
                    if (call->cache_bits == 16) brains[place] = nearest_bf16(normal() * size);
                    else if (call->cache_bits == 32) floats[place] = (float)(normal() * size);
                    else integers[place] = (int8_t)between(-127, 127);
                    if (call->cache_bits == 8 && !d) /* 0.008 to 0.016, in no order */
                        scales[place / (size_t)call->dim] = (uint16_t)between(0x2000, 0x23FF);
                }
    return brains;
}

static Problem new_problem(const Kernels *kernels, Shape shape) {
    Problem problem = {.kernels = kernels};
    Attend *call = &problem.call;
    *call = (Attend){.tokens = shape.tokens, .heads = shape.kv_heads * shape.group,
                     .kv_heads = shape.kv_heads, .dim = shape.dim, .cache_bits = shape.bits};
    problem.consecutive = shape.consecutive;
    place_tokens(&problem, &shape);
    problem.bytes = row_of(call, problem.lines, 0, 0) * (size_t)(shape.bits / 8);
    problem.rows = row_of(call, problem.lines, 0, 0) / (size_t)shape.dim;
    problem.key_scales = exact(problem.rows * 2);
    problem.value_scales = exact(problem.rows * 2);
    call->key_scales = exact(problem.rows * 2);
    call->value_scales = exact(problem.rows * 2);
    problem.keys = fill_cache(&problem, shape.size, problem.key_scales);
    problem.values = fill_cache(&problem, shape.value_size, problem.value_scales);
    call->keys = exact(problem.bytes);
    call->values = exact(problem.bytes);
    size_t width = line_of(call), turned = (size_t)((call->heads + call->kv_heads) * call->dim);
    size_t angles = (size_t)((shape.past + shape.tokens) * shape.dim);
    if (!shape.consecutive) angles = (size_t)((shape.past + 1) * shape.dim);
    float *qkv = exact((size_t)shape.tokens * width * 4), *cosines = exact(angles * 4);
    float *sines = exact(angles * 4);
    for (size_t i = 0; i < (size_t)shape.tokens * width; i++)
        qkv[i] = (float)(normal() * (i % width < turned ? shape.size : shape.value_size));
    for (size_t i = 0; i < angles; i++) { /* both halves apart, so that mixing them up shows */
        cosines[i] = normal();
        sines[i] = normal();
    }
    call->qkv = qkv;
    call->cos = cosines;
    call->sin = sines;
    return problem;
}

static double rotated(const Attend *call, int token, int head, int d) {
    const float *x = call->qkv + (size_t)token * line_of(call) + head * call->dim;
    const int half = call->dim / 2, angle = call->positions[token] * call->dim + d;
    double other = d < half ? -(double)x[d + half] : (double)x[d - half];
    return (double)x[d] * call->cos[angle] + other * call->sin[angle];
}

/* Half a step from a value, where a row has 127 of them up to its largest and the step is an fp16. */
static double half_step(const double *row, int dim, double step) {
    double largest = 0;
    for (int d = 0; d < dim; d++) largest = fabs(row[d]) > largest ? fabs(row[d]) : largest;
    check(fabs(step - largest / 127) <= largest / 127 * 0x1p-11 * 1.01 + 0x1p-25,
          "a step of %g for up to %g", step, largest);
    return step < 0x1p-14 ? largest / 127 + 127 * 0x1p-25 : step * 0.5001;
}

static void check_int8(const Attend *call, const void *rows, const uint16_t *scales, size_t row,
                       const double *expected, double rounding) {
    double most = half_step(expected, call->dim, from_fp16(scales[row / (size_t)call->dim]));
    for (int d = 0; d < call->dim; d++) {
        double kept = cached(call, rows, row + (size_t)d);
        check(fabs(kept - expected[d]) <= most + rounding, "%d: %g, not %g", d, kept, expected[d]);
    }
}

/* Keys and values of the tokens, rounded to the cache's type; nothing else of it has changed. */
static void compare_cache(const Problem *problem, double size) {
    const Attend *call = &problem->call;
    const size_t element = (size_t)call->cache_bits / 8;
    for (int t = 0; t < call->tokens; t++)
        for (int head = 0; head < call->kv_heads; head++) {
            size_t row = row_of(call, call->sequences[t], head, call->positions[t]);
            const float *value = call->qkv + (size_t)t * line_of(call) +
                                 (call->heads + call->kv_heads + head) * call->dim;
            double key_row[256], value_row[256];
            for (int d = 0; d < call->dim; d++) {
                key_row[d] = rotated(call, t, call->heads + head, d);
                value_row[d] = value[d];
            }
            if (call->cache_bits == 8) {
                check_int8(call, call->keys, call->key_scales, row, key_row, 1e-6 * size);
                check_int8(call, call->values, call->value_scales, row, value_row, 0);
            }
            for (int d = 0; call->cache_bits != 8 && d < call->dim; d++) {
                double key = key_row[d];
                double rounding = 1e-6 * size + (call->cache_bits == 16 ? fabs(key) / 255 + 5e-41 : 0);
                double kept = cached(call, call->keys, row + (size_t)d);
                check(fabs(kept - key) <= rounding, "token %d, key %d: %g, not %g", t, d, kept, key);
                double exactly = call->cache_bits == 16 ? from_bf16(nearest_bf16(value[d])) : value[d];
                kept = cached(call, call->values, row + (size_t)d);
                check(kept == exactly, "token %d, value %d: %g, not %g", t, d, kept, exactly);
            }
            for (int i = 0; i < 2; i++) /* so that what is left is what was there */
                memcpy((char *)(i ? call->values : call->keys) + row * element,
                       (char *)(i ? problem->values : problem->keys) + row * element,
                       (size_t)call->dim * element);
            call->key_scales[row / (size_t)call->dim] = 0x7E00;
            call->value_scales[row / (size_t)call->dim] = 0x7E00;
        }
    check(!memcmp(call->keys, problem->keys, problem->bytes) &&
              !memcmp(call->values, problem->values, problem->bytes) &&
              !memcmp(call->key_scales, problem->key_scales, problem->rows * 2) &&
              !memcmp(call->value_scales, problem->value_scales, problem->rows * 2),
          "another line of the cache has changed");
}

static void compare_head(const Attend *call, int token, int head, const float *out, Distance *distance) {
    const int keys = call->positions[token] + 1, from = head / (call->heads / call->kv_heads);
    double *p = exact((size_t)keys * sizeof *p), most = -INFINITY, total = 0;
    for (int key = 0; key < keys; key++) {
        size_t row = row_of(call, call->sequences[token], from, key);
        p[key] = 0;
        for (int d = 0; d < call->dim; d++)
            p[key] += rotated(call, token, head, d) * cached(call, call->keys, row + (size_t)d);
        p[key] /= sqrt(call->dim);
        most = p[key] > most ? p[key] : most;
    }
    for (int key = 0; key < keys; key++) total += p[key] = exp(p[key] - most);
    for (int d = 0; d < call->dim; d++) {
        double sum = 0, squares = 0;
        for (int key = 0; key < keys; key++) {
            size_t row = row_of(call, call->sequences[token], from, key);
            double term = p[key] / total * cached(call, call->values, row + (size_t)d);
            sum += term;
            squares += term * term;
        }
        add_distance(distance, out[d], sum, sqrt(squares));
    }
}

static void try_shape(const Kernels *kernels, Shape shape) {
    begin("%s attend: %d %s tokens after %d, %d x %d heads of %d, cache of %d bits, about %g",
          kernels->name, shape.tokens, shape.consecutive ? "consecutive" : "separate", shape.past,
          shape.kv_heads, shape.group, shape.dim, shape.bits, shape.size);
    Problem problem = new_problem(kernels, shape);
    const Attend *call = &problem.call;
    Distance distance = {0};
    float *out = compute(&problem);
    for (int t = 0; t < shape.tokens; t++)
        for (int head = 0; head < call->heads; head++)
            compare_head(call, t, head, out + (size_t)t * line_of(call) + head * call->dim, &distance);
    check_distance(kernels, shape.bits == 16  ? "attend, bf16 cache,"
                            : shape.bits == 8 ? "attend, int8 cache,"
                                              : "attend, fp32 cache,", 0, distance);
    compare_cache(&problem, shape.size);
    check_parts(part, &problem, shape.tokens, line_of(call), out);
    forget_all();
}

/* NaN in a query, a key or a value: whoever sees it gives NaN, nobody else notices. */
static void try_not_a_number(const Kernels *kernels, int where, int group, int past, int bits,
                             float what) {
    enum { TOKENS = 6, DIM = 32, KV_HEADS = 2 };
    static const char *const names[] = {"query", "key", "value"};
    begin("%s attend: %g in a %s, %d tokens after %d, %d queries a key, cache of %d bits",
          kernels->name, what, names[where], TOKENS, past, group, bits);
    Problem problem =
        new_problem(kernels, (Shape){DIM, past, KV_HEADS, group, TOKENS, bits, 1, 1, 1});
    const Attend *call = &problem.call;
    float *before = compute(&problem);
    const int token = between(0, TOKENS - 1), from = between(0, KV_HEADS - 1), column = between(0, DIM - 1);
    const int head = where == 0 ? from * group : call->heads + (where - 1) * KV_HEADS + from;
    ((float *)call->qkv)[(size_t)token * line_of(call) + (size_t)(head * DIM + column)] = what;
    float *out = compute(&problem);
    for (int t = 0; t < TOKENS; t++)
        for (int q = 0; q < call->heads; q++) {
            unsigned char is_nan[DIM] = {0};
            int meets = where == 0 ? t == token && q == head : t >= token && q / group == from;
            if (meets && (where < 2 || bits == 8)) memset(is_nan, 1, DIM);
            is_nan[column] = (unsigned char)meets;
            size_t place = (size_t)t * line_of(call) + (size_t)(q * DIM);
            check_spread_of_nan(out + place, before + place, 1, DIM, is_nan);
        }
    check_parts(part, &problem, TOKENS, line_of(call), out);
    forget_all();
}

static Shape random_shape(int dim, int past, int bits, int consecutive) {
    static const int groups[] = {1, 2, 3, 4, 5, 8};
    int group = groups[between(0, 5)];
    return (Shape){dim, past, between(1, group > 3 ? 1 : 2), group, between(1, 6),
                   bits, consecutive, 1, 1};
}

void test_attend(const Kernels *kernels, int count) {
    static const int dims[] = {16, 32, 48, 64, 80, 128, 256}, pasts[] = {0, 63, 64, 100};
    static const double sizes[] = {0, 1e-38, 1e-20, 1e15};
    for (int i = 0; i < 7 * 4; i++)
        for (int kind = 0; kind < 6; kind++)
            try_shape(kernels, random_shape(dims[i / 4], pasts[i % 4], 8 << kind % 3, kind / 3));
    for (int i = 0; i < count; i++)
        try_shape(kernels, random_shape(16 * between(1, 16), between(0, 200), 8 << between(0, 2),
                                        between(0, 1)));
    for (int i = 0; i < 8; i++) {
        Shape shape = random_shape(64, 70, i & 1 ? 16 : 32, 1);
        shape.size = shape.value_size = sizes[i / 2];
        if (shape.size > 1) shape.value_size = 1e30;
        try_shape(kernels, shape);
    }
    for (int i = 0; i < 6; i++) {
        /* steps of 0, too small for fp16, of one bit, of few bits, and beyond 127 * 65504 soon */
        static const double fp16s[] = {0, 1e-38, 5e-6, 1e-5, 1e-4, 1e4};
        Shape shape = random_shape(64, 0, 8, 1);
        shape.size = shape.value_size = fp16s[i];
        try_shape(kernels, shape);
    }
    for (int where = 0; where < 3; where++)
        for (int group = 1; group < 4; group++) {
            try_not_a_number(kernels, where, group, 0, 32, NAN);
            try_not_a_number(kernels, where, group, 61, 32, NAN);
            try_not_a_number(kernels, where, group, 61, 8, NAN);
            if (where) try_not_a_number(kernels, where, group, 0, 8, INFINITY);
            if (where) try_not_a_number(kernels, where, group, 61, 8, -1e8f);
        }
}
