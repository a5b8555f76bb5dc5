/* Before anything else in a file of one instruction set's kernels. */
#include "xverse_cpu.h"

#include <math.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))
#define NOINLINE __attribute__((noinline))
#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#define UNROLL_KNOWN /* clang unrolls what it can, and warns where it is told to and cannot */
#else
#define UNROLL _Pragma("GCC unroll 16")
#define UNROLL_KNOWN UNROLL /* where only some copies of the loop have a constant count */
#endif
