"""Build the C kernels; everything else about the package is in pyproject.toml."""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "ckptfs.store._kernels",
            ["ckptfs/store/kernels.c"],
            extra_compile_args=["-O3"],
            # Without a compiler the install still works, on the slow reference (`ckptfs stats` says so).
            optional=True,
        )
    ]
)
