#!/bin/sh
# Fetch the official OpenRPC meta-schema, and the JSON Schema meta-schema that it refers to, from npm into a folder as
# openrpc.json and json-schema.json; print the folder. Needs npm and node.
#   GLEITZEIT_OPENRPC_SCHEMAS=$(tests/support/fetch_openrpc_schema.sh /tmp/openrpc) pytest tests/test_protocol_documents.py
set -eu
mkdir -p "$1"
cd "$1"
for package in open-rpc json-schema-tools; do
  mkdir -p $package
  (cd $package && npm pack --silent "@$package/meta-schema" >/dev/null && tar -xzf ./*.tgz)
done
write='const m = require(process.argv[1]); process.stdout.write(JSON.stringify(m.default || m))'
node -e "$write" "$PWD/open-rpc/package" >openrpc.json
node -e "$write" "$PWD/json-schema-tools/package" >json-schema.json
pwd
