#!/bin/sh
# Fetch the MCP clients for Node.js from npm into a folder, and print it: both versions of the TypeScript SDK, and the
# Inspector. Needs npm and node.
#   GLEITZEIT_NODE_CLIENTS=$(tests/support/fetch_node_clients.sh /tmp/node-clients) pytest tests/test_mcp_clients.py
set -eu
mkdir -p "$1"
cd "$1"
npm install --silent --no-audit --no-fund --prefix . \
  @modelcontextprotocol/sdk@1 @modelcontextprotocol/client@2 @modelcontextprotocol/inspector >&2
pwd
