"""Alerts and dashboard are well-formed, and ask for metrics and labels that there are."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_models import save_tiny

from convserve.engine.repository import ModelRepository
from convserve.serving import metrics
from convserve.serving.workers import pages

ROOT = Path(__file__).parents[2]
DURATION = re.compile(r"[1-9][0-9]*[smhd]")
PROMETHEUS = {"up"}  # what it makes itself
SCRAPED = {"instance", "job"}  # labels that it gives every sample


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """The samples of one process and of the supervisor of several, with their labels."""
    root = tmp_path_factory.mktemp("models")
    save_tiny(root / "tiny" / "1" / "model.npz")
    repository = ModelRepository.open(root)
    (served,) = repository.models()
    served.statistics.failed("REJECTED", 1)
    figures = [metrics.ModelFigures("tiny", "1", served.statistics.snapshot(), pending=0, limit=1)]
    several = pages.registry(lambda: figures, list, lambda: 2, Counter(killed=1), lambda: 0)
    labels: dict[str, set[str]] = {}
    for registry in (metrics.registry(repository), several):
        for family in registry.collect():
            for sample in family.samples:
                labels.setdefault(sample.name, set()).update(sample.labels)
    repository.stop(1.0)
    return labels


def rules() -> list[dict[str, Any]]:
    document = yaml.safe_load((ROOT / "deploy/prometheus/alerts.yaml").read_text("utf-8"))
    assert set(document) == {"groups"}
    for group in document["groups"]:
        assert set(group) <= {"name", "interval", "rules"} and group["name"]
    return [rule for group in document["groups"] for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    document = json.loads((ROOT / "deploy/grafana/convserve.json").read_text("utf-8"))
    shown: list[dict[str, Any]] = document["panels"]
    return shown


def queries() -> list[str]:
    shown = [target["expr"] for panel in panels() for target in panel["targets"]]
    return shown + [rule["expr"] for rule in rules()]


def selectors(expression: str) -> dict[str, set[str]]:
    """The metrics of an expression, and the labels by which it chooses or groups them."""
    grouping = {
        label.strip()
        for clause in re.findall(r"\b(?:by|without|on|ignoring) \(([^)]*)\)", expression)
        for label in clause.split(",")
    } - {"le"}
    found: dict[str, set[str]] = {}
    for name, braces in re.findall(
        r"\b((?:nv|convserve|process|python)_\w+|up)\b(?:\{([^}]*)\})?", expression
    ):
        chosen = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", braces))
        found.setdefault(name, set()).update(chosen | grouping)
    return found


def test_alerts_are_well_formed() -> None:
    names = [rule["alert"] for rule in rules()]
    assert len(names) == len(set(names)) >= 8
    for rule in rules():
        assert set(rule) <= {"alert", "expr", "for", "keep_firing_for", "labels", "annotations"}
        assert re.fullmatch(r"[A-Z][A-Za-z]+", rule["alert"])
        assert DURATION.fullmatch(rule.get("for", "1m"))
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"]["summary"]


def test_summaries_use_labels_that_the_alert_has() -> None:
    for rule in rules():
        used = set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]))
        grouped = re.search(r"\b(?:sum|max) by \(([^)]*)\)", rule["expr"])
        has = SCRAPED if grouped is None else {name.strip() for name in grouped[1].split(",")}
        assert used <= has | {"le"}, rule["alert"]


def test_metrics_and_labels_exist(there: dict[str, set[str]]) -> None:
    asked = queries()
    assert len(asked) > 15
    for expression in asked:
        found = selectors(expression)
        assert found, expression
        for name, labels in found.items():
            assert name in there or name in PROMETHEUS, f"{name} in {expression}"
            if name not in PROMETHEUS:
                assert labels <= there[name] | SCRAPED, expression


def test_a_misspelt_metric_or_label_is_found(there: dict[str, set[str]]) -> None:
    wrong = selectors('sum by (modell) (rate(nv_inference_cuont{version="1"}[5m]))')
    assert wrong == {"nv_inference_cuont": {"version", "modell"}}
    assert not wrong.keys() & there.keys()


def test_alerts_are_those_of_the_docs() -> None:
    text = (ROOT / "docs/operations.md").read_text("utf-8")
    table = text.split("## What to watch")[1].split("###")[0].split("\n## ")[0]
    rows = re.findall(r"^\| (`.*?) \|", table, re.M)
    documented = {name for row in rows for name in re.findall(r"`?\b((?:nv|convserve)_\w+)", row)}
    alerted = {
        re.sub("_(bucket|sum|count)$", "", name) if name.startswith("convserve_request") else name
        for rule in rules()
        for name in selectors(rule["expr"])
    } - PROMETHEUS
    # The mean batch is to be looked at, beside others; no number of it is wrong by itself.
    assert documented - alerted == {"nv_inference_count", "nv_inference_exec_count"}
    assert alerted <= documented


def test_every_query_parses() -> None:
    """`make check-deploy` installs the parser, a dependency of nothing else."""
    parser = pytest.importorskip("promql_parser")
    for expression in queries():
        parser.parse(expression.replace("$__rate_interval", "5m"))
    with pytest.raises(ValueError):
        parser.parse("sum by (model) (rate(nv_inference_count[5m])")


def test_the_dashboard_is_well_formed() -> None:
    assert len({panel["id"] for panel in panels()}) == len(panels())
    places = set()
    for panel in panels():
        assert {"type", "title", "gridPos", "datasource", "fieldConfig"} <= set(panel)
        references = [target["refId"] for target in panel["targets"]]
        assert references and len(references) == len(set(references))
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & places, f"{panel['title']} lies on another panel"
        places |= cells
