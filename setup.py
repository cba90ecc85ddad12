"""Build the C kernels; everything else about the package is in pyproject.toml."""

from setuptools import Extension, setup

STORE = "ckptfs/store"

setup(
    ext_modules=[
        Extension(
            "ckptfs.store._kernels",
            [
                f"{STORE}/{name}.c"
                for name in (
                    *("kernels", "planes", "coder", "delta", "raw_records", "stored_chunks", "chains"),
                    *("hash_portable", "hash_avx2", "hash_avx512"),
                )
            ],
            # What they include: looked at when it is decided whether to compile, and packed into a source release.
            depends=[
                f"{STORE}/{name}.h"
                for name in (
                    "chains",
                    "coder",
                    "delta",
                    "hash",
                    "hash_body",
                    "little_endian",
                    "planes",
                    "raw_records",
                    "stored_chunks",
                    "vendor/xxhash",
                )
            ],
            libraries=["m"],
            extra_compile_args=["-O3"],
            # Without a compiler the install still works, on the slow reference (`ckptfs stats` says so).
            optional=True,
        )
    ]
)
