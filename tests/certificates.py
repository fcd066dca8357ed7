"""Certificates for tests, made by openssl."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest


def make(folder: Path, authority: str = "ca") -> Path:
    """ca.pem, and server and client certificates with their keys, for the name `toy.example`."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl, which makes the certificates, is not installed")

    def run(*arguments: str) -> None:
        subprocess.run([str(openssl), *arguments], cwd=folder, check=True, capture_output=True)

    new = ("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    run(*new, "-days", "2", "-subj", f"/CN={authority}", "-keyout", "ca.key", "-out", "ca.pem")
    for name in ("server", "client"):
        run(
            *new, "-days", "2", "-subj", "/CN=toy.example", "-CA", "ca.pem", "-CAkey", "ca.key",
            "-addext", "subjectAltName=DNS:toy.example,IP:127.0.0.1",
            "-keyout", f"{name}.key", "-out", f"{name}.pem",
        )  # fmt: skip
    return folder
