/* arm64 with the dot-product extension: Apple since M1, most servers and phones since 2018. */
#include "xverse_cpu.h"

/* Clang before 16 declares the instruction only where it compiles for such a processor. */
#if defined(__aarch64__) && !defined(__AARCH64EB__) && \
    (defined(__ARM_FEATURE_DOTPROD) || __clang_major__ >= 16 || \
     (!defined(__clang__) && __GNUC__ >= 8))
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("dotprod"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("arch=armv8.2-a+dotprod")
#endif
#include "prelude.h"
#include "isa_neon.h"
#define KERNELS_NAME "neon-dotprod"
#include "kernels.h"
/* What follows runs on every processor. */
#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#if defined(__APPLE__)
#include <sys/sysctl.h>

static int has_dot_product(void) {
    int present = 0;
    size_t size = sizeof present;
    return !sysctlbyname("hw.optional.arm.FEAT_DotProd", &present, &size, NULL, 0) && present;
}
#elif defined(__linux__)
#include <sys/auxv.h>

static int has_dot_product(void) {
    const unsigned long asimddp = 1ul << 20; /* HWCAP_ASIMDDP */
    return (getauxval(AT_HWCAP) & asimddp) != 0;
}
#else
static int has_dot_product(void) { return 0; }
#endif

const Kernels *neon_kernels(void) { return has_dot_product() ? &kernels : NULL; }
#else
const Kernels *neon_kernels(void) { return NULL; }
#endif
