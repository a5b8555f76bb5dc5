/* The router. */
#include "native_test.h"

typedef struct {
    const Kernels *kernels;
    Route call;
} Problem;

/* What a call gives a token, one after the other: normed, logits, weights, ids. */
static size_t line_of(const Route *call) {
    return (size_t)(call->hidden + call->experts + 2 * (call->top_k + call->shared));
}

static void part(void *whole, int first, int count, float *out) {
    const Problem *problem = whole;
    Route call = problem->call;
    const size_t hidden = (size_t)call.hidden, experts = (size_t)call.experts;
    const size_t slots = (size_t)(call.top_k + call.shared), tokens = (size_t)count;
    call.x = copy_of(call.x + (size_t)first * hidden, tokens * hidden * 4);
    call.normed = poisoned(tokens * hidden);
    call.logits = poisoned(tokens * experts);
    call.weights = poisoned(tokens * slots);
    call.ids = exact(tokens * slots * 8);
    memset(call.ids, 0xFF, tokens * slots * 8);
    call.tokens = count;
    check(problem->kernels->route(&call) == 0, "an error instead of a result");
    for (size_t t = 0; t < tokens; t++) {
        memcpy(out, call.normed + t * hidden, hidden * 4);
        memcpy(out += hidden, call.logits + t * experts, experts * 4);
        memcpy(out += experts, call.weights + t * slots, slots * 4);
        out += slots;
        for (size_t s = 0; s < slots; s++) *out++ = (float)call.ids[t * slots + s];
    }
}

static float *compute(Problem *problem) {
    size_t tokens = (size_t)problem->call.tokens;
    float *out = poisoned(tokens * line_of(&problem->call));
    part(problem, 0, problem->call.tokens, out);
    return out;
}

static Problem new_problem(const Kernels *kernels, int tokens, int hidden, int experts, double size) {
    Problem problem = {.kernels = kernels};
    problem.call = (Route){.x = normals((size_t)(tokens * hidden), size),
                           .norm = normals((size_t)hidden, 1),
                           .router = normals((size_t)(experts * hidden), 2 / sqrt(hidden)),
                           .eps = 1e-6f, .tokens = tokens, .hidden = hidden, .experts = experts,
                           .top_k = between(1, experts < 8 ? experts : 8), .shared = between(0, 2)};
    return problem;
}

/* The likeliest by the logits that were given, of equals the first; then the shared ones. */
static void compare_choice(const Route *call, const float *logits, const float *weights,
                           const float *ids, Distance *distance) {
    double probability[256] = {0}, total = 0, chosen = 0, most = -INFINITY;
    int taken[256] = {0};
    for (int e = 0; e < call->experts; e++) most = logits[e] > most ? logits[e] : most;
    for (int e = 0; e < call->experts; e++) total += probability[e] = exp(logits[e] - most);
    for (int k = 0; k < call->top_k; k++) {
        int best = -1;
        for (int e = 0; e < call->experts; e++)
            if (!taken[e] && (best < 0 || logits[e] > logits[best])) best = e;
        taken[best] = 1;
        chosen += probability[best] / total;
        check(ids[k] == (float)best, "choice %d is expert %g, not %d", k, ids[k], best);
    }
    for (int k = 0; k < call->top_k; k++) {
        int id = ids[k] >= 0 && ids[k] < (float)call->experts ? (int)ids[k] : 0;
        double expected = probability[id] / total / (chosen + 1e-6);
        add_distance(distance, weights[k], expected, expected);
    }
    for (int s = call->top_k; s < call->top_k + call->shared; s++)
        check(ids[s] == (float)(call->experts + s - call->top_k) && weights[s] == 1,
              "shared slot %d is expert %g with weight %g", s, ids[s], weights[s]);
}

static void compare(const Problem *problem, const float *out) {
    const Route *call = &problem->call;
    Distance normed = {0}, logits = {0}, weights = {0};
    double *x = exact((size_t)call->hidden * sizeof *x);
    for (int t = 0; t < call->tokens; t++, out += line_of(call)) {
        const float *of_logits = out + call->hidden, *of_weights = of_logits + call->experts;
        normed_line(call->x + t * call->hidden, call->norm, call->eps, call->hidden, x);
        for (int k = 0; k < call->hidden; k++) add_distance(&normed, out[k], x[k], x[k]);
        for (int e = 0; e < call->experts; e++) {
            double sum = 0, squares = 0;
            for (int k = 0; k < call->hidden; k++) {
                double term = x[k] * call->router[e * call->hidden + k];
                sum += term;
                squares += term * term;
            }
            add_distance(&logits, of_logits[e], sum, sqrt(squares));
        }
        compare_choice(call, of_logits, of_weights, of_weights + call->top_k + call->shared,
                       &weights);
    }
    check_distance(problem->kernels, "norm", 0, normed);
    check_distance(problem->kernels, "logits", 0, logits);
    check_distance(problem->kernels, "routing weights", 0, weights);
}

static void try_random(const Kernels *kernels, int number) {
    static const double sizes[] = {1, 1, 1, 0, 1e-40, 1e-20, 1e15, 1e30};
    int tokens = between(1, 9), experts = between(1, 70);
    int hidden = between(0, 1) ? between(1, 300) : 32 * between(1, 10);
    double size = sizes[number % 8];
    Problem problem = new_problem(kernels, tokens, hidden, experts, size);
    begin("%s route %d: %d tokens of about %g, hidden %d, %d of %d experts", kernels->name, number,
          tokens, size, hidden, problem.call.top_k, experts);
    if (experts > 2) /* equals */
        memcpy((float *)problem.call.router + hidden, problem.call.router, (size_t)hidden * 4);
    float *out = compute(&problem);
    compare(&problem, out);
    check_parts(part, &problem, tokens, line_of(&problem.call), out);
    forget_all();
}

/* Ids stay in range, so that what comes after reads no other memory. */
static void try_not_a_number(const Kernels *kernels) {
    enum { TOKENS = 5, HIDDEN = 100, EXPERTS = 11 };
    Problem problem = new_problem(kernels, TOKENS, HIDDEN, EXPERTS, 1);
    const Route *call = &problem.call;
    const size_t line = line_of(call);
    begin("%s route: NaN", kernels->name);
    float *before = compute(&problem);
    ((float *)call->x)[2 * HIDDEN + 7] = NAN;
    float *out = compute(&problem), *weights = out + 2 * line + HIDDEN + EXPERTS;
    for (int k = 0; k < call->top_k; k++) {
        float id = weights[call->top_k + call->shared + k];
        check(weights[k] != weights[k], "weight %d is %g", k, weights[k]);
        check(id >= 0 && id < EXPERTS, "choice %d is expert %g", k, id);
        for (int j = 0; j < k; j++)
            check(id != weights[call->top_k + call->shared + j], "expert %g twice", id);
    }
    check_same(out, before, 2 * line, "tokens before");
    check_same(out + 3 * line, before + 3 * line, 2 * line, "tokens after");
    forget_all();
}

void test_route(const Kernels *kernels, int count) {
    for (int number = 0; number < count; number++) try_random(kernels, number);
    try_not_a_number(kernels);
}
