/* What the parts of the extension share: jobs, the thread pool, and the table of an instruction
 * set's kernels. Shapes: T tokens, H hidden width, I expert width, K columns, N rows, S slots a
 * token (chosen and shared experts). All activations are fp32, all matrices row-major. */
#ifndef XVERSE_CPU_H
#define XVERSE_CPU_H

#include <stddef.h>
#include <stdint.h>

enum { ROWS = 16, GROUP = 32, CHUNK_COLUMNS = 64, MATRICES = 4 };

typedef enum { BF16 = 16, INT8 = 8, INT4 = 4 } Form;

/* Bytes of 16 packed rows. */
static inline size_t row_block_bytes(Form form, int columns) {
    size_t bits = (size_t)columns * form / 8;
    return ROWS * (form == BF16 ? bits : bits + (size_t)columns / GROUP * 2);
}

typedef struct {
    const uint8_t *data; /* packed [rows, K] */
    const float *bias;   /* [rows] or NULL */
    int rows;
    Form form;
} Matrix;

/* Linear layers side by side: out [T, sum of rows] = x @ weight.T + bias (+ residual). */
typedef struct {
    const float *x, *norm, *residual; /* [T, K]; [K] or NULL; like out, or NULL */
    float *out;
    Matrix matrices[MATRICES];
    float eps;
    int count, tokens, columns;
} Linear;

/* out [T, H] = residual + weighted sum of experts, in ascending order of expert id; or, where
 * `parts` is not NULL, what each slot adds to it: parts [T, S, H]. */
typedef struct {
    const float *x, *weights, *residual; /* [T, H], [T, S], [T, H] */
    const int64_t *ids;                  /* [T, S] */
    float *out, *parts;                  /* one of them, the other NULL */
    const uint8_t *blocks; /* packed experts, `block_bytes` apart */
    const int32_t *table;  /* [experts]: which block an expert is; one without (-1) adds nothing */
    size_t block_bytes;
    int tokens, slots, experts, hidden, width;
    Form form;
} Experts;

/* normed [T, H] = rms_norm(x); logits [T, E] = normed @ router.T; the k likeliest of each token
 * and their renormalised probabilities, then the shared experts with weight 1. */
typedef struct {
    const float *x, *norm, *router; /* [T, H], [H], [E, H] */
    float *normed, *logits, *weights;
    int64_t *ids; /* [T, k + shared] */
    float eps;
    int tokens, hidden, experts, top_k, shared;
} Route;

/* Rotates queries and keys, writes keys and values, attends causally. */
typedef struct {
    const float *qkv, *cos, *sin; /* [T, (heads + 2 kv_heads) * D], [positions, D] */
    void *keys, *values;          /* [sequences, kv_heads, capacity, D], bf16, fp32 or int8 */
    uint16_t *key_scales, *value_scales; /* of int8: fp16 [sequences, kv_heads, capacity] */
    const int32_t *sequences, *positions; /* [T], or NULL: consecutive tokens */
    float *out;                           /* [T, heads * D] */
    int64_t capacity;
    int tokens, heads, kv_heads, dim, cache_bits;
    int sequence, past; /* of consecutive tokens: theirs, and how many came before */
} Attend;

typedef struct {
    const char *name;
    int (*linear)(const Linear *);
    int (*experts)(const Experts *);
    int (*route)(const Route *);
    int (*attend)(const Attend *);
    void (*read_through)(const uint8_t *data, size_t bytes);
} Kernels;

/* NULL where the processor, or the compiler's target, lacks the instructions. */
const Kernels *avx512_kernels(void);
const Kernels *avxvnni_kernels(void);
const Kernels *avx2_kernels(void);
const Kernels *neon_kernels(void);
const Kernels *portable_kernels(void);

/* Work on units [first, last) of a job. */
typedef void Work(const void *job, int first, int last);

/* Calls `work` until all units are done, at most `longest` of them at a time, on all threads. */
void pool_run(Work *work, const void *job, int units, int longest);
int pool_begin(void);         /* once, before all others; 0, or what went wrong */
int pool_resize(int threads); /* 0, or -1 when no thread could be started */
int pool_threads(void);

/* One operation at a time uses the pool and the scratch memory. */
void pool_lock(void);
void pool_unlock(void);

/* At least `bytes` of memory, aligned to 64, kept until asked for more; NULL when there is none.
 * Slots 0 .. 3 are apart from each other. */
enum { SCRATCH_SLOTS = 4 };
void *scratch(int slot, size_t bytes);

#endif
