/* AVX2 with AVX-VNNI: Intel since Alder Lake. */
#include "xverse_cpu.h"

#if defined(__x86_64__) && (__clang_major__ >= 12 || (!defined(__clang__) && __GNUC__ >= 11))
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,avxvnni"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,avxvnni")
#endif
#define AVX_VNNI 1
#include "prelude.h"
#include "isa_avx2.h"
#define KERNELS_NAME "avx-vnni"
#include "kernels.h"
/* What follows runs on every processor. */
#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#include <cpuid.h>

const Kernels *avxvnni_kernels(void) {
    unsigned a = 0, b, c, d;
    __builtin_cpu_init();
    int present = __get_cpuid_count(7, 1, &a, &b, &c, &d) && a & 1u << 4 &&
                  __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    return present ? &kernels : NULL;
}
#else
const Kernels *avxvnni_kernels(void) { return NULL; }
#endif
