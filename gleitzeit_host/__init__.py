"""Gleitzeit Host: a JSON-RPC host on stdin and stdout that routes to provider processes."""

__version__ = "0.1.0"
