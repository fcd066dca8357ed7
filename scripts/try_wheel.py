"""Tries the wheels in a folder as a user would get them: `python scripts/try_wheel.py dist`.

A fresh virtual environment, no compiler on PATH, and no source tree in sight: the wheels are
installed there, and the whole main job runs. Their installed size is held to its limit.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from zipfile import ZipFile

MAX_INSTALLED = 5_000_000  # bytes, without the embedded digits
SAMPLE = "convserve/datasets/mnist_sample.xz"


def installed_size(wheel: Path) -> int:
    """Bytes of the wheel's files once they are unpacked, the embedded digits not counted."""
    with ZipFile(wheel) as archive:
        return sum(info.file_size for info in archive.infolist() if info.filename != SAMPLE)


def main(dist: Path) -> None:
    wheels = sorted(dist.resolve().glob("*.whl"))
    if {wheel.name.split("-")[0] for wheel in wheels} != {"convserve", "convserve_client"}:
        sys.exit(f"{dist} must hold one wheel of convserve and one of convserve_client")
    for wheel in wheels:
        size = installed_size(wheel)
        print(f"{wheel.name}: {size / 1e6:.2f} MB installed", flush=True)
        if size > MAX_INSTALLED:
            sys.exit(f"more than {MAX_INSTALLED / 1e6:.0f} MB")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        binaries = folder / "venv/bin"
        venv.create(folder / "venv", with_pip=True)
        environment = {"PATH": str(binaries), "HOME": name, "LANG": "C.UTF-8"}
        for compiler in ("cc", "gcc", "clang"):
            assert shutil.which(compiler, path=environment["PATH"]) is None

        pip = [binaries / "python", "-m", "pip", "--disable-pip-version-check", "install"]
        subprocess.run([*pip, "--quiet", "--only-binary", ":all:", *wheels], check=True)
        where = "import convserve.kernels as k; print(k.__file__, k.isa())"
        for command in (
            ["python", "-c", where],
            ["convserve", "demo", "--epochs", "1", "--dir", "demo"],
        ):
            program = [binaries / command[0], *command[1:]]
            subprocess.run(program, check=True, cwd=folder, env=environment)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
