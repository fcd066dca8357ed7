"""Compiles the wire protocol into the package; all metadata is in pyproject.toml.

The `.proto` files live at the repository's top (`protos/`). A source distribution carries a copy,
so that it builds anywhere. The result, `protocol.binpb`, is a serialized FileDescriptorSet.
"""

import os
import subprocess
import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

HERE = Path(__file__).resolve().parent
PROTOS = next((p for p in (HERE / "protos", HERE.parents[1] / "protos") if p.is_dir()), HERE)
TARGET = HERE / "src" / "convserve_client" / "protocol.binpb"


def compile_protocol():
    """Writes beside the target and renames, so that a running program never reads half a file."""
    partial = TARGET.with_name(f"{TARGET.name}.{os.getpid()}")
    sources = sorted(p.name for p in PROTOS.glob("*.proto"))
    if not sources:
        raise SystemExit(f"no .proto files in {PROTOS}")
    protoc = [sys.executable, "-m", "grpc_tools.protoc", f"--proto_path={PROTOS}"]
    output = [f"--descriptor_set_out={partial}", "--include_imports"]
    subprocess.run([*protoc, *output, *sources], check=True)
    partial.replace(TARGET)


class BuildPy(build_py):
    """Compiles first, also for editable installs; then the file is package data like any other."""

    def run(self):
        compile_protocol()
        self.__dict__.pop("data_files", None)  # listed before the file was there
        super().run()


class Sdist(sdist):
    """Carries the `.proto` files."""

    def make_release_tree(self, base_dir, files):
        super().make_release_tree(base_dir, files)
        self.copy_tree(str(PROTOS), str(Path(base_dir, "protos")))


setup(cmdclass={"build_py": BuildPy, "sdist": Sdist})
