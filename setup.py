"""Builds the compiled kernels; all metadata is in pyproject.toml.

The C micro-kernels are compiled once for each instruction set, each into a static library with its
own flags, so that no instruction of a newer set can leak into the code that runs everywhere.
`CONVSERVE_DEBUG=1` turns on bounds checks, C asserts and debug symbols; `CONVSERVE_SANITIZE=1` adds
AddressSanitizer and UndefinedBehaviorSanitizer (`make sanitize`).
"""

import os
import platform
import shutil
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_clib import build_clib
from setuptools.command.build_ext import build_ext

SANITIZE = os.environ.get("CONVSERVE_SANITIZE", "0") not in ("", "0")
DEBUG = SANITIZE or os.environ.get("CONVSERVE_DEBUG", "0") not in ("", "0")
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"] if SANITIZE else []
OPTIMISE = ["-O1", "-g", "-DCS_DEBUG=1"] if DEBUG else ["-O3", "-DNDEBUG"]
# gnu11 and contraction: `a * b + c` may become one fused multiply-add where the set has one.
CFLAGS = [
    *OPTIMISE, *SANITIZERS, "-std=gnu11", "-ffp-contract=fast", "-fno-math-errno", "-fPIC", "-Wall",
    "-Wno-psabi",
]  # fmt: skip
ISA_FLAGS = {"base": []}
if platform.machine() in ("aarch64", "arm64") and "clang" not in os.environ.get("CC", ""):
    # GCC would carry the broadcasts from one step of a loop to the next, and spill the sums.
    ISA_FLAGS["base"] = ["-fno-predictive-commoning"]
if platform.machine() in ("x86_64", "AMD64"):
    ISA_FLAGS["avx2"] = ["-mavx2", "-mfma"]
    ISA_FLAGS["avx512"] = [
        "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma", "-mprefer-vector-width=512",
    ]  # fmt: skip
ISA_DEFINES = [f"-DCS_HAVE_{isa.upper()}=1" for isa in ISA_FLAGS]
HEADERS = sorted(str(p) for p in Path("kernels/csrc").glob("*.h"))
TRAIN_STEP = [
    f"kernels/csrc/train_{part}.c" for part in ("step", "operations", "linear", "norm", "pointwise")
]
TRAIN_CONV = [
    f"kernels/csrc/train_{part}.c" for part in ("conv", "filters", "pack", "passes", "weights")
]


def library(name, sources, flags):
    return (
        f"convserve_{name}",
        {
            "sources": sources,
            "obj_deps": dict.fromkeys(["", *sources], HEADERS),
            "include_dirs": ["kernels/csrc"],
            "cflags": [*CFLAGS, *flags],
        },
    )


# A library, for extensions are built side by side: two that list the same source write its object
# file at the same time.
LIBRARIES = [
    *(library(isa, [f"kernels/csrc/isa_{isa}.c"], flags) for isa, flags in ISA_FLAGS.items()),
    library("train", TRAIN_CONV, [*ISA_DEFINES, "-Wno-unused-function"]),
]


def extension(name, sources=(), libraries=(), flags=()):
    return Extension(
        f"convserve.kernels.{name}",
        [f"kernels/{name}.pyx", *sources],
        include_dirs=["kernels/csrc"],
        libraries=list(libraries),
        depends=[*HEADERS, *(TRAIN_CONV if "convserve_train" in libraries else ())],
        extra_compile_args=[*CFLAGS, *ISA_DEFINES, "-fopenmp", "-Wno-unused-function", *flags],
        extra_link_args=["-fopenmp", *SANITIZERS],
    )


class BuildExt(build_ext):
    """Builds the static libraries first, in-place and editable builds too; the rest in parallel."""

    def finalize_options(self):
        super().finalize_options()
        self.parallel = self.parallel or os.cpu_count()

    def run(self):
        self.run_command("build_clib")
        super().run()


class BuildClib(build_clib):
    """Rebuilds a library whenever a header that it includes is newer."""

    def check_library_list(self, libraries):
        super().check_library_list(libraries)
        newest = max(Path(h).stat().st_mtime for h in HEADERS)
        for name, _ in libraries:
            archive = Path(self.build_clib, f"lib{name}.a")
            if archive.exists() and archive.stat().st_mtime < newest:
                archive.unlink()
                self.force = True


def cimport_tree():
    """Cython finds `convserve.kernels` by folder, not by package_dir: lay its .pxd out that way."""
    root = Path("build/cimport")
    package = root / "convserve" / "kernels"
    package.mkdir(parents=True, exist_ok=True)
    for folder in (package.parent, package):
        (folder / "__init__.pxd").touch()
    for pxd in Path("kernels").glob("*.pxd"):
        target = package / pxd.name
        if not target.exists() or target.read_bytes() != pxd.read_bytes():
            shutil.copyfile(pxd, target)
    return str(root)


extensions = [
    extension(
        "_core",
        ["kernels/csrc/dispatch.c"],
        [f"convserve_{isa}" for isa in ISA_FLAGS],
    ),
    extension("_activation"),
    extension("_affine"),
    # A normalised pixel's product is rounded before the subtraction, as it is everywhere.
    extension("_augment", flags=["-ffp-contract=off"]),
    extension("_conv"),
    extension("_draws", flags=["-ffp-contract=off"]),
    extension("_operations"),
    extension("_optimiser"),
    extension("_packed"),
    extension("_pointwise"),
    extension("_pool"),
    extension("_preempt", ["kernels/csrc/preempt.c", "kernels/csrc/threads.c"]),
    extension("_tensors"),
    extension("_threads", ["kernels/csrc/threads.c"]),
    extension("_train_conv", libraries=["convserve_train"]),
    extension("_train_layers", libraries=["convserve_train"]),
    extension("_winograd"),
    extension(
        "_executor",
        [f"kernels/csrc/{name}.c" for name in ("executor", "operations", "convolutions", "team")],
    ),
    extension("_trainer", TRAIN_STEP, ["convserve_train"]),
]

# What Cython puts into every module that has memoryviews, once for all: 2 MB less to install.
SHARED = "convserve.kernels._cyutility"
shared = Extension(
    SHARED,
    ["kernels/_cyutility.c"],  # Cython writes it
    extra_compile_args=CFLAGS,
    extra_link_args=SANITIZERS,
)

setup(
    cmdclass={"build_ext": BuildExt, "build_clib": BuildClib},
    libraries=LIBRARIES,
    ext_modules=cythonize(
        [*(e for e in extensions if Path(e.sources[0]).exists()), shared],
        shared_utility_qualified_name=SHARED,
        include_path=[cimport_tree()],
        compiler_directives={
            "language_level": 3,
            "boundscheck": DEBUG,
            "wraparound": False,
            "cdivision": not DEBUG,
            "initializedcheck": DEBUG,
            "nonecheck": DEBUG,
            "embedsignature": True,
        },
        annotate=DEBUG,
    ),
)
