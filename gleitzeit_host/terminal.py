"""Text on its way to people: control characters are shown, not obeyed, and output that nobody takes is noticed."""

import contextlib
import os
import re
import select

# C0 and C1 controls, marks and overrides of direction, line separators, and bytes that were not UTF-8
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_CONTROL_IN_JSON = re.compile("[\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


class OutputLost(Exception):
    """What was to be written did not arrive; the text says why, and is empty where the reader has gone away."""


def visible(text: str) -> str:
    r"""Return the text as one line in which an escape character is the four characters `\x1b`, and so on."""
    return _CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def visible_json(text: str) -> str:
    r"""Return the same JSON without control characters: `json` itself leaves those from U+007F on."""
    return _CONTROL_IN_JSON.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def occupy() -> None:
    """Fill closed standard descriptors, or the next file opened would be taken for one; writing to them still fails."""
    descriptor = os.open(os.devnull, os.O_RDONLY)
    while descriptor <= 2:
        descriptor = os.dup(descriptor)
    os.close(descriptor)


def write(text: str) -> None:
    """Write to stdout, in UTF-8 and at once; raises OutputLost."""
    try:
        _write(1, text)
    except BrokenPipeError:
        raise OutputLost("") from None
    except OSError as error:
        raise OutputLost(f"the output is lost: stdout: {error.strerror}") from None


def complain(text: str) -> None:
    """Write one line to stderr, if anybody takes it."""
    with contextlib.suppress(OSError):
        _write(2, visible(text) + "\n")


def _write(descriptor: int, text: str) -> None:
    data = memoryview(text.encode("utf-8", "backslashreplace"))
    while data:
        try:
            data = data[os.write(descriptor, data) :]
        except BlockingIOError:  # its launcher has made it so
            select.select([], [descriptor], [])
