// Uses the host through the TypeScript SDK, version 2 (@modelcontextprotocol/client): node sdk_v2.mjs MODE COMMAND…
// MODE is legacy, auto, or a revision to insist on.
import { Client } from "@modelcontextprotocol/client";
import { StdioClientTransport } from "@modelcontextprotocol/client/stdio";
import { use } from "./use.mjs";

const [, , mode, command, ...args] = process.argv;
const negotiation = { mode: /^\d/.test(mode) ? { pin: mode } : mode };
const client = new Client({ name: "tests", version: "0" }, { versionNegotiation: negotiation });
await client.connect(new StdioClientTransport({ command, args, env: process.env, stderr: "inherit" }));
await use(client, () => client.getNegotiatedProtocolVersion(), (call, options) => client.callTool(call, options));
