"""The flows that ask what there is on a server, and those that change it."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

from convserve_client import protocol
from convserve_client._checks import check_flag, check_name
from convserve_client._control import Files, Setting, load_request, log_request
from convserve_client._model import ModelInfo
from convserve_client._steps import Call, Flow, Sleep
from convserve_client.errors import (
    DeadlineExceededError,
    InvalidRequestError,
    NotFoundError,
    UnavailableError,
    UnimplementedError,
)


class ServerFlows:
    """What a client can ask beside inference, with what it remembers of the server's models."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._only_model: str | None = None
        self._models: dict[tuple[str, str], ModelInfo] = {}

    def server_live(self) -> Flow[bool]:
        return bool((yield Call("ServerLive", protocol.ServerLiveRequest())).live)

    def server_ready(self, wait: bool = False) -> Flow[bool]:
        return bool((yield Call("ServerReady", protocol.ServerReadyRequest(), wait)).ready)

    def model_name(self, model: str | None) -> Flow[str]:
        """`model`, or the name of the server's only model, which is asked for and remembered."""
        if model is not None:
            check_name("model", model, "mnist")
            return model
        try:
            models = yield from self.index(ready=False)
        except UnimplementedError:
            raise InvalidRequestError(
                f"the server at {self.address} does not list its models; name one with model="
            ) from None
        names = sorted({entry.name for entry in models})
        if len(names) > 1:
            names = sorted({entry.name for entry in models if entry.state == "READY"}) or names
        if not names:
            raise NotFoundError(f"the server at {self.address} has no models")
        if len(names) > 1:
            raise InvalidRequestError(
                f"the server at {self.address} has several models, name one of {names}"
            )
        self._only_model = only = str(names[0])
        return only

    def named(self, model: str | None, version: str) -> Flow[str]:
        """The model's name; TypeError unless model and version can be names at all."""
        check_name("version", version, "1")
        return (yield from self.model_name(model))

    def server_metadata(self) -> Flow[Any]:
        return (yield Call("ServerMetadata", protocol.ServerMetadataRequest()))

    def index(self, ready: bool) -> Flow[list[Any]]:
        check_flag("ready", ready)
        answer = yield Call("RepositoryIndex", protocol.RepositoryIndexRequest(ready=ready))
        return list(answer.models)

    def statistics(self, model: str | None, version: str) -> Flow[list[Any]]:
        """Of all models where `model` is None."""
        check_name("version", version, "1")
        if model is not None:
            check_name("model", model, "mnist")
        elif version:
            raise InvalidRequestError(f"version {version!r} of which model? give model= as well")
        request = protocol.ModelStatisticsRequest(name=model or "", version=version)
        return list((yield Call("ModelStatistics", request)).model_stats)

    def load(self, model: str, config: Mapping[str, Any] | None, files: Files | None) -> Flow[None]:
        yield Call("RepositoryModelLoad", load_request(model, config, files))
        self.forget(model)  # a version's limits and labels may be others now

    def forget(self, model: str) -> None:
        """Forgets what is known of a model."""
        for known in list(self._models):  # other threads add and remove some meanwhile
            if known[0] == model:
                self._models.pop(known, None)

    def unload(self, model: str) -> Flow[None]:
        check_name("model", model, "mnist")
        yield Call("RepositoryModelUnload", protocol.RepositoryModelUnloadRequest(model_name=model))

    def log_settings(self, changes: Mapping[str, Setting]) -> Flow[dict[str, Setting]]:
        answer = yield Call("LogSettings", log_request(changes))
        return {
            name: getattr(value, value.WhichOneof("parameter_choice"))
            for name, value in answer.settings.items()
            if value.WhichOneof("parameter_choice")
        }

    def metadata(self, model: str | None, version: str) -> Flow[Any]:
        name = yield from self.named(model, version)
        request = protocol.ModelMetadataRequest(name=name, version=version)
        return (yield Call("ModelMetadata", request))

    def config(self, model: str | None, version: str) -> Flow[Any]:
        name = yield from self.named(model, version)
        request = protocol.ModelConfigRequest(name=name, version=version)
        return (yield Call("ModelConfig", request)).config

    def model_ready(self, model: str | None, version: str) -> Flow[bool]:
        name = yield from self.named(model, version)
        request = protocol.ModelReadyRequest(name=name, version=version)
        return bool((yield Call("ModelReady", request)).ready)

    def wait_ready(self, model: str | None, version: str) -> Flow[None]:
        """Returns when the server, and `model` if it is given, are ready; the timeout ends it."""
        if model is not None:
            check_name("model", model, "mnist")
        check_name("version", version, "1")
        reason = "no answer"
        try:
            while True:
                with contextlib.suppress(UnavailableError):
                    if not (yield from self.server_ready(wait=True)):
                        reason = "the server says that it is not ready"
                    elif model is None or (yield from self.model_ready(model, version)):
                        return
                    else:
                        reason = f"model {model!r} is not ready"
                yield Sleep(0.05)
        except DeadlineExceededError:
            raise DeadlineExceededError(f"{self.address} is not ready: {reason}") from None

    def config_or_none(self, name: str, version: str) -> Flow[Any | None]:
        try:
            return (yield from self.config(name, version))
        except UnimplementedError:  # other servers of the protocol may have no ModelConfig
            return None

    def learn(self, model: str | None, version: str) -> Flow[ModelInfo]:
        """Asks the server about a model, and remembers the answer."""
        name = yield from self.named(model, version)
        metadata = yield from self.metadata(name, version)
        config = yield from self.config_or_none(name, version)
        info = ModelInfo.from_messages(metadata, config)
        self._models[name, version] = info
        return info
