"""What happens to code inside a sandbox: it is compiled, run and described. Standard library only, Python 3.11.

A task is JSON: `{"mode": "execute", "code", "filename", "context", "args"}` or `{"mode": "check", "code"}`. A report is
a line of JSON, `{"error": {"type", "message", "traceback"} or null, "is_repr": whether the result is a repr}`, and then
the result as JSON.
"""

import ast
import atexit
import contextlib
import io
import json
import linecache
import math
import os
import resource
import sys
import traceback
import types
import warnings
from collections.abc import Callable
from typing import Any, BinaryIO, NoReturn

TEXT = 64 << 10  # characters of a message, traceback or repr that are kept
FRAMES = 1100  # of a traceback, the innermost: more than the interpreter's own limit on recursion
DEPTH = 100  # containers in containers that a result may have
LARGEST = 10**4299  # of ints: CPython's decoders take no more digits
VALUE = " value"  # no name that code can have

Error = dict[str, str]


def perform(task: BinaryIO, memory: int, result_limit: int) -> bytes:
    """Do a task and return the report.

    Args:
        task: Where to read it; closed afterwards.
        memory: Bytes allowed, for the error that says so.
        result_limit: Bytes that the result may have as JSON.
    """
    try:
        with task:
            loaded = json.load(task)
        error, is_repr, result = _perform(loaded, memory)
        data = result.encode()
    except MemoryError as raised:
        error, is_repr, data = describe(raised, "", memory), False, b"null"
    if len(data) > result_limit:
        excess = f"The result has {len(data)} bytes as JSON; {result_limit} are allowed"
        error, data = error or {"type": "ResultTooLarge", "message": excess, "traceback": ""}, b"null"
    return json.dumps({"error": error, "is_repr": is_repr}, ensure_ascii=False).encode() + b"\n" + data


def _perform(task: dict[str, Any], memory: int) -> tuple[Error | None, bool, str]:
    if task["mode"] == "check":
        return None, False, json.dumps(check(task["code"]))
    names, raised = execute(task)
    if raised is None or isinstance(raised, SystemExit):
        finish()
    value = names.pop(VALUE, None)
    result, is_repr = encode(names.get("result", value))
    error = describe(raised, task["filename"], memory) if raised is not None else None
    return error, is_repr, result


def warm_up() -> None:
    """Do once what every task does: memory that is written to is copied now, and not when a task waits for it."""
    names, _ = execute({"code": "0", "filename": "<code>", "args": {}, "context": json.loads("{}")})
    encode([names[VALUE]])


def execute(task: dict[str, Any]) -> tuple[dict[str, Any], BaseException | None]:
    """Run code; return its variables, the last expression's value among them, and what was raised."""
    code, filename, process = task["code"], task["filename"], os.getpid()
    linecache.cache[filename] = len(code), None, code.splitlines(keepends=True), filename
    sys.argv = [filename]
    sys.modules["__main__"] = module = types.ModuleType("__main__")
    names = module.__dict__
    names |= {**task["args"], "context": task["context"]}
    error = None
    try:
        exec(compile_with_value(code, filename), names)  # noqa: S102 - what this program is for
    except BaseException as raised:  # noqa: BLE001 - SystemExit and KeyboardInterrupt are outcomes, too
        error = raised
    if os.getpid() != process:
        end_fork(error)
    if isinstance(error, SystemExit):
        if error.code is not None and not isinstance(error.code, int):
            print(error.code, file=sys.stderr)  # noqa: T201 - as the interpreter does
        error = error if error.code else None
    return names, error


def compile_with_value(code: str, filename: str) -> types.CodeType:
    """Compile a program whose last statement, where it is an expression, leaves its value in `VALUE`."""
    tree = ast.parse(code, filename)
    if tree.body and isinstance(last := tree.body[-1], ast.Expr):
        target = ast.copy_location(ast.Name(VALUE, ast.Store()), last)
        tree.body[-1] = ast.copy_location(ast.Assign([target], last.value), last)
    return compile(tree, filename, "exec", dont_inherit=True)


def finish() -> None:
    """Do what an interpreter does at its end: wait for threads, and call what asked for it."""
    try:
        if "threading" in sys.modules:  # not by itself: it makes every fork slower
            sys.modules["threading"]._shutdown()  # noqa: SLF001 - what thread pools wait for
        atexit._run_exitfuncs()  # noqa: SLF001 - the only way without ending the interpreter
    except BaseException:  # noqa: BLE001 - as the interpreter does
        traceback.print_exc()


def end_fork(error: BaseException | None) -> NoReturn:
    """End a process that the code forked and that has come to the code's end, as an interpreter would."""
    status = 0
    if isinstance(error, SystemExit):
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    elif error is not None:
        traceback.print_exception(error)
        status = 1
    os._exit(status & 0xFF)


# ---- the error


def describe(error: BaseException, filename: str, memory: int) -> Error:
    """Return what the code raised, with the frames of its own file."""
    if isinstance(error, MemoryError) and sys.platform != "darwin":  # telling it needs some, too
        resource.setrlimit(resource.RLIMIT_AS, (resource.getrlimit(resource.RLIMIT_AS)[1],) * 2)
    message = text_of(str, error)
    if isinstance(error, MemoryError) and not message:
        message = f"The code needs more memory than the {memory >> 20} MiB allowed"
    shown = traceback.TracebackException.from_exception(error, limit=-FRAMES, compact=True)
    pending: list[traceback.TracebackException | None] = [shown]
    while pending:
        if (one := pending.pop()) is not None:
            one.stack[:] = [frame for frame in one.stack if frame.filename == filename]
            pending += [one.__cause__, one.__context__, *(getattr(one, "exceptions", None) or ())]
    return {"type": type(error).__name__, "message": message, "traceback": cut("".join(shown.format()))}


def text_of(how: Callable[[Any], str], value: Any) -> str:
    """Return the str or repr of anything, or what came of trying."""
    try:
        return cut(how(value))
    except BaseException as error:  # noqa: BLE001 - it is the code's own
        return f"<{type(value).__name__} whose {how.__name__} raised {type(error).__name__}>"


def cut(text: str) -> str:
    """Shorten a text in the middle, and replace what UTF-8 cannot hold."""
    if len(text) > TEXT:
        text = f"{text[: TEXT // 2]}\n… {len(text) - TEXT} characters …\n{text[-TEXT // 2 :]}"
    return text.encode("utf-8", "backslashreplace").decode()


# ---- the result


def encode(value: Any) -> tuple[str, bool]:
    """Return a value as JSON, or its repr as a JSON string and True."""
    if is_json(value):
        with contextlib.suppress(ValueError):  # unpaired surrogates
            text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
            text.encode()
            return text, False
    return json.dumps(text_of(repr, value), ensure_ascii=False), True


def is_json(value: Any, depth: int = DEPTH) -> bool:
    """Whether JSON can hold a value and give it back as what it is."""
    if value is None or isinstance(value, bool | str):
        return True
    if isinstance(value, int):
        return -LARGEST < value < LARGEST
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, dict):
        return depth > 0 and all(isinstance(key, str) and is_json(item, depth - 1) for key, item in value.items())
    return isinstance(value, list) and depth > 0 and all(is_json(item, depth - 1) for item in value)


# ---- checking


def check(code: str) -> list[dict[str, Any]]:
    """Compile without running; return the errors as {line, column, message}, counted from 1."""
    warnings.simplefilter("ignore")
    if (position := code.find("\0")) >= 0:
        line, column = code.count("\n", 0, position) + 1, position - code.rfind("\n", 0, position)
        return [{"line": line, "column": column, "message": "source code cannot contain null characters"}]
    try:
        compile(code, "<code>", "exec", dont_inherit=True)
    except SyntaxError as error:
        line, column = max(error.lineno or 1, 1), max(error.offset or 1, 1)
        return [{"line": line, "column": column, "message": cut(error.msg)}]
    except (RecursionError, MemoryError, OverflowError, ValueError) as error:
        reason = text_of(str, error) or type(error).__name__
        return [{"line": 1, "column": 1, "message": f"it cannot be compiled: {reason}"}]
    return []


# ---- the streams


class Unbuffered(io.FileIO):
    """A pipe that takes everything at once: what was printed is out, whatever becomes of the process."""

    def write(self, data: Any, /) -> int:
        """Write all of it, interrupted by signal handlers or not."""
        left = whole = memoryview(data).cast("B")
        while left:
            left = left[super().write(left) or 0 :]
        return len(whole)


def open_streams() -> None:
    """Make sys.stdin, stdout and stderr anew, on descriptors 0, 1 and 2."""
    sys.stdin = open(0, closefd=False)  # noqa: SIM115 - for as long as the process lives
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        raw = Unbuffered(descriptor, "w", closefd=False)
        stream = io.TextIOWrapper(raw, "utf-8", "backslashreplace", write_through=True)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
