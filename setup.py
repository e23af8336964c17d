"""Extension modules and source roots only; everything else is in pyproject.toml."""

from Cython.Build import cythonize
from setuptools import Extension, setup

setup(
    ext_modules=cythonize(
        [Extension("cext.bestfit", ["cext/bestfit.pyx"], extra_compile_args=["-O3"])],
        build_dir="build/cython",
    )
)
