"""Serve a provider on the process's standard streams until they end."""

import signal
import sys
import traceback
from typing import Any

import anyio
from msgspec import UNSET, Raw, UnsetType

from gleitzeit_host import descriptors, stdio, wire
from gleitzeit_host.errors import Cancelled, InternalError, InvalidParams, InvalidRequest, RpcError
from gleitzeit_host.peer import Peer, Request, Turn
from gleitzeit_host.sdk.encoding import encode
from gleitzeit_host.sdk.link import Call, enter, host
from gleitzeit_host.sdk.provider import FunctionProvider, ProtocolProvider

PROTOCOL_VERSION = 1
MESSAGE_BYTES = 1 << 30  # the host keeps its own limit, which it tells at the handshake
LAST_CALLS = 1.0  # seconds for which calls in flight may go on after the end of input


def run(provider: type[ProtocolProvider[Any]] | None = None) -> None:
    """Serve until end of input or SIGTERM.

    Args:
        provider: The class to serve; None: the functions that `@method` marked.
    """
    streams = descriptors.claim()
    RpcError.source = "provider"
    anyio.run(Server(provider or FunctionProvider).serve, *streams, backend_options={"use_uvloop": _has_uvloop()})


def _has_uvloop() -> bool:
    try:
        import uvloop  # noqa: F401, PLC0415
    except ImportError:
        return False
    return True


class Server:
    """The provider's end of the pipe (Owner of its peer)."""

    def __init__(self, provider: type[ProtocolProvider[Any]]) -> None:
        self._provider = provider()
        self._calls: dict[int, Call] = {}
        self._started = False

    async def serve(self, input_fd: int, output_fd: int) -> None:
        """Read and answer until the end."""
        self._over = anyio.Event()
        self._idle = anyio.Event()
        self._ready = anyio.Event()
        self._writer = stdio.open_writer(output_fd, self._over.set, lambda _pressed: None)
        self._peer = Peer(self, self._writer.write, turn=Turn(), max_bytes=MESSAGE_BYTES, max_values=MESSAGE_BYTES)
        host.connect(self._peer, self._flow)
        reader = stdio.open_reader(input_fd, self._peer.feed, self._input_ended)
        try:
            async with anyio.create_task_group() as self._tasks:
                self._tasks.start_soon(self._watch_sigterm)
                await self._over.wait()
                await self._finish_calls()
                self._tasks.cancel_scope.cancel()
        finally:
            with anyio.CancelScope(shield=True):
                reader.close()
                if self._started:
                    await self._provider.stop()
                self._peer.flush()
                await self._writer.flush()

    async def _flow(self) -> None:
        if self._writer.pending > stdio.HIGH_WATER:
            self._peer.flush()
            await self._writer.flush()

    def _input_ended(self) -> None:
        self._peer.feed_end()
        self._over.set()

    async def _finish_calls(self) -> None:
        with anyio.move_on_after(LAST_CALLS):
            while self._calls:
                self._idle = anyio.Event()
                await self._idle.wait()

    async def _watch_sigterm(self) -> None:
        with anyio.open_signal_receiver(signal.SIGTERM) as signals:
            async for _ in signals:
                for call in self._calls.values():
                    call.scope.cancel()
                self._over.set()

    # ---- Owner of the peer

    def on_request(self, request: Request) -> None:
        """Take the handshake, a ping or a call; each runs in a task of its own."""
        if request.id is None:
            return
        if request.method == "initialize":
            self._tasks.start_soon(self._answer, request, None, lambda: self._initialize(request))
        elif request.method == "ping":
            self._tasks.start_soon(self._answer, request, None, self._ping)
        else:
            self._start_call(request)

    def _start_call(self, request: Request) -> None:
        try:
            params = wire.read_params(request.params)
            id = int(request.id or b"")
            if not isinstance(params, dict):
                raise InvalidRequest("The params are not an object")
        except (RpcError, ValueError) as error:
            request.fail(error if isinstance(error, RpcError) else InvalidRequest("The id is not an integer"))
            return
        meta = params.pop("_meta", {})
        call = Call(host, id, request.method, meta if isinstance(meta, dict) else {})
        self._calls[id] = call
        self._tasks.start_soon(
            self._answer, request, call, lambda: self._provider.handle_request(request.method, params)
        )

    def on_notification(self, method: str, params: Raw | UnsetType) -> None:
        """Cancel a call, or hand on progress of a call-back."""
        if method == "notifications/cancelled" and params is not UNSET:
            call = self._calls.get(wire.decode(params).get("requestId"))
            if call is not None:
                call.cancelled = True
                call.scope.cancel()
        elif method == "notifications/progress":
            host.hear(params)

    def on_problem(self, line: bytes, error: RpcError) -> None:
        """Log what is not a message: the host sends none."""
        print(f"not a message: {error.message}: {line[:200]!r}", file=sys.stderr)  # noqa: T201

    # ---- answers

    async def _answer(self, request: Request, call: Call | None, work: Any) -> None:
        """Do the work and answer: the one boundary where exceptions become errors."""
        try:
            if call is None:
                result = await work()
            else:
                enter(call)
                result = await self._in_scope(call, work)
            request.respond(encode(result, f"{request.method} returned"))
        except RpcError as error:
            _fail(request, error)
        except Exception as error:  # noqa: BLE001 - whatever a handler raises is an answer
            traceback.print_exc(file=sys.stderr)
            _fail(request, InternalError(f"{type(error).__name__}: {error}"))
        finally:
            if call is not None:
                del self._calls[call.id]
                self._idle.set()

    async def _in_scope(self, call: Call, work: Any) -> Any:
        with call.scope:
            return await work()
        raise Cancelled("The call was cancelled")

    async def _initialize(self, request: Request) -> dict[str, Any]:
        params = wire.read_params(request.params)
        version = params.get("protocolVersion")
        if version != PROTOCOL_VERSION:
            raise InvalidRequest(
                f"The host speaks version {version} of the provider protocol, this SDK {PROTOCOL_VERSION}"
            )
        provider = self._provider
        try:
            provider.configure(params.get("settings", {}), params.get("roots", []), params.get("state"))
        except ValueError as error:
            raise InvalidParams(str(error)) from None
        self._started = True
        await provider.start()
        hello: dict[str, Any] = {
            "protocolVersion": PROTOCOL_VERSION,
            "provider": {"name": params["provider"], "version": provider.version},
            "methods": provider.get_supported_methods(),
            "capabilities": provider.capabilities,
        }
        if provider.concurrency is not None:
            hello["concurrency"] = provider.concurrency
        if type(provider).health is not ProtocolProvider.health:
            hello["ping"] = True
        self._ready.set()
        return hello

    async def _ping(self) -> Any:
        return await self._provider.health()


class _Fit(RpcError):
    """An error as it goes out."""

    def __init__(self, code: int, message: str, data: Raw) -> None:
        super().__init__(message)
        self.code = code
        self._raw = data

    def to_dict(self) -> dict[str, Any]:
        """Return the error object with its data as raw JSON."""
        return {**super().to_dict(), "data": self._raw}


def _fail(request: Request, error: RpcError) -> None:
    """Answer with an error, also with one whose message or data are not fit for JSON."""
    try:
        data = encode(error.data, f"{request.method} failed ({error.message}), and the error's data holds")
    except InternalError as defect:
        error, data = defect, encode(defect.data, "")
    message = error.message.encode("utf-8", "replace").decode()
    request.fail(_Fit(error.code, message, data))
