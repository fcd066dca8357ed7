"""The package's face: names, signatures, stubs, the choice of the instruction set."""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import reference

from convserve import errors, kernels
from convserve.kernels import _core, _cores

KERNELS = Path(kernels.__file__).parent
COMPUTING = [n for n in kernels.__all__ if inspect.isfunction(getattr(reference, n, None))]
SETTINGS = {"available_isas", "isa", "num_threads", "peak_gflops", "set_num_threads"}


def run(code: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs Python code in another process, in a folder that is not the checkout."""
    clean = {k: v for k, v in os.environ.items() if k != "CONVSERVE_ISA"}
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**clean, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_all_is_sorted_and_complete() -> None:
    assert kernels.__all__ == sorted(kernels.__all__)
    public = {
        name
        for name, value in vars(kernels).items()
        if not name.startswith("_")
        and not isinstance(value, types.ModuleType)
        and name != "annotations"
    }
    assert set(kernels.__all__) == public


def test_every_computing_function_has_a_reference() -> None:
    assert set(COMPUTING) | SETTINGS == set(kernels.__all__)


@pytest.mark.parametrize("name", COMPUTING)
def test_signatures_are_those_of_the_reference(name: str) -> None:
    kernel, naive = getattr(kernels, name), getattr(reference, name)
    assert reference.signature(kernel) == reference.signature(naive)


@pytest.mark.parametrize("name", kernels.__all__)
def test_every_function_is_documented(name: str) -> None:
    lines = (getattr(kernels, name).__doc__ or "").splitlines()
    assert [line for line in lines if line.strip() and not line.startswith(f"{name}(")]


@pytest.mark.parametrize("stub", sorted(KERNELS.glob("*.pyi")), ids=lambda p: p.stem)
def test_stubs_agree_with_the_compiled_modules(stub: Path) -> None:
    module = importlib.import_module(f"convserve.kernels.{stub.stem}")
    for node in ast.parse(stub.read_text()).body:
        owner, body = module, [node]
        if isinstance(node, ast.ClassDef):
            owner, body = getattr(module, node.name), node.body
        for item in body:
            if not isinstance(item, ast.FunctionDef) or item.name == "__init__":
                continue
            compiled = getattr(owner, item.name)
            if not item.decorator_list:  # properties have no signature
                assert reference.signature(compiled) == stub_signature(item), item.name


def stub_signature(node: ast.FunctionDef) -> list[tuple[str, Any]]:
    names = [argument.arg for argument in node.args.args]
    defaults = [ast.literal_eval(value) for value in node.args.defaults]
    filled = [inspect.Parameter.empty] * (len(names) - len(defaults)) + defaults
    return list(zip(names, filled, strict=True))


def test_every_compiled_module_has_a_stub() -> None:
    for source in KERNELS.glob("*.pyx"):
        assert source.with_suffix(".pyi").exists(), source.name


def test_the_import_works_anywhere_and_is_light(tmp_path: Path) -> None:
    code = (
        "import sys, convserve.kernels as k; print(k.isa());"
        "heavy = {'grpc', 'PIL', 'onnx', 'matplotlib', 'rich', 'click'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    done = run(code, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == kernels.available_isas()[0]


def test_arguments_import_without_compiled_code(tmp_path: Path) -> None:
    code = (
        "import importlib.util, sys;"
        f"spec = importlib.util.spec_from_file_location('a', {str(KERNELS / '_arguments.py')!r});"
        "module = importlib.util.module_from_spec(spec); sys.modules['a'] = module;"
        "spec.loader.exec_module(module);"
        "assert 'convserve.kernels' not in sys.modules; print(module.output_size(28, 5))"
    )
    done = run(code, tmp_path)
    assert done.stdout.strip() == "24", done.stderr


@pytest.mark.parametrize("name", ["base", "avx2", "avx512", "sse9"])
def test_convserve_isa_chooses_or_raises(name: str, tmp_path: Path) -> None:
    done = run("import convserve.kernels as k; print(k.isa())", tmp_path, CONVSERVE_ISA=name)
    if name in kernels.available_isas():
        assert done.stdout.strip() == name, done.stderr
    else:
        assert done.returncode != 0
        last = done.stderr.strip().splitlines()[-1]
        assert last.startswith("convserve.errors.ConvserveError")
        assert f"CONVSERVE_ISA='{name}'" in last
        assert all(available in last for available in kernels.available_isas())


def test_isas() -> None:
    known = ["avx512", "avx2", "base"]
    available = kernels.available_isas()
    assert available == [name for name in known if name in available]
    assert "base" in available
    assert kernels.isa() in available
    with pytest.raises(errors.UnknownNameError, match=r"'sse9'.*base"):
        _core.use_isa("sse9")


@pytest.mark.usefixtures("threads")
def test_number_of_threads() -> None:
    assert kernels.num_threads() == _cores.usable_cores() >= 1
    kernels.set_num_threads(3)
    assert kernels.num_threads() == 3
    for wrong, error in ((0, errors.ShapeError), (10**6, errors.ShapeError), (1.0, TypeError)):
        with pytest.raises(error, match="n must be"):
            kernels.set_num_threads(wrong)
    assert kernels.num_threads() == 3


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, None),
        ({"cpu.max": "max 100000"}, None),
        ({"cpu.max": "150000 100000"}, 1.5),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ({"cpu/cpu.cfs_quota_us": "400000", "cpu/cpu.cfs_period_us": "100000"}, 4.0),
        ({"cpu.max": "100000 0"}, None),
    ],
)
def test_quota_of_a_container(files: dict[str, str], cores: float | None, tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert _cores._cgroup_quota(tmp_path) == cores


def test_the_peak_is_measured() -> None:
    assert kernels.peak_gflops(threads=1, seconds=0.01) > 0.1
    with pytest.raises(errors.ShapeError, match="seconds must be"):
        kernels.peak_gflops(seconds=-1)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_process_can_compute(tmp_path: Path) -> None:
    """OpenMP's threads do not survive a fork, and the child must not wait for them."""
    code = (
        "import os, warnings, numpy as np, convserve.kernels as k;"
        "warnings.simplefilter('ignore');"
        "k.set_num_threads(2); x = np.ones((8, 16, 32, 32), np.float32);"
        "w = np.ones((16, 16, 3, 3), np.float32);"
        "work = lambda: k.max_pool2d(k.conv2d(x, w), 2);"
        "before = work(); child = os.fork();"
        "same = (work() == before).all();"
        "child or os._exit(0 if same else 3);"
        "assert os.waitpid(child, 0)[1] == 0; assert same; print('both')"
    )
    assert run(code, tmp_path).stdout.strip() == "both"
