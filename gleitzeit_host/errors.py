"""Every error the host can answer with.

RpcError                    an error object of JSON-RPC 2.0, section 5.1
├── RemoteError             what the other end answered with
├── ParseError              the bytes are not JSON
├── InvalidRequest          JSON, but not a request
├── MethodNotFound          no protocol defines the method
├── InvalidParams           the params break the method's schema; ``data.errors`` lists how
├── InternalError           a defect of the host or of a provider
├── ProviderUnavailable     defined, but nobody serves it now
├── Timeout                 the deadline passed
├── Overloaded              the queue for the method is full
├── ProviderGone            the provider died with the call in flight
├── Cancelled               the caller cancelled
├── CircuitOpen             the breaker is open
├── ProviderProtocol        the provider broke the protocol
├── AccessDenied            outside the roots, or not the caller's to use
├── MessageTooLarge         over a limit of size, depth or length
├── TooDeep                 call-backs nested too deep
└── UnknownModel            nobody has that model

`ConfigurationError` is apart: it is never sent, it ends the program with exit status 2.
"""

from typing import Any, ClassVar


class RpcError(Exception):
    """An error that becomes the answer of a call.

    ``data`` always holds ``name``, ``source`` and ``retryable``; other keys are added by whoever knows them
    (``provider``, ``method``, ``retryAfterMs``, ``detail``, …).
    """

    code = -32603
    name = "internal_error"
    retryable = False
    source: ClassVar[str] = "host"  # who makes such errors in this process; the SDK says "provider"

    def __init__(self, message: str, **data: Any) -> None:
        super().__init__(message)
        self.message = message
        self.data: dict[str, Any] = {
            "name": self.name,
            "source": RpcError.source,
            "retryable": self.retryable,
            **data,
        }

    def to_dict(self) -> dict[str, Any]:
        """Return the error object of JSON-RPC 2.0, section 5.1."""
        return {"code": self.code, "message": self.message, "data": self.data}


class RemoteError(RpcError):
    """An error that the other end of a connection answered with; code, message and data are its own."""

    def __init__(self, code: int, message: str, data: Any = None) -> None:
        super().__init__(message)
        self.code = code
        self.given = data  # as it came
        if isinstance(data, dict):
            self.data |= data


class ParseError(RpcError):
    """The bytes are not JSON."""

    code = -32700
    name = "parse_error"


class InvalidRequest(RpcError):
    """The JSON is not a request object."""

    code = -32600
    name = "invalid_request"


class MethodNotFound(RpcError):
    """No loaded protocol defines the method."""

    code = -32601
    name = "method_not_found"


class InvalidParams(RpcError):
    """The params break the method's schema; ``data.errors`` is a list of ``{path, message}``."""

    code = -32602
    name = "invalid_params"


class InternalError(RpcError):
    """A defect: of the host, or of a provider whose handler raised."""

    code = -32603
    name = "internal_error"


class ProviderUnavailable(RpcError):
    """The method is defined, but nobody serves it now; the message says what to do."""

    code = -31001
    name = "provider_unavailable"
    retryable = True


class Timeout(RpcError):
    """The deadline passed and the provider was told to stop; retryable if the method is idempotent."""

    code = -31002
    name = "timeout"


class Overloaded(RpcError):
    """The queue for the method is full; ``data.retryAfterMs`` says when to come back."""

    code = -31003
    name = "overloaded"
    retryable = True


class ProviderGone(RpcError):
    """The provider died with the call in flight; retryable if the method is idempotent."""

    code = -31004
    name = "provider_gone"


class Cancelled(RpcError):
    """The caller cancelled the call."""

    code = -31005
    name = "cancelled"


class CircuitOpen(RpcError):
    """The breaker of the provider or resource is open; ``data.retryAfterMs`` says when to come back."""

    code = -31006
    name = "circuit_open"
    retryable = True


class ProviderProtocol(RpcError):
    """The provider broke the provider protocol."""

    code = -31007
    name = "provider_protocol"


class AccessDenied(RpcError):
    """A path outside the allowed roots, or a method that the caller may not use."""

    code = -31008
    name = "access_denied"


class MessageTooLarge(RpcError):
    """A message over a limit of size, depth or length."""

    code = -31009
    name = "message_too_large"


class TooDeep(RpcError):
    """Call-backs nested beyond the limit."""

    code = -31010
    name = "too_deep"


class UnknownModel(RpcError):
    """Nobody has that model; ``data.models`` lists those there are."""

    code = -31011
    name = "unknown_model"


class ConfigurationError(Exception):
    """The configuration, a manifest or the command line cannot be used; the text says why and what to do."""
