"""What pyproject.toml cannot say: the C extension, which an install can do without."""

import os
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

NATIVE = Path("kernels/xverse_kernels/cpu/native")
POSIX = os.name == "posix"
# One file for all versions of Python, except those without a global lock.
LIMITED = not sysconfig.get_config_var("Py_GIL_DISABLED")


class BuildExtension(build_ext):
    """A build that fails leaves nothing of an earlier one, which would be for other Python code."""

    def run(self):
        if self.inplace:
            for built in NATIVE.parent.glob("_native*"):
                built.unlink()
        super().run()

    def build_extension(self, extension):
        try:
            super().build_extension(extension)
        except Exception:
            Path(self.get_ext_fullpath(extension.name)).unlink(missing_ok=True)
            raise  # setuptools goes on without what is optional


setup(
    cmdclass={"build_ext": BuildExtension},
    ext_modules=[
        Extension(
            "xverse_kernels.cpu._native",
            sources=sorted(path.as_posix() for path in NATIVE.glob("*.c")),
            depends=sorted(path.as_posix() for path in NATIVE.glob("*.h")),
            # Sums must not depend on which products a compiler fuses. Python's own options often
            # ask for debugging information, ten times the size of the code.
            extra_compile_args=["-std=c11", "-O3", "-ffp-contract=off", "-g0", "-Wno-psabi"],
            extra_link_args=["-pthread"] if POSIX else [],
            libraries=["m"] if POSIX else [],
            define_macros=[("_GNU_SOURCE", None)],
            py_limited_api=LIMITED,
            optional=True,
        )
    ],
    options={"bdist_wheel": {"py_limited_api": "cp310"}} if LIMITED else {},
)
