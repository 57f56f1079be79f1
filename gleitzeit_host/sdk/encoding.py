"""What a provider's author hands over, as JSON; what JSON cannot hold is an error that says where it is.

msgspec writes NaN as null, bytes as base64 and a set as a list without a word, so the value is looked at as well. What
consists of JSON's own types is told by pickle's C code, in about twice the time of the encoding; a walk in Python, for
all else, takes five to ten times as long.
"""

import dataclasses
import functools
import json
import math
import pickle
import re
from collections.abc import Iterable
from typing import Any

import msgspec

from gleitzeit_host import wire
from gleitzeit_host.errors import InternalError

_PLAIN = (str, int, bool, type(None))
_BYTES = (bytes, bytearray, memoryview)
_SETS = (set, frozenset)
_NOT_FINITE = re.compile(rb"G[\x7f\xff][\xf0-\xff]")  # how pickle begins NaN and Infinity; other bytes may look so too


def encode(value: Any, said: str) -> msgspec.Raw:
    """Encode a value.

    Args:
        value: JSON values, dataclasses, pydantic and msgspec models, dates and the like.
        said: Who handed it over, such as "math/mean returned".

    Raises:
        InternalError: there is something in it that JSON cannot hold; names it and its place, a JSON pointer.
    """
    try:
        text = _encoder.encode(value)
    except UnicodeEncodeError:  # lone surrogates: JSON can escape them, UTF-8 cannot hold them
        _refuse(value, said)
        text = wire.repair_surrogates(json.dumps(value, default=_plain_for_json).encode())
    except TypeError as error:
        _refuse(value, said)
        raise InternalError(f"{said} what JSON cannot hold: {error}") from None
    except RecursionError:
        raise InternalError(f"{said} what is nested too deep, or holds itself; JSON cannot") from None
    else:
        if not _is_plain(value) and not _is_holdable([value]):
            _refuse(value, said)
    return msgspec.Raw(text)


class _Sink:
    """Looks for NaN and Infinity in what pickle writes."""

    def __init__(self) -> None:
        self.finite = True

    def write(self, data: bytes) -> None:
        if self.finite and _NOT_FINITE.search(data):
            self.finite = False


class _Pickler(pickle.Pickler):
    """Pickles JSON's own types and tuples, and nothing else; in protocol 2, bytes and sets are something else."""

    def __init__(self, sink: _Sink) -> None:
        super().__init__(sink, 2)
        self.fast = True  # nobody reads it back

    def reducer_override(self, value: Any) -> Any:
        raise pickle.PicklingError(type(value).__name__)


def _is_plain(value: Any) -> bool:
    sink = _Sink()
    try:
        _Pickler(sink).dump(value)
    except (pickle.PicklingError, RecursionError, ValueError, OverflowError):
        return False
    return sink.finite


def _is_holdable(value: Any) -> bool:
    """Tell whether there are no NaN, Infinity, bytes and sets in what msgspec can encode."""
    left = [value]
    while left:
        for item in _inside(left.pop()):
            kind = type(item)
            if kind is float:
                if not math.isfinite(item):
                    return False
            elif kind not in _PLAIN:
                if isinstance(item, (*_BYTES, *_SETS)):
                    return False
                left.append(item)
    return True


def _inside(value: Any) -> Iterable[Any]:
    kind: Any = type(value)
    if kind is dict:
        return value.values()  # type: ignore[no-any-return]
    if kind is list or kind is tuple:
        return value  # type: ignore[no-any-return]
    names = _field_names(kind)
    return [item for _, item in _members(value)] if names is None else [getattr(value, name) for name in names]


@functools.cache
def _field_names(kind: Any) -> tuple[str, ...] | None:
    """Return the fields of a dataclass or msgspec model."""
    if issubclass(kind, msgspec.Struct):
        return kind.__struct_fields__  # type: ignore[no-any-return]
    return tuple(field.name for field in dataclasses.fields(kind)) if dataclasses.is_dataclass(kind) else None


def _refuse(value: Any, said: str) -> None:
    found = _find(value, "")
    if found is not None:
        what, place = found
        raise InternalError(f"{said} {what}{f' at {place}' if place else ''}, which JSON cannot hold")


def _find(value: Any, place: str) -> tuple[str, str] | None:
    """Return what JSON cannot hold, and where."""
    kind = type(value)
    if kind in _PLAIN:
        return None
    if isinstance(value, float):
        return None if math.isfinite(value) else (str(float(value)), place)
    if isinstance(value, _BYTES):
        return kind.__name__, place
    if isinstance(value, _SETS):
        return f"a {kind.__name__}", place
    for key, item in _members(value):
        found = _find(item, f"{place}/{str(key).replace('~', '~0').replace('/', '~1')}")
        if found is not None:
            return found
    return None if _can_be_encoded(value) else (f"a {kind.__name__}", place)


def _members(value: Any) -> Any:
    if isinstance(value, dict):
        return value.items()
    if isinstance(value, list | tuple):
        return enumerate(value)
    if isinstance(value, msgspec.Struct):
        names = zip(value.__struct_encode_fields__, value.__struct_fields__, strict=True)
        return ((encoded, getattr(value, name)) for encoded, name in names)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return ((field.name, getattr(value, field.name)) for field in dataclasses.fields(value))
    if hasattr(value, "model_dump"):
        return _plain(value).items()
    return ()


def _can_be_encoded(value: Any) -> bool:
    """Tell whether the value itself is the matter; what is in it has been looked at."""
    if isinstance(value, dict):
        value = dict.fromkeys(value)
    elif isinstance(value, list | tuple):
        return True
    try:
        _encoder.encode(value)
    except UnicodeEncodeError:
        return True
    except TypeError:
        return False
    return True


def _plain(value: Any) -> Any:
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    raise TypeError(f"{type(value).__name__} is not JSON")


def _plain_for_json(value: Any) -> Any:
    """Return what the standard library can encode: msgspec knows more types, and wants them without surrogates."""
    members = dict(_members(value))
    return members or (str(value) if _can_be_encoded(value) else _plain(value))


_encoder = msgspec.json.Encoder(enc_hook=_plain)
