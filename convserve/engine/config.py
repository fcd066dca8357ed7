"""How a model is served: batching, instances, versions, warm-up.

Names, meanings and nesting are those of Triton's ModelConfig, and so are the defaults except that
queues are bounded. The tables of `DIR/<model>/config.toml` are read into these classes by
`config_file`, and docs/configuration.md is written from the texts here.
"""

# ruff: noqa: RUF009 - `_knob` makes a dataclass field

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any

from convserve.errors import ConfigError

__all__ = [
    "AllVersions",
    "DynamicBatching",
    "InstanceGroup",
    "Latest",
    "ModelConfig",
    "ModelWarmup",
    "QueuePolicy",
    "Specific",
    "VersionPolicy",
    "WarmupInput",
]

MAX_BATCH = 65536
MAX_QUEUE = 100_000
MAX_MICROSECONDS = 3_600_000_000


def _knob(
    text: str,
    default: Any = None,
    *,
    low: int | None = None,
    high: int | None = None,
    choices: tuple[str, ...] = (),
    make: Any = None,
) -> Any:
    """A field with what its documentation says and which values it takes."""
    about = {"text": text, "low": low, "high": high, "choices": choices}
    if make is not None:
        return field(default_factory=make, metadata=about)
    return field(default=default, metadata=about)


class _Table:
    """Checks the limits of every knob when it is made."""

    def __post_init__(self) -> None:
        for knob in fields(self):  # type: ignore[arg-type]
            value, about = getattr(self, knob.name), knob.metadata
            for item in value if isinstance(value, tuple) else (value,):
                self._check(knob.name, item, about)

    def _check(self, name: str, value: Any, about: Mapping[str, Any]) -> None:
        if about["choices"] and value not in about["choices"]:
            raise ConfigError(f"{name} must be one of {list(about['choices'])}, got {value!r:.80}")
        low, high = about["low"], about["high"]
        if isinstance(value, int) and low is not None and not low <= value <= high:
            raise ConfigError(f"{name} must be {low} to {high}, got {value}")


@dataclass(frozen=True)
class QueuePolicy(_Table):
    """What happens to requests that wait."""

    timeout_action: str = _knob(
        "what happens to a request that has waited for its timeout: REJECT answers UNAVAILABLE, "
        "DELAY puts it behind those of its priority whose timeout has not passed",
        "REJECT",
        choices=("REJECT", "DELAY"),
    )
    default_timeout_microseconds: int = _knob(
        "how long a request may wait, unless it says otherwise; 0: for ever",
        0,
        low=0,
        high=MAX_MICROSECONDS,
    )
    allow_timeout_override: bool = _knob(
        "whether a request's `timeout` parameter may shorten that", False
    )
    max_queue_size: int = _knob(
        "requests that may wait; one more is answered UNAVAILABLE at once. Triton's 0, without "
        "bound, does not exist",
        1024,
        low=1,
        high=MAX_QUEUE,
    )


@dataclass(frozen=True)
class DynamicBatching(_Table):
    """How requests of several callers become one batch."""

    preferred_batch_size: tuple[int, ...] = _knob(
        "sizes at which a batch goes without waiting for more; best left out",
        (),
        low=1,
        high=MAX_BATCH,
    )
    max_queue_delay_microseconds: int = _knob(
        "how long a batch that is neither full nor of a preferred size may wait for more requests",
        0,
        low=0,
        high=60_000_000,
    )
    priority_levels: int = _knob(
        "levels of the `priority` parameter, 1 the most urgent; 0: requests have no priority",
        0,
        low=0,
        high=16,
    )
    default_priority_level: int = _knob(
        "the level of a request that names none, or one that does not exist; needed with "
        "priority_levels",
        0,
        low=0,
        high=16,
    )
    default_queue_policy: QueuePolicy = _knob("the queue of each priority level", make=QueuePolicy)
    priority_queue_policy: Mapping[int, QueuePolicy] = _knob(
        "by level, where it differs from default_queue_policy; what a table leaves out is taken "
        "from there",
        make=lambda: MappingProxyType({}),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        levels, level = self.priority_levels, self.default_priority_level
        if bool(levels) != bool(level) or level > levels:
            allowed = f"1 to {levels}" if levels else "0 without priority_levels"
            raise ConfigError(f"default_priority_level must be {allowed}, got {level}")
        for key in self.priority_queue_policy:
            if not 1 <= key <= levels:
                raise ConfigError(
                    f"priority_queue_policy has the level {key}, priority_levels is {levels}"
                )

    def policy(self, level: int) -> QueuePolicy:
        """The queue policy of a priority level; without levels there is level 1 only."""
        return self.priority_queue_policy.get(level, self.default_queue_policy)

    @property
    def max_waiting(self) -> int:
        """Requests that may wait in all levels together."""
        levels = range(1, max(self.priority_levels, 1) + 1)
        return sum(self.policy(level).max_queue_size for level in levels)


@dataclass(frozen=True)
class InstanceGroup(_Table):
    """How many batches of a model run at a time, and on how many threads."""

    count: int = _knob("batches of this model that may run at a time", 1, low=1, high=64)
    threads: int = _knob(
        "threads that a batch may use; 0: as many as the process has cores (or --threads)",
        0,
        low=0,
        high=256,
    )


@dataclass(frozen=True)
class Latest(_Table):
    """The highest versions."""

    num_versions: int = _knob("how many of them", 1, low=1, high=1000)


@dataclass(frozen=True)
class AllVersions(_Table):
    """Every version."""


@dataclass(frozen=True)
class Specific(_Table):
    """These versions and no others."""

    versions: tuple[int, ...] = _knob("their numbers", (), low=1, high=10**18 - 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.versions:
            raise ConfigError("versions must name at least one version")


@dataclass(frozen=True)
class VersionPolicy(_Table):
    """Which versions are served: at most one of the three; without any, the highest one."""

    latest: Latest | None = _knob("the highest `num_versions` (1)")
    all: AllVersions | None = _knob("every version")
    specific: Specific | None = _knob("those listed in `versions`; a missing one is an error")

    def __post_init__(self) -> None:
        super().__post_init__()
        given = [knob.name for knob in fields(self) if getattr(self, knob.name) is not None]
        if len(given) > 1:
            raise ConfigError(f"only one of {given} may be given")

    def choose(self, available: Iterable[int]) -> list[int]:
        """The versions to serve of those available, ascending."""
        versions = sorted(available)
        if self.specific is not None:
            if missing := sorted(set(self.specific.versions) - set(versions)):
                raise ConfigError(f"version_policy asks for version {missing[0]}, which is missing")
            return sorted(set(self.specific.versions))
        if self.all is not None:
            return versions
        return versions[-(self.latest or Latest()).num_versions :]


@dataclass(frozen=True)
class WarmupInput(_Table):
    """What one input holds during warm-up: exactly one of the three."""

    data_type: str = _knob(
        "normalised values or raw pixels", "TYPE_FP32", choices=("TYPE_FP32", "TYPE_UINT8")
    )
    zero_data: bool = _knob("zeros", False)
    random_data: bool = _knob("random numbers, the same ones each time", False)
    input_data_file: str = _knob(
        "a file in DIR/<model>/warmup with one image's values, raw and little-endian", ""
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.zero_data + self.random_data + bool(self.input_data_file) != 1:
            raise ConfigError("give exactly one of zero_data, random_data and input_data_file")


@dataclass(frozen=True)
class ModelWarmup(_Table):
    """A batch that runs before a version is served."""

    name: str = _knob("what logs call it", "warmup")
    batch_size: int = _knob("images in it", 1, low=1, high=MAX_BATCH)
    count: int = _knob("how often it runs", 1, low=1, high=1000)
    inputs: Mapping[str, WarmupInput] = _knob(
        "by input name; an input that is left out holds zeros", make=lambda: MappingProxyType({})
    )


@dataclass(frozen=True)
class ModelConfig(_Table):
    """Everything that can be said about how a model is served."""

    max_batch_size: int = _knob(
        "images in a request, and in a batch that requests share", 64, low=1, high=MAX_BATCH
    )
    layer_outputs: bool = _knob(
        "whether a request may ask for any layer by name, as feature maps or embeddings; each new "
        "choice of layers costs a compilation and memory",
        False,
    )
    dynamic_batching: DynamicBatching = _knob("", make=DynamicBatching)
    instance_group: InstanceGroup = _knob("", make=InstanceGroup)
    version_policy: VersionPolicy = _knob("", make=VersionPolicy)
    model_warmup: tuple[ModelWarmup, ...] = _knob(
        "batches that run before a version is served; without any, one image and eight", ()
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        sizes = {"preferred_batch_size": self.dynamic_batching.preferred_batch_size}
        sizes["model_warmup.batch_size"] = tuple(w.batch_size for w in self.model_warmup)
        for name, values in sizes.items():
            if values and max(values) > self.max_batch_size:
                raise ConfigError(
                    f"{name} {max(values)} is more than max_batch_size {self.max_batch_size}"
                )
