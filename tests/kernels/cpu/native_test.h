/* What the tests of the native kernels share: random numbers, memory of exactly the size asked for,
 * weights packed as docs/format.md says, and comparisons that name their case. */
#ifndef NATIVE_TEST_H
#define NATIVE_TEST_H

#include "xverse_cpu.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void seed_with(uint64_t seed);
uint64_t random_bits(void);
int between(int least, int most); /* both included */
float normal(void);

/* Freed by forget_all, each block apart, so that an address sanitizer sees a step beyond it. */
void *exact(size_t bytes);
void *copy_of(const void *data, size_t bytes);
float *normals(size_t count, double size);
float *poisoned(size_t count); /* NaN */
void forget_all(void);

/* The case that failures name until the next one begins. */
__attribute__((format(printf, 1, 2))) void begin(const char *format, ...);
__attribute__((format(printf, 2, 3))) void check(int holds, const char *format, ...);
extern int failures;

/* Sums for the norm of a difference over the norm of what was expected. A sum's own size says little
 * where its terms cancel, so each is counted with the root of the sum of its squared terms. */
typedef struct {
    double difference, size;
    long count;
} Distance;
void add_distance(Distance *distance, double value, double expected, double terms);
void check_distance(const Kernels *kernels, const char *operation, Form form, Distance distance);
void report_distances(void);

/* The same bits, or NaN in both. */
void check_same(const float *value, const float *expected, size_t count, const char *what);
/* Lines of `row` values from `first` on are NaN throughout; the others have the bits expected. */
void check_spread_of_nan(const float *value, const float *expected, int lines, size_t row,
                         const unsigned char *is_nan);

/* Computes tokens [first, first + count) of a problem, in order, into `out`. */
typedef void Part(void *problem, int first, int count, float *out);
/* `whole`, bit for bit, for several numbers of threads and splits of the tokens into calls. */
extern uint64_t digest; /* of all bits that check_parts has seen */
void check_parts(Part *part, void *problem, int tokens, size_t row, const float *whole);

/* A matrix [rows, columns] before packing: bf16 bits, or integers and fp16 scales of 32 columns. */
typedef struct {
    Form form;
    int rows, columns;
    uint16_t *brains, *scales;
    int8_t *integers;
} Plain;
enum { FORMS = 3 };
extern const Form forms[FORMS];
const char *form_name(Form form);
int is_integer(Form form);
double from_bf16(uint16_t bits);
double from_fp16(uint16_t bits);
uint16_t nearest_bf16(double value);
Plain random_plain(Form form, int rows, int columns, double size);
double *plain_values(const Plain *plain); /* [rows, columns] */
size_t block_size(Form form, int columns);
void pack_block(const Plain *plain, int block, uint8_t *out);
uint8_t *pack_matrix(const Plain *plain);

/* x normed as fp32 norms it: squares that overflow make everything zero. */
void normed_line(const float *x, const float *norm, double eps, int columns, double *out);

void test_pool(void);
void test_linear(const Kernels *kernels, int count);
void test_experts(const Kernels *kernels, int count);
void test_route(const Kernels *kernels, int count);
void test_attend(const Kernels *kernels, int count);

#endif
