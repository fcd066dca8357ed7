"""The sync and the async client are the same but for `await`."""

from __future__ import annotations

import inspect
import re
import typing

import pytest

from convserve_client import AsyncClient, Client


def public(client: type) -> dict[str, typing.Any]:
    return {
        name: member
        for name, member in inspect.getmembers(client, inspect.isfunction)
        if not name.startswith("_")
    }


METHODS = sorted(public(Client))


def test_both_have_the_same_methods() -> None:
    assert sorted(public(AsyncClient)) == METHODS
    assert {"predict", "classify", "predict_many", "load_model", "model_statistics"} <= {*METHODS}


def test_both_are_made_alike() -> None:
    assert inspect.signature(Client) == inspect.signature(AsyncClient)


@pytest.mark.parametrize("name", METHODS)
def test_signatures_agree(name: str) -> None:
    sync, asynchronous = (inspect.signature(public(c)[name]) for c in (Client, AsyncClient))
    drop = str.maketrans("", "", " ")
    shown = str(asynchronous).translate(drop)
    if name == "predict_many":  # takes async iterables too, and is one
        shown = shown.replace("|AsyncIterable[Array]", "")
        shown = re.sub(r"AsyncGenerator\[(.*),None\]", r"Generator[\1,None,None]", shown)
    assert shown == str(sync).translate(drop)


@pytest.mark.parametrize("name", METHODS)
def test_one_is_awaited_and_the_other_is_not(name: str) -> None:
    sync, asynchronous = public(Client)[name], public(AsyncClient)[name]
    assert not inspect.iscoroutinefunction(sync)
    returns = str(inspect.signature(asynchronous).return_annotation)
    assert inspect.iscoroutinefunction(asynchronous) != ("AsyncGenerator" in returns)


@pytest.mark.parametrize("name", METHODS)
def test_both_are_documented(name: str) -> None:
    assert inspect.getdoc(public(Client)[name])
    same = f"As `Client.{name}`."
    assert inspect.getdoc(public(AsyncClient)[name]) in (same, inspect.getdoc(public(Client)[name]))
