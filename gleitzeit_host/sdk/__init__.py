"""Write a provider in Python: functions with a decorator, or a subclass of `ProtocolProvider`.

A process that the host started gives up its standard streams here, before anything else is imported: whatever is
printed from now on goes to stderr, which is the provider's log.
"""

import os

from gleitzeit_host import descriptors

if os.environ.pop("GLEITZEIT_PROVIDER", None) is not None:
    descriptors.claim()

from gleitzeit_host.errors import (
    AccessDenied,
    Cancelled,
    CircuitOpen,
    InternalError,
    InvalidParams,
    MessageTooLarge,
    MethodNotFound,
    Overloaded,
    ProviderGone,
    ProviderUnavailable,
    RpcError,
    Timeout,
    UnknownModel,
)
from gleitzeit_host.sdk.link import Call, HostLink, current_call, host
from gleitzeit_host.sdk.provider import ProtocolProvider, method
from gleitzeit_host.sdk.serve import run

__all__ = [
    "AccessDenied",
    "Call",
    "Cancelled",
    "CircuitOpen",
    "HostLink",
    "InternalError",
    "InvalidParams",
    "MessageTooLarge",
    "MethodNotFound",
    "Overloaded",
    "ProtocolProvider",
    "ProviderGone",
    "ProviderUnavailable",
    "RpcError",
    "Timeout",
    "UnknownModel",
    "current_call",
    "host",
    "method",
    "run",
]
