/* Plain C, for every other processor. */
#include "prelude.h"

#include "isa_portable.h"
#define KERNELS_NAME "portable"
#include "kernels.h"

const Kernels *portable_kernels(void) { return &kernels; }
