"""The attributes of an ONNX node, read by name and type; what nobody read is found out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onnx import AttributeProto, GraphProto, NodeProto, TensorProto

from convserve.convert.values import Unsupported
from convserve.errors import ConversionError

__all__ = ["Attributes"]

_TYPES = AttributeProto.AttributeType


class Attributes:
    """Reading an attribute of another type than asked for is a ConversionError.

    `bindings` are the attributes of the call, for a node inside a function.
    """

    def __init__(self, node: NodeProto, bindings: Mapping[str, AttributeProto]) -> None:
        self._found: dict[str, AttributeProto] = {}
        for attribute in node.attribute:
            if attribute.name in self._found:
                raise ConversionError(f"the attribute {attribute.name!r:.80} is there twice")
            if attribute.ref_attr_name:
                bound = bindings.get(attribute.ref_attr_name)
                if bound is None:
                    continue
                attribute, name = bound, attribute.name
                self._found[name] = attribute
            else:
                self._found[attribute.name] = attribute
        self._unread = set(self._found)

    def __contains__(self, name: str) -> bool:
        return name in self._found

    @property
    def all(self) -> dict[str, AttributeProto]:
        self._unread.clear()
        return dict(self._found)

    def integer(self, name: str, default: int | None = None) -> int:
        value: int = self._read(name, _TYPES.INT, "i", default)
        return value

    def number(self, name: str, default: float | None = None) -> float:
        value: float = self._read(name, _TYPES.FLOAT, "f", default)
        return value

    def integers(self, name: str, default: list[int] | None = None) -> list[int]:
        return list(self._read(name, _TYPES.INTS, "ints", default))

    def numbers(self, name: str, default: list[float] | None = None) -> list[float]:
        return list(self._read(name, _TYPES.FLOATS, "floats", default))

    def string(self, name: str, default: str | None = None) -> str:
        value = self._read(name, _TYPES.STRING, "s", default)
        return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)

    def tensor(self, name: str) -> TensorProto:
        return self._read(name, _TYPES.TENSOR, "t", None)  # type: ignore[no-any-return]

    def graph(self, name: str) -> GraphProto:
        return self._read(name, _TYPES.GRAPH, "g", None)  # type: ignore[no-any-return]

    def ignore(self, *names: str) -> None:
        """Attributes that do not change an inference in float32."""
        self._unread.difference_update(names)

    def check_all_read(self) -> None:
        if self._unread:
            names = ", ".join(sorted(self._unread))
            raise Unsupported(f"it has attributes that are not known here: {names:.200}")

    def _read(self, name: str, kind: int, field: str, default: Any) -> Any:
        self._unread.discard(name)
        attribute = self._found.get(name)
        if attribute is None:
            if default is None:
                raise ConversionError(f"it lacks the attribute {name!r}")
            return default
        if attribute.type != kind:
            raise ConversionError(f"its attribute {name!r} has a wrong type")
        return getattr(attribute, field)
