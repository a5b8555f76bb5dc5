/* Dense layers. */
#include "native_test.h"

typedef struct {
    const Kernels *kernels;
    Linear call;
    Plain plain[MATRICES];
    int outs;
} Problem;

static void part(void *whole, int first, int count, float *out) {
    const Problem *problem = whole;
    Linear call = problem->call;
    size_t columns = (size_t)call.columns, outs = (size_t)problem->outs;
    call.x = copy_of(call.x + (size_t)first * columns, (size_t)count * columns * 4);
    if (call.residual)
        call.residual = copy_of(call.residual + (size_t)first * outs, (size_t)count * outs * 4);
    call.out = out;
    call.tokens = count;
    check(problem->kernels->linear(&call) == 0, "an error instead of a result");
}

static float *compute(Problem *problem) {
    float *out = poisoned((size_t)problem->call.tokens * (size_t)problem->outs);
    part(problem, 0, problem->call.tokens, out);
    return out;
}

static Problem new_problem(const Kernels *kernels, int tokens, int columns, double size, int count,
                           const Form *of, const int *rows) {
    Problem problem = {.kernels = kernels};
    problem.call = (Linear){.tokens = tokens, .columns = columns, .count = count, .eps = 1e-6f,
                            .x = normals((size_t)(tokens * columns), size)};
    for (int m = 0; m < count; m++) {
        problem.plain[m] = random_plain(of[m], rows[m], columns, 0.05);
        problem.call.matrices[m] =
            (Matrix){.data = pack_matrix(&problem.plain[m]), .rows = rows[m], .form = of[m]};
        problem.outs += rows[m];
    }
    return problem;
}

static void add_options(Problem *problem, int norm, int bias, int residual) {
    Linear *call = &problem->call;
    if (norm) call->norm = normals((size_t)call->columns, 1);
    if (residual) call->residual = normals((size_t)(call->tokens * problem->outs), 1);
    for (int m = 0; bias && m < call->count; m++)
        if (m != 1) call->matrices[m].bias = normals((size_t)call->matrices[m].rows, 1);
}

/* One matrix's columns of the output, from `base` on. */
static void compare(const Problem *problem, int m, int base, const float *out) {
    const Linear *call = &problem->call;
    const Plain *plain = &problem->plain[m];
    Distance distance = {0};
    double *x = exact((size_t)call->columns * sizeof *x), *weights = plain_values(plain);
    for (int t = 0; t < call->tokens; t++) {
        const float *line = call->x + t * call->columns;
        if (call->norm) normed_line(line, call->norm, call->eps, call->columns, x);
        else
            for (int k = 0; k < call->columns; k++) x[k] = line[k];
        for (int row = 0; row < plain->rows; row++) {
            double sum = 0, squares = 0;
            for (int k = 0; k < call->columns; k++) {
                double term = x[k] * weights[row * call->columns + k];
                sum += term;
                squares += term * term;
            }
            int place = t * problem->outs + base + row;
            if (call->matrices[m].bias) sum += call->matrices[m].bias[row];
            if (call->residual) sum += call->residual[place];
            add_distance(&distance, out[place], sum, sqrt(squares));
        }
    }
    check_distance(problem->kernels, "linear", plain->form, distance);
}

static void compare_all(const Problem *problem, const float *out) {
    for (int m = 0, base = 0; m < problem->call.count; base += problem->plain[m++].rows)
        compare(problem, m, base, out);
}

static void try_random(const Kernels *kernels, int number) {
    Form of[MATRICES];
    int rows[MATRICES], count = between(1, MATRICES), quantised = 0;
    for (int m = 0; m < MATRICES; m++) {
        of[m] = forms[number % 4 < FORMS ? number % 4 : between(0, FORMS - 1)];
        rows[m] = between(0, 2) ? between(1, 70) : 16 * between(1, 5);
        if (m < count) quantised |= is_integer(of[m]);
    }
    int columns = quantised ? 32 * between(1, 14) : 16 * between(1, 28), tokens = between(1, 14);
    Problem problem = new_problem(kernels, tokens, columns, 1, count, of, rows);
    add_options(&problem, between(0, 1), between(0, 1), between(0, 1));
    begin("%s linear %d: %d tokens, %d columns, %d matrices, %d rows of %s first%s%s", kernels->name,
          number, tokens, columns, count, rows[0], form_name(of[0]),
          problem.call.norm ? ", norm" : "", problem.call.residual ? ", residual" : "");
    float *out = compute(&problem);
    compare_all(&problem, out);
    check_parts(part, &problem, tokens, (size_t)problem.outs, out);
    forget_all();
}

/* Several runs of row blocks on several threads, and every number of tokens of a tile. */
static void try_large(const Kernels *kernels, Form form) {
    const Form of[2] = {form, form};
    const int rows[2] = {700, 37};
    for (int tokens = 1; tokens <= 13; tokens += 4) {
        begin("%s linear: %d tokens, 737 rows of %s", kernels->name, tokens, form_name(form));
        Problem problem = new_problem(kernels, tokens, 96, 1, 2, of, rows);
        float *out = compute(&problem);
        compare_all(&problem, out);
        check_parts(part, &problem, tokens, (size_t)problem.outs, out);
        forget_all();
    }
}

static void try_sizes(const Kernels *kernels, Form form) {
    static const double sizes[] = {1e30, 1e15, 1e-15, 1e-30};
    const int rows[1] = {83};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        for (int norm = 0; norm < 2; norm++) {
            begin("%s linear: %s times %g%s", kernels->name, form_name(form), sizes[i],
                  norm ? ", norm" : "");
            Problem problem = new_problem(kernels, 5, 96, sizes[i], 1, &form, rows);
            add_options(&problem, norm, 0, 0);
            float *out = compute(&problem);
            compare_all(&problem, out);
            forget_all();
        }
}

/* Zeros add nothing to bias and residual; numbers too small for fp32 are as good as zeros. */
static void try_nothing(const Kernels *kernels, Form form) {
    const int rows[1] = {83};
    static const double sizes[] = {0, 1e-41};
    for (int i = 0; i < 2; i++) {
        begin("%s linear: %s times %g", kernels->name, form_name(form), sizes[i]);
        Problem problem = new_problem(kernels, 3, 96, sizes[i], 1, &form, rows);
        add_options(&problem, 0, 1, 1);
        float *out = compute(&problem), *expected = poisoned(3 * 83);
        for (int place = 0; place < 3 * 83; place++)
            expected[place] =
                problem.call.matrices[0].bias[place % 83] + problem.call.residual[place];
        check_same(out, expected, 3 * 83, "bias and residual alone");
        forget_all();
    }
}

static void try_not_a_number(const Kernels *kernels, Form form, float value, int norm) {
    enum { TOKENS = 8, OUTS = 53 };
    const int rows[1] = {OUTS};
    unsigned char is_nan[TOKENS * OUTS] = {0};
    begin("%s linear: %s times %g%s", kernels->name, form_name(form), value, norm ? ", norm" : "");
    Problem problem = new_problem(kernels, TOKENS, 96, 1, 1, &form, rows);
    add_options(&problem, norm, 1, 0);
    float *before = compute(&problem);
    int token = between(0, TOKENS - 1);
    ((float *)problem.call.x)[token * 96 + between(0, 95)] = value;
    memset(is_nan + token * OUTS, 1, OUTS);
    float *out = compute(&problem);
    check_spread_of_nan(out, before, TOKENS, OUTS, is_nan);
    check_parts(part, &problem, TOKENS, OUTS, out);
    forget_all();
}

void test_linear(const Kernels *kernels, int count) {
    for (int number = 0; number < count; number++) try_random(kernels, number);
    for (int i = 0; i < FORMS; i++) {
        try_large(kernels, forms[i]);
        try_sizes(kernels, forms[i]);
        try_nothing(kernels, forms[i]);
        try_not_a_number(kernels, forms[i], NAN, 0);
        try_not_a_number(kernels, forms[i], NAN, 1);
        if (is_integer(forms[i])) try_not_a_number(kernels, forms[i], INFINITY, 0);
    }
}
