"""The Model Context Protocol, all revisions: https://modelcontextprotocol.io/specification.

The edge imports this package with the first MCP message, and hands over every request that is MCP's. `face` decides,
per message, which era it belongs to; `legacy` and `modern` answer the requests of theirs, with what they share in
`era`; `tools` makes tools of methods and calls of tool calls, `resources` makes resources of protocols and providers,
`changes` tells who wants to know, and `schemas` makes JSON Schemas that every client can read.
"""
