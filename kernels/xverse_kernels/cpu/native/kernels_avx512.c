/* AVX-512 with VNNI: Intel since Ice Lake, AMD since Zen 4. */
#include "xverse_cpu.h"

#if defined(__x86_64__) && defined(__GNUC__)
#ifdef __clang__
#pragma clang attribute push( \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c"))), \
    apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")
#endif
#include "prelude.h"
#include "isa_avx512.h"
#define KERNELS_NAME "avx512-vnni"
#include "kernels.h"
/* What follows runs on every processor. */
#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

const Kernels *avx512_kernels(void) {
    __builtin_cpu_init();
    int present = __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512vl") &&
                  __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq");
    return present ? &kernels : NULL;
}
#else
const Kernels *avx512_kernels(void) { return NULL; }
#endif
