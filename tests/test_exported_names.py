"""`__all__` is sorted, and is what can be had."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from types import ModuleType

import pytest

import convserve

PACKAGES = ["convserve", "convserve.datasets", "convserve.kernels", "convserve_client"]


@pytest.mark.parametrize("name", PACKAGES)
def test_all_is_sorted_and_resolves(name: str) -> None:
    package = import_module(name)
    assert list(package.__all__) == sorted(set(package.__all__))
    for exported in package.__all__:
        getattr(package, exported)


@pytest.mark.parametrize("name", PACKAGES)
def test_public_names_are_in_all(name: str) -> None:
    """A name without an underscore that is no module and no import for annotations is exported."""
    package = import_module(name)
    exported = {getattr(package, item) for item in package.__all__ if item != "__version__"}
    for public, value in vars(package).items():
        if public.startswith("_") or public in package.__all__:
            continue
        is_module = isinstance(value, ModuleType)
        is_helper = getattr(value, "__module__", name) != name and value not in exported
        assert is_module or is_helper or public == "annotations", f"{name}.{public}"


def test_dir_lists_what_all_does() -> None:
    assert set(convserve.__all__) <= set(dir(convserve))


def test_a_lazy_name_is_loaded_by_a_plain_import() -> None:
    """As a user's first statement, in a fresh process."""
    code = "from convserve import Graph, layers, load; import convserve; convserve.kernels.isa()"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)
    code = "import convserve_client as c; c.protocol.METHODS; c.tensors; c.errors; c.Client"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        convserve.nonsense  # noqa: B018


def test_errors_are_one_tree() -> None:
    for name in convserve.errors.__all__:
        error = getattr(convserve.errors, name)
        assert issubclass(error, convserve.errors.ConvserveError)
        assert name in (convserve.errors.__doc__ or ""), f"{name} is missing from the tree"


def test_layers_are_a_module_to_import_from() -> None:
    from convserve.graph import layers
    from convserve.layers import Conv2d

    assert Conv2d is layers.Conv2d
    assert set(import_module("convserve.layers").__all__) == set(layers.__all__)
