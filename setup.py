"""Extension modules and source roots only; everything else is in pyproject.toml."""

from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

KERNELS = Path("cext")  # relative: setuptools takes no absolute source paths
HEADERS = [str(header) for header in KERNELS.glob("*.h")]

setup(
    ext_modules=cythonize(
        [
            Extension(
                f"cext.{kernel.stem}",
                [str(kernel)],
                depends=HEADERS,
                include_dirs=[str(KERNELS)],
                extra_compile_args=["-O3"],
            )
            for kernel in sorted(KERNELS.glob("*.pyx"))
        ],
        build_dir="build/cython",
    )
)
