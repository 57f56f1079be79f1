"""What a provider's author hands over, as JSON; what JSON cannot hold is an error that says where it is.

msgspec writes NaN as null, bytes as base64 and a set as a list without a word. A value that comes back equal from its
own text holds none of them, and finding that out is two loops in C; only what does not, such as a tuple, is walked.
"""

import dataclasses
import json
import math
from typing import Any

import msgspec

from gleitzeit_host import wire
from gleitzeit_host.errors import InternalError


def _plain(value: Any) -> Any:
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    raise TypeError(f"{type(value).__name__} is not JSON")


_encoder = msgspec.json.Encoder(enc_hook=_plain)
_PLAIN = (str, int, bool, type(None))
_BYTES = (bytes, bytearray, memoryview)
_SETS = (set, frozenset)


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
        if type(value) not in _PLAIN and not _comes_back(value, text):
            _refuse(value, said)
    return msgspec.Raw(text)


def _comes_back(value: Any, text: bytes) -> bool:
    try:
        return bool(wire.decode(text) == value)
    except (ValueError, RecursionError):  # a number, or nesting, that only fits in one direction
        return False


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


def _plain_for_json(value: Any) -> Any:
    """Return what the standard library can encode: msgspec knows more types, and wants them without surrogates."""
    members = dict(_members(value))
    return members or (str(value) if _can_be_encoded(value) else _plain(value))
