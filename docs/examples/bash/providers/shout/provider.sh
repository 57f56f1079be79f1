#!/usr/bin/env bash
# One jq process reads requests and writes answers until the end of input. Notifications have no id and need no answer.
exec jq --unbuffered -nc 'inputs | select(has("id") and has("method")) | {jsonrpc: "2.0", id} + (
  if .method == "initialize" then
    {result: {protocolVersion: 1, provider: {name: "shout", version: "1.0.0"}, methods: ["shout/say"]}}
  elif .method == "shout/say" then
    {result: {response: (.params.message | ascii_upcase)}}
  else
    {error: {code: -32601, message: "shout does not serve \(.method)"}}
  end)'
