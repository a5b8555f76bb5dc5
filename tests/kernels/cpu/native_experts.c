/* Experts: packed SwiGLU blocks, found through a table. */
#include "native_test.h"

enum { MOST_EXPERTS = 12 };

typedef struct {
    const Kernels *kernels;
    Experts call;
    Plain gate[MOST_EXPERTS], up[MOST_EXPERTS], down[MOST_EXPERTS];
} Problem;

typedef struct {
    Form form;
    int tokens, slots, experts, hidden, width;
    double size; /* of x */
} Shape;

typedef struct { double *gate, *up, *down; } Values;

static size_t lines(const Problem *problem) {
    return (size_t)problem->call.tokens * (size_t)problem->call.hidden;
}

static void part(void *whole, int first, int count, float *out) {
    const Problem *problem = whole;
    Experts call = problem->call;
    const size_t hidden = (size_t)call.hidden, slots = (size_t)call.slots;
    const size_t from = (size_t)first, tokens = (size_t)count;
    call.x = copy_of(call.x + from * hidden, tokens * hidden * 4);
    call.residual = copy_of(call.residual + from * hidden, tokens * hidden * 4);
    call.weights = copy_of(call.weights + from * slots, tokens * slots * 4);
    call.ids = copy_of(call.ids + from * slots, tokens * slots * 8);
    call.out = out;
    call.tokens = count;
    check(problem->kernels->experts(&call) == 0, "an error instead of a result");
}

static float *compute(Problem *problem) {
    float *out = poisoned(lines(problem));
    part(problem, 0, problem->call.tokens, out);
    return out;
}

/* Distinct experts for each token, in any order; the last expert gets none unless there are few. */
static int64_t *random_ids(const Shape *shape) {
    const int slots = shape->slots, spare = shape->experts > slots;
    int64_t *ids = exact((size_t)(shape->tokens * slots) * sizeof *ids);
    for (int t = 0; t < shape->tokens; t++)
        for (int s = 0; s < slots; s++) {
            int taken;
            do {
                ids[t * slots + s] = between(0, shape->experts - 1 - spare);
                taken = 0;
                for (int before = 0; before < s; before++)
                    taken |= ids[t * slots + before] == ids[t * slots + s];
            } while (taken);
        }
    return ids;
}

/* Expert blocks in a random order; without zeros at the end the last one ends the memory. */
static void pack_experts(Problem *problem, int padded) {
    Experts *call = &problem->call;
    const size_t wide = block_size(call->form, call->hidden);
    const size_t narrow = block_size(call->form, call->width);
    const int halves = call->width / 16, blocks = call->hidden / 16;
    call->block_bytes = (size_t)(2 * halves) * wide + (size_t)blocks * narrow;
    if (padded) call->block_bytes = (call->block_bytes + 4095) / 4096 * 4096;
    int32_t *table = exact((size_t)call->experts * sizeof *table);
    uint8_t *data = exact((size_t)call->experts * call->block_bytes);
    memset(data, 0, (size_t)call->experts * call->block_bytes);
    for (int e = 0; e < call->experts; e++) {
        int other = between(0, e);
        table[e] = table[other];
        table[other] = e;
    }
    for (int e = 0; e < call->experts; e++) {
        uint8_t *block = data + (size_t)table[e] * call->block_bytes;
        for (int b = 0; b < halves; b++, block += 2 * wide) {
            pack_block(&problem->gate[e], b, block);
            pack_block(&problem->up[e], b, block + wide);
        }
        for (int b = 0; b < blocks; b++, block += narrow) pack_block(&problem->down[e], b, block);
    }
    call->table = table;
    call->blocks = data;
}

static Problem new_problem(const Kernels *kernels, Shape shape) {
    Problem problem = {.kernels = kernels};
    size_t line = (size_t)(shape.tokens * shape.hidden);
    problem.call = (Experts){.x = normals(line, shape.size), .residual = normals(line, 1),
                             .weights = normals((size_t)(shape.tokens * shape.slots), 1),
                             .ids = random_ids(&shape), .tokens = shape.tokens,
                             .slots = shape.slots, .experts = shape.experts,
                             .hidden = shape.hidden, .width = shape.width, .form = shape.form};
    for (int e = 0; e < shape.experts; e++) {
        problem.gate[e] = random_plain(shape.form, shape.width, shape.hidden, 0.1);
        problem.up[e] = random_plain(shape.form, shape.width, shape.hidden, 0.1);
        problem.down[e] = random_plain(shape.form, shape.hidden, shape.width, 0.1);
    }
    pack_experts(&problem, between(0, 1));
    return problem;
}

/* Adds a token's share of an expert, and the squares of its terms. */
static void add_expert(const Experts *call, const Values *expert, const float *x, double weight,
                       double *sums, double *squares) {
    const int hidden = call->hidden, width = call->width;
    double *h = exact((size_t)width * sizeof *h);
    for (int i = 0; i < width; i++) {
        double g = 0, u = 0;
        for (int k = 0; k < hidden; k++) {
            g += x[k] * expert->gate[i * hidden + k];
            u += x[k] * expert->up[i * hidden + k];
        }
        h[i] = g / (1 + exp(-g)) * u;
    }
    for (int r = 0; r < hidden; r++)
        for (int i = 0; i < width; i++) {
            double term = weight * expert->down[r * width + i] * h[i];
            sums[r] += term;
            squares[r] += term * term;
        }
}

static void compare(const Problem *problem, const float *out) {
    const Experts *call = &problem->call;
    const size_t bytes = (size_t)call->hidden * sizeof(double);
    double *sums = exact(bytes), *squares = exact(bytes);
    Distance distance = {0};
    Values values[MOST_EXPERTS];
    for (int e = 0; e < call->experts; e++)
        values[e] = (Values){plain_values(&problem->gate[e]), plain_values(&problem->up[e]),
                             plain_values(&problem->down[e])};
    for (int t = 0; t < call->tokens; t++) {
        memset(sums, 0, bytes);
        memset(squares, 0, bytes);
        for (int s = 0; s < call->slots; s++)
            add_expert(call, &values[call->ids[t * call->slots + s]], call->x + t * call->hidden,
                       call->weights[t * call->slots + s], sums, squares);
        for (int r = 0; r < call->hidden; r++) {
            int place = t * call->hidden + r;
            add_distance(&distance, out[place], sums[r] + call->residual[place], sqrt(squares[r]));
        }
    }
    check_distance(problem->kernels, "experts", call->form, distance);
}

static void try_shape(const Kernels *kernels, const char *name, Shape shape) {
    begin("%s experts, %s: %d tokens of about %g, %d of %d experts, hidden %d, width %d, %s",
          kernels->name, name, shape.tokens, shape.size, shape.slots, shape.experts, shape.hidden,
          shape.width, form_name(shape.form));
    Problem problem = new_problem(kernels, shape);
    if (shape.size < 1) /* it would hide the sums */
        memset((float *)problem.call.residual, 0, lines(&problem) * 4);
    float *out = compute(&problem);
    compare(&problem, out);
    check_parts(part, &problem, shape.tokens, (size_t)shape.hidden, out);
    forget_all();
}

static void try_random(const Kernels *kernels, int number) {
    int experts = between(1, 9), slots = between(1, experts < 4 ? experts : 4);
    Shape shape = {forms[number % FORMS], between(1, 14), slots, experts,
                   32 * between(1, 5), 32 * between(1, 5), 1};
    char name[32];
    snprintf(name, sizeof name, "random %d", number);
    try_shape(kernels, name, shape);
}

/* Zeros, and what is too small for fp32, leave the residual as it is. */
static void try_nothing(const Kernels *kernels, Form form) {
    static const double sizes[] = {0, 1e-41};
    for (int i = 0; i < 2; i++) {
        begin("%s experts: %s times %g", kernels->name, form_name(form), sizes[i]);
        Problem problem = new_problem(kernels, (Shape){form, 3, 2, 4, 64, 96, sizes[i]});
        check_same(compute(&problem), problem.call.residual, lines(&problem), "the residual alone");
        forget_all();
    }
}

/* A token whose gate times up is beyond fp32 gives no finite number, and the others what they did. */
static void try_overflow(const Kernels *kernels, Form form) {
    enum { TOKENS = 7, HIDDEN = 96 };
    Problem problem = new_problem(kernels, (Shape){form, TOKENS, 2, 3, HIDDEN, 64, 1});
    float *before = compute(&problem);
    int token = between(0, TOKENS - 1);
    for (int k = 0; k < HIDDEN; k++) ((float *)problem.call.x)[token * HIDDEN + k] *= 1e30f;
    begin("%s experts: %s times 1e30 in token %d", kernels->name, form_name(form), token);
    float *out = compute(&problem);
    for (int i = 0; i < TOKENS * HIDDEN; i++)
        if (i / HIDDEN == token) check(!isfinite(out[i]), "value %d is %g", i % HIDDEN, out[i]);
        else check_same(out + i, before + i, 1, "another token");
    forget_all();
}

static void try_not_a_number(const Kernels *kernels, Form form) {
    enum { TOKENS = 9, HIDDEN = 64, SLOTS = 2 };
    for (int where = 0; where < 3; where++) {
        unsigned char is_nan[TOKENS * HIDDEN] = {0};
        begin("%s experts: %s, NaN in %s", kernels->name, form_name(form),
              where == 0 ? "x" : where == 1 ? "a weight" : "the residual");
        Problem problem = new_problem(kernels, (Shape){form, TOKENS, SLOTS, 4, HIDDEN, 96, 1});
        const Experts *call = &problem.call;
        float *before = compute(&problem);
        int token = between(0, TOKENS - 1), column = between(0, HIDDEN - 1);
        if (where == 0) ((float *)call->x)[token * HIDDEN + column] = NAN;
        if (where == 1) ((float *)call->weights)[token * SLOTS] = NAN;
        if (where == 2) ((float *)call->residual)[token * HIDDEN + column] = NAN;
        if (where < 2) memset(is_nan + token * HIDDEN, 1, HIDDEN);
        is_nan[token * HIDDEN + column] = 1;
        float *out = compute(&problem);
        check_spread_of_nan(out, before, TOKENS, HIDDEN, is_nan);
        check_parts(part, &problem, TOKENS, HIDDEN, out);
        forget_all();
    }
}

/* An expert without a block gives what a weight of zero gives; -1 for an id that is no expert's. */
static void try_missing(const Kernels *kernels, Form form) {
    enum { TOKENS = 3, SLOTS = 2, EXPERTS = 4 };
    begin("%s experts: %s, missing ones", kernels->name, form_name(form));
    Problem problem = new_problem(kernels, (Shape){form, TOKENS, SLOTS, EXPERTS, 32, 64, 1});
    Experts *call = &problem.call;
    int32_t *table = (int32_t *)call->table;
    int64_t *ids = (int64_t *)call->ids;
    float *weights = copy_of(call->weights, sizeof(float) * TOKENS * SLOTS);
    const float *all = call->weights;
    for (int i = 0; i < TOKENS * SLOTS; i++) weights[i] = ids[i] == ids[3] ? 0 : weights[i];
    call->weights = weights;
    float *without = compute(&problem);
    call->weights = all;
    table[EXPERTS - 1] = -1;
    table[ids[3]] = -1;
    check_same(compute(&problem), without, lines(&problem), "a missing expert");
    for (int e = 0; e < EXPERTS; e++) table[e] = -1;
    check_same(compute(&problem), call->residual, lines(&problem), "no expert at all");
    static const int64_t beyond[] = {-1, EXPERTS, INT64_MAX, INT64_MIN};
    call->out = poisoned(lines(&problem));
    for (int i = 0; i < 4; i++) {
        ids[5] = beyond[i];
        check(kernels->experts(call) == -1, "expert %lld is found", (long long)beyond[i]);
    }
    forget_all();
}

static void part_apart(void *whole, int first, int count, float *out) {
    const Problem *problem = whole;
    Experts call = problem->call;
    const size_t hidden = (size_t)call.hidden, slots = (size_t)call.slots;
    const size_t from = (size_t)first, tokens = (size_t)count;
    call.x = copy_of(call.x + from * hidden, tokens * hidden * 4);
    call.weights = copy_of(call.weights + from * slots, tokens * slots * 4);
    call.ids = copy_of(call.ids + from * slots, tokens * slots * 8);
    call.residual = NULL;
    call.parts = out;
    call.tokens = count;
    check(problem->kernels->experts(&call) == 0, "an error instead of a result");
}

static float *zeros(size_t count) { return memset(exact(count * 4), 0, count * 4); }

/* What a token's slot gives when it is computed alone. */
static float *alone(const Problem *problem, int place) {
    const size_t hidden = (size_t)problem->call.hidden;
    Experts call = problem->call;
    call.x = copy_of(call.x + (size_t)(place / call.slots) * hidden, hidden * 4);
    call.weights = copy_of(call.weights + place, 4);
    call.ids = copy_of(call.ids + place, 8);
    call.residual = zeros(hidden);
    call.out = poisoned(hidden);
    call.tokens = call.slots = 1;
    check(problem->kernels->experts(&call) == 0, "an error instead of a result");
    return call.out;
}

/* Every slot apart has the bits of the same slot alone, and zeros where the expert is not here. */
static void try_apart(const Kernels *kernels, Shape shape) {
    begin("%s experts apart, %s: %d tokens, %d of %d experts, hidden %d, width %d", kernels->name,
          form_name(shape.form), shape.tokens, shape.slots, shape.experts, shape.hidden,
          shape.width);
    Problem problem = new_problem(kernels, shape);
    Experts *call = &problem.call;
    const size_t hidden = (size_t)call->hidden, row = (size_t)call->slots * hidden;
    const int places = call->tokens * call->slots;
    float *expected = exact((size_t)places * hidden * 4);
    for (int i = 0; i < places; i++)
        memcpy(expected + (size_t)i * hidden, alone(&problem, i), hidden * 4);
    for (int missing = 0; missing < 3; missing++) {
        int32_t *table = copy_of(call->table, (size_t)call->experts * sizeof *table);
        for (int e = 0; e < call->experts; e++)
            if (missing == 2 || (missing == 1 && between(0, 1))) table[e] = -1;
        for (int i = 0; i < places; i++)
            if (table[call->ids[i]] < 0) memset(expected + (size_t)i * hidden, 0, hidden * 4);
        call->table = table;
        float *out = poisoned((size_t)call->tokens * row);
        part_apart(&problem, 0, call->tokens, out);
        check_same(out, expected, (size_t)call->tokens * row, missing ? "with gaps" : "all");
        check_parts(part_apart, &problem, call->tokens, row, out);
    }
    forget_all();
}

/* Infinity and NaN stay in their slots: none of the others is touched by them. */
static void try_apart_not_a_number(const Kernels *kernels, Form form) {
    enum { TOKENS = 4, SLOTS = 3, HIDDEN = 64 };
    begin("%s experts apart: %s, NaN in a weight", kernels->name, form_name(form));
    Problem problem = new_problem(kernels, (Shape){form, TOKENS, SLOTS, 5, HIDDEN, 96, 1});
    unsigned char is_nan[TOKENS * SLOTS * HIDDEN] = {0};
    float before[TOKENS * SLOTS * HIDDEN], after[TOKENS * SLOTS * HIDDEN];
    int place = between(0, TOKENS * SLOTS - 1);
    part_apart(&problem, 0, TOKENS, before);
    ((float *)problem.call.weights)[place] = NAN;
    memset(is_nan + place * HIDDEN, 1, HIDDEN);
    part_apart(&problem, 0, TOKENS, after);
    check_spread_of_nan(after, before, TOKENS * SLOTS, HIDDEN, is_nan);
    forget_all();
}

void test_experts(const Kernels *kernels, int count) {
    for (int number = 0; number < count; number++) try_random(kernels, number);
    for (int i = 0; i < FORMS; i++) {
        Form form = forms[i];
        try_shape(kernels, "one token", (Shape){form, 1, 3, 8, 160, 96, 1});
        try_shape(kernels, "many tokens", (Shape){form, 43, 3, 5, 96, 96, 1});
        try_shape(kernels, "one expert", (Shape){form, 21, 1, 1, 96, 64, 1});
        try_shape(kernels, "one of many", (Shape){form, 15, 1, 2, 96, 32, 1});
        try_shape(kernels, "many rows", (Shape){form, 9, 2, 3, 704, 96, 1});
        try_shape(kernels, "large values", (Shape){form, 5, 2, 3, 96, 64, 1e15});
        try_shape(kernels, "small values", (Shape){form, 5, 2, 3, 96, 64, 1e-15});
        try_nothing(kernels, form);
        try_overflow(kernels, form);
        try_not_a_number(kernels, form);
        try_missing(kernels, form);
        try_apart(kernels, (Shape){form, 1, 8, 12, 160, 96, 1});
        try_apart(kernels, (Shape){form, 5, 3, 7, 64, 160, 1});
        try_apart(kernels, (Shape){form, 13, 2, 3, 288, 32, 1});
        try_apart_not_a_number(kernels, form);
    }
}
