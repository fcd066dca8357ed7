"""The checkpoint of a run: which of its parts go into the file, and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from convserve.errors import CheckpointError
from convserve.training import checkpoint
from convserve.training.averaging import Averages
from convserve.training.export import check_replaceable
from convserve.training.state import RunState
from convserve.training.step import Array, TrainStep

__all__ = ["RunCheckpoint"]


class RunCheckpoint:
    """The file at `path`, of the run with that identity (`checkpoint.identity`).

    on_set_aside: called with a path just before another run's checkpoint is moved there.
    """

    def __init__(
        self, path: Path, identity: Mapping[str, Any], on_set_aside: Callable[[Path], object]
    ) -> None:
        self.path, self._identity, self._on_set_aside = path, identity, on_set_aside
        self._is_ours = False  # what the file holds, of this run

    def check(self) -> None:
        """CheckpointError if the file is there and is no checkpoint."""
        check_replaceable(self.path, checkpoint.ENTRY, "checkpoint", CheckpointError)

    def save(
        self,
        state: RunState,
        step: TrainStep,
        averages: Averages,
        best: Mapping[str, Array],
        finished: bool,
    ) -> None:
        """Replace it, atomically. CheckpointError if that fails: it is as it was then.

        finished: whether the run's last export is done. The checkpoint of another run that is not
        finished is kept, as `checkpoint.earlier`.
        """
        arrays, values = step.state()
        arrays |= averages.state()
        arrays |= {f"best.{name}": value for name, value in best.items()}
        reached = {"step": values, "run": state.to_dict(), "finished": finished}
        checkpoint.save(self.path, self._identity, reached, arrays, self._set_aside)
        self._is_ours = True

    def restore(self, step: TrainStep, averages: Averages) -> tuple[RunState, dict[str, Array]]:
        """Bring step and averages to where it was written; the run's state and best parameters."""
        own, _ = step.state()
        shapes = {name: value.shape for name, value in (own | averages.state()).items()}
        reached, arrays = checkpoint.read(self.path, self._identity, shapes)
        try:
            step.load_state(arrays, reached["step"])
            state = RunState.from_dict(reached["run"])
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"{self.path}: its progress: {error}") from error
        averages.load_state(arrays)
        self._is_ours = True
        best = {name: value for name, value in arrays.items() if name.startswith("best.")}
        return state, {name.removeprefix("best."): value for name, value in best.items()}

    def _set_aside(self) -> None:
        if self._is_ours or not checkpoint.is_unfinished(self.path):
            return
        kept = checkpoint.earlier(self.path)
        self._on_set_aside(kept)
        try:
            self.path.replace(kept)
        except OSError as error:
            raise CheckpointError(f"{self.path}: can't be set aside: {error}") from error
