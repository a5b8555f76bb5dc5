/* The kernels of one instruction set: included once by each file that has chosen its vectors.
 *
 * The value of an output depends on its token, its row and the weights alone: every sum runs in one
 * fixed order, whatever the tile, the thread or the number of tokens in the call. */
#include "vectors.h"

#include "activations.h"

#include "dot_packed.h"

#include "dot_bf16.h"

#include "linear.h"

#include "experts.h"

#include "route.h"

#include "attend.h"

/* Reads every byte once: the bandwidth that kernels are compared with. */
typedef struct { const uint8_t *data; size_t bytes; } Reading;
enum { READ_UNIT = 1 << 18 };

static void read_units(const void *job, int first, int last) {
    const Reading *reading = job;
    vi sum[4] = {vi_set(0), vi_set(0), vi_set(0), vi_set(0)};
    const uint8_t *p = reading->data + (size_t)first * READ_UNIT;
    const uint8_t *end = reading->data + (size_t)last * READ_UNIT;
    for (; p < end; p += 256) {
        prefetch(p + 2048);
        for (int i = 0; i < 4; i++) sum[i] = vi_add(sum[i], vi_load(p + 64 * i));
    }
    volatile int32_t sink = vi_reduce_add(vi_add(vi_add(sum[0], sum[1]), vi_add(sum[2], sum[3])));
    (void)sink;
}

static void read_through(const uint8_t *data, size_t bytes) {
    Reading reading = {data, bytes};
    pool_lock();
    pool_run(read_units, &reading, (int)(bytes / READ_UNIT), 64);
    pool_unlock();
}

static const Kernels kernels = {KERNELS_NAME, linear, experts, route, attend, read_through};
