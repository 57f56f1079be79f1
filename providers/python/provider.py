"""python/v1: execute, validate and info, by code that runs in sandboxes."""

import importlib.util
import keyword
import os
import signal
import sys
from typing import Any

import anyio.to_thread
import msgspec
from pydantic import BaseModel, Field
from sandbox import Limits, Outcome, ProcessSandbox, Sandbox, Task

from gleitzeit_host.sdk import InvalidParams, ProtocolProvider, method, run

SOURCE_BYTES = 16 << 20  # that a file may have
CHECK_TIMEOUT = 10.0  # seconds for compiling, and for looking at the interpreter
RESERVED = frozenset({"context", "result"})  # names that have a meaning already

INFO = """
import importlib.metadata, platform, sys
packages = {found.name: found.version for found in importlib.metadata.distributions() if found.name}
result = {
    "version": platform.python_version(),
    "implementation": platform.python_implementation(),
    "platform": platform.platform(),
    "executable": sys.executable,
    "packages": dict(sorted(packages.items(), key=lambda item: item[0].lower())),
}
"""


class Settings(BaseModel):
    """The provider's settings; provider.toml says what they mean, and has the defaults."""

    timeout: float = Field(gt=0)
    max_timeout: float = Field(gt=0, le=86_400)
    memory_mb: int = Field(ge=64)
    cpu_seconds: int | None = Field(default=None, ge=1)
    open_files: int = Field(ge=32)
    file_mb: int = Field(ge=1)
    processes: int = Field(ge=0)
    output_kb: int = Field(ge=1, le=8 << 10)
    output_limit_mb: int = Field(ge=1)
    result_mb: int = Field(ge=1, le=32)
    warm: int = Field(ge=0, le=64)
    concurrency: int | None = Field(default=None, ge=1, le=1000)
    python: str | None = None

    def limits(self) -> Limits:
        """Return what a run may use."""
        return Limits(
            memory=self.memory_mb << 20,
            cpu=self.cpu_seconds or 0,
            files=self.open_files,
            file_size=self.file_mb << 20,
            processes=self.processes,
            output_kept=self.output_kb << 10,
            output=self.output_limit_mb << 20,
            result=self.result_mb << 20,
        )


class ErrorText(msgspec.Struct):
    """What went wrong with a run: `type` is an exception's name, or one of those that `explain` has."""

    type: str
    message: str
    traceback: str = ""


class Report(msgspec.Struct):
    """What a run says about itself."""

    error: ErrorText | None
    is_repr: bool
    result: msgspec.Raw = msgspec.Raw(b"null")


class PythonProvider(ProtocolProvider[Settings]):
    """Serves python/v1."""

    version = "1.0"

    async def start(self) -> None:
        """Start the sandboxes; raises RuntimeError if the interpreter does not run."""
        settings = self.settings
        if settings.timeout > settings.max_timeout:
            raise ValueError(f"timeout = {settings.timeout:g} is more than max_timeout = {settings.max_timeout:g}")
        self.concurrency = settings.concurrency or (os.cpu_count() or 1) + 2
        self._info: dict[str, Any] | None = None
        process = ProcessSandbox(settings.python or sys.executable, settings.limits(), settings.warm)
        self._sandboxes: dict[str, Sandbox] = {process.level: process}  # the strongest first
        for sandbox in self._sandboxes.values():
            await sandbox.start()

    async def stop(self) -> None:
        """Leave nothing running and nothing behind."""
        for sandbox in getattr(self, "_sandboxes", {}).values():
            await sandbox.stop()

    @method("python/execute")
    async def execute(
        self,
        code: str | None = None,
        file: str | None = None,
        context: dict[str, Any] | None = None,
        args: dict[str, Any] | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - a param of the method
        execution_mode: str | None = None,
        **unserved: Any,
    ) -> dict[str, Any]:
        """Run code and return what became of it; an exception in the code is an answer, not an error."""
        if unserved:  # params of python/v1 that need a level which is not there
            raise InvalidParams(
                f"No sandbox that is present here supports {', '.join(sorted(unserved))}",
                errors=[{"path": f"/{name}", "message": "not supported here"} for name in sorted(unserved)],
            )
        if (code is None) == (file is None):
            raise InvalidParams(
                "Give either `code` or `file`, and not both",
                errors=[{"path": path, "message": "exactly one of /code and /file"} for path in ("/code", "/file")],
            )
        seconds = self._seconds(timeout)
        sandbox = self._pick(execution_mode)
        source, filename = code, "<code>"
        if file is not None:
            source, filename = await anyio.to_thread.run_sync(self._read_source, file)
        assert source is not None
        task = Task(code=source, filename=filename, context=context or {}, args=_checked_names(args or {}))
        outcome = await sandbox.run(task, seconds)
        answer = self._answer(outcome, seconds) | {"sandbox": sandbox.level}
        return answer if execution_mode is None else answer | {"execution_mode": execution_mode}

    @method("python/validate")
    async def validate(self, code: str) -> dict[str, Any]:
        """Compile code without running it, in a sandbox: a source can crash the compiler, too."""
        outcome = await self._strongest.run(Task(mode="check", code=code), CHECK_TIMEOUT)
        answer = self._answer(outcome, CHECK_TIMEOUT)
        if answer["error"] is None:
            errors = msgspec.json.decode(answer["result"])
        else:
            errors = [{"line": 1, "column": 1, "message": f"it cannot be compiled: {answer['error'].message}"}]
        return {"valid": not errors, "errors": errors}

    @method("python/info")
    async def info(self) -> dict[str, Any]:
        """Describe the interpreter that runs the code, the sandboxes and the limits."""
        if self._info is None:
            answer = self._answer(await self._strongest.run(Task(code=INFO), CHECK_TIMEOUT), CHECK_TIMEOUT)
            if answer["error"] is not None:
                raise RuntimeError(f"the interpreter cannot be looked at: {answer['error'].message}")
            self._info = msgspec.json.decode(answer["result"])
        return {
            **self._info,
            "sandboxes": [{"level": level, "available": True} for level in self._sandboxes],
            "default": self._strongest.level,
            "limits": self.settings.model_dump(exclude={"python"}, exclude_none=True),
        }

    # ---- before a run

    @property
    def _strongest(self) -> Sandbox:
        return next(iter(self._sandboxes.values()))

    def _pick(self, mode: str | None) -> Sandbox:
        if mode is None or mode == "sandboxed":
            return self._strongest
        sandbox = self._sandboxes.get("process" if mode == "local" else mode)
        if sandbox is None:
            there = ", ".join(sorted({"sandboxed", "local", *self._sandboxes}))
            raise InvalidParams(
                f"There is no execution_mode {mode!r} here, but: {there}",
                errors=[{"path": "/execution_mode", "message": f"not one of {there}"}],
            )
        return sandbox

    def _seconds(self, timeout: float | None) -> float:
        seconds, most = self.settings.timeout if timeout is None else timeout, self.settings.max_timeout
        if not 0 < seconds <= most:
            raise InvalidParams(
                f"timeout = {seconds:g} s is not above 0 and at most max_timeout = {most:g} s",
                errors=[{"path": "/timeout", "message": f"not above 0 and at most {most:g}"}],
            )
        return seconds

    def _read_source(self, file: str) -> tuple[str, str]:
        path = self.resolve_path(file)
        try:
            if not path.is_file():
                raise InvalidParams(f"{file!r} is not a file")
            if (size := path.stat().st_size) > SOURCE_BYTES:
                raise InvalidParams(f"{file!r} has {size} bytes; {SOURCE_BYTES} are allowed")
            return importlib.util.decode_source(path.read_bytes()), path.name
        except (OSError, SyntaxError, UnicodeError) as error:
            raise InvalidParams(f"{file!r} cannot be read as Python source: {error}") from None

    # ---- after a run

    def _answer(self, outcome: Outcome, seconds: float) -> dict[str, Any]:
        report = read_report(outcome.report)
        error = explain(outcome, report, seconds, self.settings)
        answer = {
            "result": report.result if report is not None and outcome.exit_code == 0 else None,
            "stdout": outcome.stdout.decode(errors="replace"),
            "stderr": outcome.stderr.decode(errors="replace"),
            "success": error is None,
            "error": error,
            "duration_ms": round(outcome.duration_ms, 3),
        }
        if report is not None and report.is_repr:
            answer["result_is_repr"] = True
        for stream in ("stdout", "stderr"):
            if getattr(outcome, f"{stream}_bytes") > len(getattr(outcome, stream)):
                answer[f"{stream}_truncated"] = True
        return answer


def _checked_names(args: dict[str, Any]) -> dict[str, Any]:
    bad = [name for name in args if not name.isidentifier() or keyword.iskeyword(name)]
    taken = [name for name in args if name in RESERVED or (name.startswith("__") and name.endswith("__"))]
    if bad or taken:
        problems = [f"{name!r} is not an identifier" for name in bad] + [f"{name!r} is taken" for name in taken]
        raise InvalidParams(
            f"args become variables, but {', '.join(problems)}",
            errors=[{"path": f"/args/{name}", "message": "not the name of a variable"} for name in bad + taken],
        )
    return args


def read_report(data: bytes) -> Report | None:
    """Read a run's report, which the code may have forged; None if it cannot be used."""
    head, _, result = data.partition(b"\n")
    try:
        report = msgspec.json.decode(head, type=Report)
        msgspec.json.decode(result)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    report.result = msgspec.Raw(result)
    return None if b"\n" in result else report  # it would break the line that the answer is


def explain(outcome: Outcome, report: Report | None, seconds: float, settings: Settings) -> ErrorText | None:
    """Return what went wrong: what the code raised, or how the run was ended."""
    code, end = outcome.exit_code, outcome.end
    if end == "timeout":
        return ErrorText("Timeout", f"The code did not finish within {seconds:g} s and was stopped")
    if end == "output":
        return ErrorText("OutputLimit", f"The code printed more than {settings.output_limit_mb} MiB and was stopped")
    if end == "lost" or code is None:
        return ErrorText("SandboxLost", "The process that watches over the run was killed; the run was stopped")
    if code < 0:
        return _killed(-code, outcome, settings)
    if code > 0 or report is None:
        return ErrorText("Exited", f"The process exited with status {code} before the code was done, as by os._exit")
    return report.error


def _killed(number: int, outcome: Outcome, settings: Settings) -> ErrorText:
    used = outcome.cpu_seconds or 0.0
    allowed = settings.cpu_seconds
    if number == signal.SIGXCPU or (number == signal.SIGKILL and allowed is not None and used >= allowed):
        return ErrorText("CpuLimit", f"The code used {used:.1f} s of processor time, which is all it may")
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = f"signal {number}"
    cause = ": by the code itself, or by the system because memory ran out" if number == signal.SIGKILL else ""
    return ErrorText("Signal", f"The process was killed by {name}{cause}")


if __name__ == "__main__":
    run(PythonProvider)
