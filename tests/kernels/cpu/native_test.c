/* Tests of the native kernels without Python: native_test [seed] [cases of each kind].
 *
 * Prints the instruction sets it ran and how far each operation was from the same in double
 * precision; ends with status 1, and a line that names the case, where something is wrong. */
#include "native_test.h"

typedef const Kernels *Finder(void);
static Finder *const finders[] = {avx512_kernels, avxvnni_kernels, avx2_kernels, neon_kernels,
                                  portable_kernels};

/* All sets with fused products add in the same order: a text does not depend on the processor. */
static void compare_digests(const Kernels *kernels) {
    static uint64_t first;
    if (kernels == portable_kernels()) return;
    begin("%s", kernels->name);
    if (!first) first = digest;
    check(digest == first, "other bits than the set before it");
}

int main(int count, char **arguments) {
    check(pool_begin() == 0, "the pool does not hear of forks");
    uint64_t seed = count > 1 ? strtoull(arguments[1], NULL, 10) : 1;
    int cases = count > 2 ? atoi(arguments[2]) : 20;
    setvbuf(stdout, NULL, _IOLBF, 0);
    seed_with(seed);
    test_pool();
    for (size_t i = 0; i < sizeof finders / sizeof *finders; i++) {
        const Kernels *kernels = finders[i]();
        if (!kernels) continue;
        seed_with(seed); /* every set meets the same cases */
        digest = 1;
        test_linear(kernels, cases);
        test_experts(kernels, cases);
        test_route(kernels, cases);
        test_attend(kernels, cases);
        printf("set %s, bits %016llx\n", kernels->name, (unsigned long long)digest);
        compare_digests(kernels);
    }
    report_distances();
    pool_resize(1);
    printf(failures ? "%d checks failed (seed %llu)\n" : "all passed\n", failures,
           (unsigned long long)seed);
    return failures ? 1 : 0;
}
