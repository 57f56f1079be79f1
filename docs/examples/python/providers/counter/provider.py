"""A provider in Python without the SDK: progress, cancellation and a call-back with the standard library alone.

One thread reads; each call of `counter/count` counts in a thread of its own and looks now and then whether it was
cancelled. Everything that is written goes through `send`, a whole line at a time.
"""

import json
import sys
import threading

lock = threading.Lock()
cancelled = {}  # id of a call in progress → the event that says it was cancelled
waiting = {}  # id of a call-back → the call of ours that waits for its answer


def send(message):
    line = json.dumps({"jsonrpc": "2.0", **message}, separators=(",", ":"))
    with lock:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()


def count(id, params):
    stop = cancelled[id]
    token = params["_meta"].get("progressToken")  # there only if the caller wants progress
    for number in range(1, params["to"] + 1):
        if stop.wait(params.get("pause", 0)):
            send({"id": id, "error": {"code": -31005, "message": "cancelled"}})
            break
        if token is not None:
            progress = {"progressToken": token, "progress": number, "total": params["to"], "delta": f"{number} "}
            send({"method": "notifications/progress", "params": progress})
    else:
        send({"id": id, "result": {"counted": params["to"]}})
    del cancelled[id]


def relay(id, params):
    """Ask the provider of echo/say, through the host; the answer comes back with our own id."""
    waiting[f"ask-{id}"] = id
    ask = {"message": params["message"], "_meta": {"parent": id}}
    send({"id": f"ask-{id}", "method": "echo/say", "params": ask})


def handle(message):
    method, id, params = message.get("method"), message.get("id"), message.get("params")
    if method is None:  # an answer to a call-back
        caller = waiting.pop(id)
        send({"id": caller, **{key: message[key] for key in ("result", "error") if key in message}})
    elif method == "initialize":
        provider = {"name": "counter", "version": "1.0.0"}
        send(
            {
                "id": id,
                "result": {"protocolVersion": 1, "provider": provider, "methods": ["counter/count", "counter/relay"]},
            }
        )
    elif method == "counter/count":
        cancelled[id] = threading.Event()
        threading.Thread(target=count, args=(id, params), daemon=True).start()
    elif method == "counter/relay":
        relay(id, params)
    elif method == "notifications/cancelled":
        if params["requestId"] in cancelled:
            cancelled[params["requestId"]].set()
    elif id is not None:
        send({"id": id, "error": {"code": -32601, "message": f"counter does not serve {method}"}})


for line in sys.stdin.buffer:
    handle(json.loads(line))
