"""What pyproject.toml cannot say: the C extension, which an install can do without."""

from pathlib import Path

from setuptools import Extension, setup

NATIVE = Path("kernels/xverse_kernels/cpu/native")

setup(
    ext_modules=[
        Extension(
            "xverse_kernels.cpu._native",
            sources=sorted(path.as_posix() for path in NATIVE.glob("*.c")),
            depends=sorted(path.as_posix() for path in NATIVE.glob("*.h")),
            # Sums must not depend on which products a compiler fuses.
            extra_compile_args=["-std=c11", "-O3", "-ffp-contract=off", "-Wno-psabi"],
            define_macros=[("_GNU_SOURCE", None)],
            py_limited_api=True,
            optional=True,
        )
    ],
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
