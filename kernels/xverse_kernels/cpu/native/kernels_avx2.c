/* AVX2 with FMA and F16C: Intel since Haswell, AMD since Zen. */
#include "xverse_cpu.h"

#if defined(__x86_64__) && defined(__GNUC__)
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif
#define AVX_VNNI 0
#include "prelude.h"
#include "isa_avx2.h"
#define KERNELS_NAME "avx2"
#include "kernels.h"
/* What follows runs on every processor. */
#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

const Kernels *avx2_kernels(void) {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? &kernels : NULL;
}
#else
const Kernels *avx2_kernels(void) { return NULL; }
#endif
