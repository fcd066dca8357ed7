"""What is deployed names options and metrics that there are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from convserve.cli import bench, classify, serve

DEPLOY = Path(__file__).parents[2] / "deploy"
FILES = ["Dockerfile", "convserve.service", "kubernetes/deployment.yaml"]


@pytest.mark.parametrize("name", FILES)
def test_options_exist(name: str) -> None:
    known = {option for parameter in serve.command.params for option in parameter.opts}
    text = (DEPLOY / name).read_text("utf-8")
    commands = re.findall(r"convserve serve .*|\"serve\", .*|args:\n(?:\s+- .*\n)+", text)
    used = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", "\n".join(commands)))
    assert used and used <= known


@pytest.mark.parametrize("name", ["security.md", "threat-model.md"])
def test_the_security_docs_name_options_that_exist(name: str) -> None:
    commands = (serve.command, classify.command, bench.command)
    known = {o for command in commands for parameter in command.params for o in parameter.opts}
    text = (DEPLOY.parent / "docs" / name).read_text("utf-8")
    used = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text))
    assert used <= known
    links = re.findall(r"\]\(([\w-]+\.md)", text)
    assert links and all((DEPLOY.parent / "docs" / link).is_file() for link in links)
