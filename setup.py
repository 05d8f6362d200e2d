"""Builds the CPU kernels; without a C++ compiler the package installs all the same, and torch serves."""

from pathlib import Path

from setuptools import Extension, setup

SOURCES = Path("engine/kernels/cpu/src")

setup(
    ext_modules=[
        Extension(
            "engine.kernels.cpu._kernels",
            sources=[path.as_posix() for path in sorted(SOURCES.glob("*.cpp"))],
            depends=[path.as_posix() for path in sorted(SOURCES.glob("*.h"))],
            language="c++",
            optional=True,
            extra_compile_args=[
                "-std=c++17",
                "-O3",
                "-g0",
                "-ffp-contract=off",  # a sum must round alike wherever it is inlined
                "-fno-math-errno",
                "-fvisibility=hidden",
                "-Wno-psabi",
                "-Wno-maybe-uninitialized",  # GCC's own headers
                "-Wno-uninitialized",
            ],
            extra_link_args=["-pthread"],
        )
    ]
)
