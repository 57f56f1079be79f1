// Uses the host through the TypeScript SDK, version 1 (@modelcontextprotocol/sdk): node sdk_v1.mjs MODE COMMAND…
import { Client } from "@modelcontextprotocol/sdk/client/index.js";
import { StdioClientTransport } from "@modelcontextprotocol/sdk/client/stdio.js";
import { use } from "./use.mjs";

const [, , , command, ...args] = process.argv;
const client = new Client({ name: "tests", version: "0" });
let version;
const transport = new StdioClientTransport({ command, args, env: process.env, stderr: "inherit" });
transport.setProtocolVersion = (negotiated) => (version = negotiated);
await client.connect(transport);
await use(client, () => version, (call, options) => client.callTool(call, undefined, options));
