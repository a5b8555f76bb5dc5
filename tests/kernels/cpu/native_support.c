/* Random numbers, memory, and comparisons. */
#include "native_test.h"

#include <stdarg.h>

static uint64_t state;

void seed_with(uint64_t seed) { state = seed; }

/* Steele, Lea and Flood 2014: splitmix64. */
uint64_t random_bits(void) {
    uint64_t z = state += UINT64_C(0x9E3779B97F4A7C15);
    z = (z ^ z >> 30) * UINT64_C(0xBF58476D1CE4E5B9);
    z = (z ^ z >> 27) * UINT64_C(0x94D049BB133111EB);
    return z ^ z >> 31;
}

int between(int least, int most) {
    return least + (int)(random_bits() % (uint64_t)(most - least + 1));
}

/* Twelve uniform numbers: every machine adds them to the same one. */
float normal(void) {
    int sum = -6 * 0xFFFF;
    for (int i = 0; i < 3; i++)
        for (uint64_t bits = random_bits(), k = 0; k < 4; k++, bits >>= 16) sum += bits & 0xFFFF;
    return (float)sum / 0x1p16f;
}

typedef struct Memory { struct Memory *next; void *data; } Memory;
static Memory *memories;

void *exact(size_t bytes) {
    Memory *memory = malloc(sizeof *memory);
    void *data = malloc(bytes);
    if (!memory || (!data && bytes)) {
        fprintf(stderr, "no memory for %zu bytes\n", bytes);
        exit(2);
    }
    *memory = (Memory){memories, data};
    memories = memory;
    return data;
}

void forget_all(void) {
    for (Memory *next; memories; memories = next) {
        next = memories->next;
        free(memories->data);
        free(memories);
    }
}

void *copy_of(const void *data, size_t bytes) {
    void *copy = exact(bytes);
    return bytes ? memcpy(copy, data, bytes) : copy;
}

float *normals(size_t count, double size) {
    float *values = exact(count * sizeof *values);
    for (size_t i = 0; i < count; i++) values[i] = (float)(normal() * size);
    return values;
}

float *poisoned(size_t count) {
    float *values = exact(count * sizeof *values);
    for (size_t i = 0; i < count; i++) values[i] = NAN;
    return values;
}

static char current[256];
int failures;

void begin(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(current, sizeof current, format, arguments);
    va_end(arguments);
}

void check(int holds, const char *format, ...) {
    enum { SHOWN = 50 };
    if (holds || failures++ >= SHOWN) return;
    va_list arguments;
    va_start(arguments, format);
    printf("FAIL %s: ", current);
    vprintf(format, arguments);
    printf("\n");
    va_end(arguments);
}

static struct Worst {
    const char *set, *operation;
    Form form;
    double most;
} worst[64];
static int worsts;

void add_distance(Distance *distance, double value, double expected, double terms) {
    distance->difference += (value - expected) * (value - expected);
    distance->size += terms * terms;
    distance->count++;
}

/* Rounding activations to integers costs 0.5 to 0.9 %. The fewer the values, the further
 * they are from an average. */
enum { MANY = 4000, FEW = 200 };
static double bound(Form form, long count) {
    if (!is_integer(form)) return 1e-5;
    return count < FEW ? 0.04 : count < MANY ? 0.02 : 0.01;
}

void check_distance(const Kernels *kernels, const char *operation, Form form, Distance distance) {
    enum { MOST = sizeof worst / sizeof *worst };
    double error = sqrt(distance.difference / distance.size);
    if (distance.size == 0) error = distance.difference == 0 ? 0 : INFINITY;
    double most = bound(form, distance.count);
    check(error <= most, "%s is %.3g from the exact result, more than %g", form_name(form), error,
          most);
    if (is_integer(form) && distance.count < MANY) return;
    int i = 0;
    while (i < worsts && (worst[i].set != kernels->name || worst[i].form != form ||
                          strcmp(worst[i].operation, operation)))
        i++;
    if (i == MOST) return;
    if (i == worsts) worst[worsts++] = (struct Worst){kernels->name, operation, form, 0};
    if (!(error <= worst[i].most)) worst[i].most = error;
}

void report_distances(void) {
    for (int i = 0; i < worsts; i++)
        printf("%s %s %s: at most %.2g from the exact result\n", worst[i].set, worst[i].operation,
               form_name(worst[i].form), worst[i].most);
}

static int same(float a, float b) { return memcmp(&a, &b, sizeof a) == 0 || (a != a && b != b); }

void check_same(const float *value, const float *expected, size_t count, const char *what) {
    for (size_t i = 0; i < count; i++)
        if (!same(value[i], expected[i])) {
            check(0, "%s: value %zu is %.9g, not %.9g", what, i, value[i], expected[i]);
            return;
        }
}

void check_spread_of_nan(const float *value, const float *expected, int lines, size_t row,
                         const unsigned char *is_nan) {
    for (size_t i = 0; i < (size_t)lines * row; i++) {
        int holds = is_nan[i] ? value[i] != value[i] : same(value[i], expected[i]);
        if (holds) continue;
        check(0, "NaN in: value %zu of token %zu is %g, not %g", i % row, i / row, value[i],
              is_nan[i] ? NAN : expected[i]);
        return;
    }
}

/* Fowler, Noll and Vo: FNV-1a, over values. */
uint64_t digest;
static void add_to_digest(const float *values, size_t count) {
    for (size_t i = 0; i < count; i++) {
        uint32_t bits = 0x7FC00000;
        if (values[i] == values[i]) memcpy(&bits, values + i, 4);
        digest = (digest ^ bits) * UINT64_C(0x100000001B3);
    }
}

void check_parts(Part *part, void *problem, int tokens, size_t row, const float *whole) {
    static const int threads[] = {1, 2, 3, 7};
    enum { ALL, ONES, ANY, SPLITS };
    add_to_digest(whole, (size_t)tokens * row);
    for (size_t i = 0; i < sizeof threads / sizeof *threads; i++)
        for (int split = ALL; split < SPLITS; split++) {
            char what[64];
            pool_resize(threads[i]);
            float *out = poisoned((size_t)tokens * row);
            for (int first = 0, some; first < tokens; first += some) {
                int rest = tokens - first;
                some = split == ALL ? rest : split == ONES ? 1 : between(1, rest);
                float *lines = poisoned((size_t)some * row);
                part(problem, first, some, lines);
                memcpy(out + (size_t)first * row, lines, (size_t)some * row * sizeof *out);
            }
            snprintf(what, sizeof what, "%d threads, %s", threads[i],
                     split == ALL ? "one call" : split == ONES ? "token by token" : "random split");
            check_same(out, whole, (size_t)tokens * row, what);
        }
}
