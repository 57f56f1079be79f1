// A provider in Node.js: read lines, answer lines. console.log would break the stream; console.error goes to the log.
import { createInterface } from "node:readline";

const methods = {
  "text/count": ({ text }) => ({ characters: [...text].length, words: text.split(/\s+/u).filter(Boolean).length }),
  "text/reverse": ({ text }) => ({ response: [...text].reverse().join("") }),
};

function answer({ method, params }) {
  if (method === "initialize") {
    return {
      result: { protocolVersion: 1, provider: { name: "text", version: "1.0.0" }, methods: Object.keys(methods) },
    };
  }
  if (!Object.hasOwn(methods, method)) {
    return { error: { code: -32601, message: `text does not serve ${method}` } };
  }
  try {
    return { result: methods[method](params) };
  } catch (error) {
    return { error: { code: -32603, message: String(error) } };
  }
}

// readline ends with the input, and so does the process
createInterface({ input: process.stdin, crlfDelay: Infinity }).on("line", (line) => {
  const message = JSON.parse(line);
  if (message.id !== undefined && message.method !== undefined) {
    process.stdout.write(`${JSON.stringify({ jsonrpc: "2.0", id: message.id, ...answer(message) })}\n`);
  }
});
