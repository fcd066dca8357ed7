"""Certificates for tests, made by openssl."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest


def make(folder: Path, authority: str = "ca", names: Sequence[str] = ("toy.example",)) -> Path:
    """ca.pem, and server and client certificates with their keys, for `names` and 127.0.0.1."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl, which makes the certificates, is not installed")

    def run(*arguments: str) -> None:
        subprocess.run([str(openssl), *arguments], cwd=folder, check=True, capture_output=True)

    new = ("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    run(*new, "-days", "2", "-subj", f"/CN={authority}", "-keyout", "ca.key", "-out", "ca.pem")
    known = ",".join(f"DNS:{name}" for name in names)
    for name in ("server", "client"):
        run(
            *new, "-days", "2", "-subj", f"/CN={names[0]}", "-CA", "ca.pem", "-CAkey", "ca.key",
            "-addext", f"subjectAltName={known},IP:127.0.0.1",
            "-keyout", f"{name}.key", "-out", f"{name}.pem",
        )  # fmt: skip
    return folder
