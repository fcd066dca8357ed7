"""The calls that look after the server: the repository, the log, shared memory."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import grpc

from convserve.engine.loader import Override
from convserve.engine.repository import ModelRepository
from convserve.engine.source import MODEL_FILENAME
from convserve.errors import InvalidRequestError, RepositoryControlError, SwitchedOffError
from convserve.serving import config_message
from convserve.serving.calls import Call
from convserve.serving.logs import LogSettings
from convserve.serving.shared_memory import Regions
from convserve_client import protocol

__all__ = ["CHANGES", "Control"]

CHANGES = (
    "RepositoryModelLoad",
    "RepositoryModelUnload",
    "LogSettings",
    "SystemSharedMemoryRegister",
    "SystemSharedMemoryUnregister",
)

_FILE = re.compile(r"file:([1-9][0-9]{0,17})/" + re.escape(MODEL_FILENAME))


class Control:
    """Answers the calls. regions: None where shared memory is switched off.

    everywhere: has the call of that name and message carried out in all processes, and returns the
    answer's bytes; None where this process is alone.
    """

    def __init__(
        self,
        repository: ModelRepository,
        *,
        explicit: bool,
        logs: LogSettings,
        regions: Regions | None,
        everywhere: Callable[[str, bytes], bytes] | None = None,
    ) -> None:
        self._everywhere = everywhere
        self._repository = repository
        self._explicit = explicit
        self._logs = logs
        self._regions = regions

    @property
    def extensions(self) -> tuple[str, ...]:
        """What depends on how the server was started."""
        return () if self._regions is None else ("system_shared_memory",)

    def calls(self) -> dict[str, Call]:
        """The calls by name; those that change something do so in all processes."""
        calls = self.local_calls()
        if self._everywhere is not None:
            for name in CHANGES:
                calls[name] = self._elsewhere(name, self._everywhere)
        return calls

    def _elsewhere(self, name: str, everywhere: Callable[[str, bytes], bytes]) -> Call:
        answer = protocol.METHODS[name].response
        return lambda message, _: answer.FromString(everywhere(name, message.SerializeToString()))

    def local_calls(self) -> dict[str, Call]:
        """The calls by name, carried out in this process."""
        return {
            "RepositoryIndex": self._index,
            "RepositoryModelLoad": self._load,
            "RepositoryModelUnload": self._unload,
            "LogSettings": self._log_settings,
            "SystemSharedMemoryStatus": self._memory_status,
            "SystemSharedMemoryRegister": self._memory_register,
            "SystemSharedMemoryUnregister": self._memory_unregister,
        }

    def _index(self, message: Any, _: grpc.ServicerContext) -> Any:
        _check_repository(message)
        entry = protocol.RepositoryIndexResponse.ModelIndex
        index = self._repository.index(only_ready=message.ready)
        return protocol.RepositoryIndexResponse(models=[entry(**e._asdict()) for e in index])

    def _load(self, message: Any, _: grpc.ServicerContext) -> Any:
        self._check_explicit()
        _check_repository(message)
        self._repository.load(message.model_name, _override(message))
        return protocol.RepositoryModelLoadResponse()

    def _unload(self, message: Any, _: grpc.ServicerContext) -> Any:
        self._check_explicit()
        _check_repository(message)
        for name, parameter in message.parameters.items():
            if name != "unload_dependents" or parameter.WhichOneof("parameter_choice") != (
                "bool_param"
            ):
                raise InvalidRequestError(f"unrecognized unload parameter '{name[:64]}'")
        self._repository.unload(message.model_name)
        return protocol.RepositoryModelUnloadResponse()

    def _check_explicit(self) -> None:
        if not self._explicit:
            raise RepositoryControlError(
                "explicit model load / unload is not allowed: the server was not started with "
                "--model-control-mode explicit"
            )

    def _log_settings(self, message: Any, _: grpc.ServicerContext) -> Any:
        self._logs.change(message.settings)
        answer = protocol.LogSettingsResponse()
        for name, value in self._logs.values().items():
            setting = answer.settings[name]
            if isinstance(value, bool):
                setting.bool_param = value
            elif isinstance(value, int):
                setting.uint32_param = value
            else:
                setting.string_param = value
        return answer

    def _switched_on(self) -> Regions:
        if self._regions is None:
            raise SwitchedOffError(
                "shared memory is switched off: the server was not started with "
                "--system-shared-memory"
            )
        return self._regions

    def _memory_status(self, message: Any, _: grpc.ServicerContext) -> Any:
        answer = protocol.SystemSharedMemoryStatusResponse()
        for region in self._switched_on().status(message.name):
            answer.regions[region.name].CopyFrom(
                protocol.SystemSharedMemoryStatusResponse.RegionStatus(
                    name=region.name,
                    key=region.key,
                    offset=region.offset,
                    byte_size=region.byte_size,
                )
            )
        return answer

    def _memory_register(self, message: Any, _: grpc.ServicerContext) -> Any:
        self._switched_on().register(message.name, message.key, message.offset, message.byte_size)
        return protocol.SystemSharedMemoryRegisterResponse()

    def _memory_unregister(self, message: Any, _: grpc.ServicerContext) -> Any:
        self._switched_on().unregister(message.name)
        return protocol.SystemSharedMemoryUnregisterResponse()


def _check_repository(message: Any) -> None:
    if message.repository_name:
        raise InvalidRequestError(
            f"there is one repository, and it has no name: got '{message.repository_name[:64]}'"
        )


def _override(message: Any) -> Override | None:
    """The `config` and `file:<version>/model.npz` parameters of a load."""
    tables, files = None, {}
    for name, parameter in message.parameters.items():
        choice = parameter.WhichOneof("parameter_choice")
        file = _FILE.fullmatch(name)
        if name == "config" and choice == "string_param":
            tables = config_message.tables(parameter.string_param, message.model_name)
        elif file and choice == "bytes_param":
            files[int(file[1])] = parameter.bytes_param
        else:
            raise InvalidRequestError(
                f"unrecognized load parameter '{name[:64]}' as {choice}: known are config as "
                f"string_param and file:<version>/{MODEL_FILENAME} as bytes_param"
            )
    if files and tables is None:
        raise InvalidRequestError("load parameter 'config' must be given along with files")
    return None if tables is None else Override(tables, files)
