"""The LogSettings call: which messages are logged, changed while the server runs."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from typing import Any

from convserve.errors import InvalidRequestError

__all__ = ["LogSettings"]

Value = bool | int | str
_KINDS = {bool: "bool_param", int: "uint32_param", str: "string_param"}
_FORMATS = ("default", "ISO8601")
MAX_VERBOSE = 10


class LogSettings(logging.Filter):
    """A filter for the log's handlers, with Triton's settings.

    `log_verbose_level` from 1 on lets debug messages through; `log_file` can't be changed: the log
    goes to standard error. Both formats are the one of this server, whose times are ISO 8601.
    """

    def __init__(self, level: int = logging.INFO) -> None:
        super().__init__()
        self._lock = threading.Lock()
        self._values: dict[str, Value] = {
            "log_file": "",
            "log_info": level <= logging.INFO,
            "log_warning": level <= logging.WARNING,
            "log_error": level <= logging.ERROR,
            "log_verbose_level": int(level <= logging.DEBUG),
            "log_format": "default",
        }

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a message is logged."""
        if record.levelno >= logging.ERROR:
            return bool(self._values["log_error"])
        if record.levelno >= logging.WARNING:
            return bool(self._values["log_warning"])
        if record.levelno >= logging.INFO:
            return bool(self._values["log_info"])
        return bool(self._values["log_verbose_level"])

    def values(self) -> dict[str, Value]:
        """All settings."""
        with self._lock:
            return dict(self._values)

    def adopt(self, values: Mapping[str, Value]) -> None:
        """Take over the `values` of another process."""
        with self._lock:
            self._values = dict(values)

    def change(self, settings: Mapping[str, Any]) -> None:
        """Change the settings of a LogSettingsRequest, all or, with InvalidRequestError, none."""
        with self._lock:
            new = dict(self._values)
            for name, setting in settings.items():
                choice = setting.WhichOneof("parameter_choice")
                if choice is None:
                    continue
                new[name] = self._checked(name, choice, getattr(setting, choice))
            self._values = new

    def _checked(self, name: str, choice: str, value: Value) -> Value:
        if name not in self._values:
            raise InvalidRequestError(
                f"unknown log setting '{name[:64]}': known are {', '.join(self._values)}"
            )
        expected = _KINDS[type(self._values[name])]
        if choice != expected:
            raise InvalidRequestError(f"log setting '{name}' takes a {expected}, got a {choice}")
        if name == "log_file" and value:
            raise InvalidRequestError("log_file can't be changed: the log goes to standard error")
        if name == "log_format" and value not in _FORMATS:
            raise InvalidRequestError(f"log_format must be one of {', '.join(_FORMATS)}")
        if name == "log_verbose_level" and not 0 <= int(value) <= MAX_VERBOSE:
            raise InvalidRequestError(f"log_verbose_level must be 0 to {MAX_VERBOSE}, got {value}")
        return value
