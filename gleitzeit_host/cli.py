"""The command line: the only place that prints results or exits. Each command imports what it needs."""

import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, cast

from gleitzeit_host import __version__, terminal
from gleitzeit_host.errors import ConfigurationError, InvalidParams, RpcError

if TYPE_CHECKING:
    import argparse

    from gleitzeit_host.host import Host

Result = TypeVar("Result")

SHORT_HELP = """\
gleitzeit-host speaks JSON-RPC 2.0, a message a line: pipe it in, or let an agent or editor launch it. To try it:
  gleitzeit-host call python/execute code='result = 6 * 7'
  echo '{"jsonrpc":"2.0","id":1,"method":"host/info"}' | gleitzeit-host        (all commands: gleitzeit-host --help)
"""


def main(arguments: list[str]) -> int:
    """Run one command; return 0, 1 (the call failed, or its output is lost) or 2 (usage or configuration)."""
    terminal.occupy()
    try:
        return _run(arguments)
    except ConfigurationError as error:
        terminal.complain(f"gleitzeit-host: {error}")
        return 2
    except terminal.OutputLost as error:
        if str(error):
            terminal.complain(f"gleitzeit-host: {error}")
        return 1
    except KeyboardInterrupt:
        return 130


def _run(arguments: list[str]) -> int:
    options = _parse(arguments)
    if options.command is None and sys.stdin is not None and sys.stdin.isatty():
        terminal.write(SHORT_HELP)
        return 0
    command: Callable[[Any], int] = getattr(options, "run", _serve)
    return command(options)


def _parse(arguments: list[str]) -> "argparse.Namespace":
    if arguments in ([], ["serve"]):  # the usual launch does not pay for the parser
        from types import SimpleNamespace  # noqa: PLC0415

        return cast("argparse.Namespace", SimpleNamespace(command=arguments[0] if arguments else None))
    for argument in arguments:
        if not _is_utf8(argument):
            raise ConfigurationError(f"the argument {argument!r} is not UTF-8")
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    if rest and (options.command != "call" or any(word.startswith("-") for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:  # argparse takes params only up to the first option behind METHOD
        options.params = [*options.params, *rest]
    return options


def _is_utf8(text: str) -> bool:
    return not any("\ud800" <= char <= "\udfff" for char in text)  # what Python makes of any other byte


def _parser() -> "argparse.ArgumentParser":
    import argparse  # noqa: PLC0415

    class Parser(argparse.ArgumentParser):
        def _print_message(self, message: str, _file: object = None) -> None:  # help and version
            terminal.write(message)

        def error(self, message: str) -> NoReturn:
            for line in self.format_usage().splitlines():
                terminal.complain(line)
            terminal.complain(f"gleitzeit-host: {message}")
            sys.exit(2)

    def seconds(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = 0
        if not 0 < value < float("inf"):
            raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
        return value

    common = Parser(add_help=False, argument_default=argparse.SUPPRESS)
    common.add_argument(
        "--path",
        action="append",
        type=Path,
        metavar="DIR",
        help="look here first for providers/ and protocols/ (repeatable)",
    )
    common.add_argument("--config", type=Path, metavar="FILE", help="the configuration, fully trusted")
    common.add_argument(
        "--log-level",
        choices=["debug", "info", "warning", "error"],
        help="what goes to stderr (default: warning)",
    )
    common.add_argument("--json", action="store_true", help="print one line of JSON instead of text for people")
    parser = Parser(
        prog="gleitzeit-host",
        description="A JSON-RPC 2.0 host on stdin and stdout: protocols are schema files, providers are processes.",
        parents=[common],
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"gleitzeit-host {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")

    def add(name: str, run: "Callable[[argparse.Namespace], int]", text: str) -> "argparse.ArgumentParser":
        command = commands.add_parser(name, parents=[common], help=text, description=text, allow_abbrev=False)
        command.set_defaults(run=run)
        return command

    add("serve", _serve, "Serve JSON-RPC on stdin and stdout (the default when stdin is not a terminal).")
    call = add("call", _call, "Call one method and print its result.")
    call.epilog = (
        "The exit status is 0 if the method answered with a result, whatever the result says: a program that "
        "python/execute ran and that failed (`success` is false) is a result. It is 1 if the call failed, "
        "and 2 if it could not be understood."
    )
    call.add_argument("method", metavar="METHOD", help="such as python/execute")
    call.add_argument(
        "params",
        nargs="*",
        default=[],
        metavar="PARAM",
        help="one JSON object, or key=value (typed by the method's schema) and key:=JSON",
    )
    call.add_argument("--timeout", type=seconds, metavar="SECONDS", help="give up after this long")
    call.add_argument("--provider", metavar="NAME", help="which provider to ask")
    add("providers", _providers, "List the providers, with what each serves or why it cannot.")
    add("protocols", _protocols, "List the protocols and their methods.")
    trust = add("trust", _trust, "Trust a configuration file as it is now, or list the trusted ones.")
    trust.add_argument("file", nargs="?", type=Path, metavar="FILE")
    trust.add_argument("--revoke", action="store_true", help="trust it no longer")
    client = add("client-config", _client_config, "Print what an MCP client's configuration needs to launch this host.")
    client.add_argument(
        "client",
        metavar="NAME",
        help="claude-desktop, claude-code, vscode, cursor, zed, or json: of no one in particular",
    )
    client.add_argument("--write", action="store_true", help="put it into the client's own file, keeping a copy")
    return parser


# ---- serve


def _serve(options: "argparse.Namespace") -> int:
    from gleitzeit_host import descriptors  # noqa: PLC0415

    streams = descriptors.claim()

    async def serve(host: "Host") -> int:
        return await host.serve(*streams)

    return _with_host(options, serve)


def _with_host(options: "argparse.Namespace", use: "Callable[[Host], Awaitable[Result]]") -> "Result":
    """Build a host as the options say, return what is done with it, and take it down."""
    from gleitzeit_host.processes import Processes  # noqa: PLC0415 - first of all, so that the guard starts meanwhile

    processes = Processes()
    processes.start()

    import asyncio  # noqa: PLC0415

    import uvloop  # noqa: PLC0415

    from gleitzeit_host import config, logs  # noqa: PLC0415
    from gleitzeit_host.host import Host  # noqa: PLC0415

    handler = logs.configure(getattr(options, "log_level", "warning"))
    folder = config.working_folder()
    search_path = config.search_path(getattr(options, "path", []))
    host = Host(config.load(getattr(options, "config", None), folder), search_path, processes)

    async def run() -> "Result":
        async with host.running():
            return await use(host)

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(run())
    finally:
        handler.drain(0.5)


# ---- call


def _call(options: "argparse.Namespace") -> int:
    async def call(host: "Host") -> Any:
        from gleitzeit_host import wire  # noqa: PLC0415
        from gleitzeit_host.protocol import HOST_METHODS  # noqa: PLC0415

        try:
            route = host.router.routes.get(options.method)
            params = read_params(options.params, route.method.params_schema() if route else {})
            if options.method in HOST_METHODS:
                return await host.ask(options.method, params)
            given = params.get("_meta", {})
            params["_meta"] = {**given, **_meta(options)} if isinstance(given, dict) else given
            return wire.decode(await host.call(options.method, params))
        except RpcError as error:
            return error

    result = _with_host(options, call)
    if isinstance(result, RpcError):
        _print_error(options, result)
        return 1
    _print(options, result)
    return 0


def _meta(options: "argparse.Namespace") -> dict[str, Any]:
    meta: dict[str, Any] = {}
    if getattr(options, "timeout", None) is not None:
        meta["timeoutMs"] = options.timeout * 1000
    if getattr(options, "provider", None) is not None:
        meta["provider"] = options.provider
    return meta


def read_params(words: list[str], schema: dict[str, Any]) -> dict[str, Any]:
    """Read params from the command line: one JSON object, or `key=value` and `key:=JSON` words.

    Args:
        words: As given.
        schema: Of the params object; it decides whether the value of `key=value` is a string.

    Raises:
        InvalidParams: a word is neither, or its JSON is not.
    """
    if len(words) == 1 and words[0].lstrip().startswith("{"):
        value = _json(words[0], "the params")
        if not isinstance(value, dict):
            raise InvalidParams("The params are not a JSON object")
        return value
    params: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise InvalidParams(f"{word!r} is neither key=value nor key:=JSON nor a JSON object")
        if key.endswith(":"):
            params[key[:-1]] = _json(value, key[:-1])
        else:
            params[key] = _typed(value, schema.get("properties", {}).get(key, True), schema, key)
    return params


def _typed(value: str, schema: Any, root: dict[str, Any], key: str) -> Any:
    types = _types(schema, root)
    if not types or "string" in types:
        return value
    return _json(value, f"{key} ({' or '.join(sorted(types))})")


def _types(schema: Any, root: dict[str, Any]) -> set[str]:
    """Return the JSON types that a schema allows, as far as its outermost keywords tell; empty: any."""
    if not isinstance(schema, dict):
        return set()
    reference = schema.get("$ref")
    if isinstance(reference, str):
        from gleitzeit_host.protocol import resolve  # noqa: PLC0415

        return _types(resolve(reference, root), root)
    if "type" in schema:
        return {schema["type"]} if isinstance(schema["type"], str) else set(schema["type"])
    if "enum" in schema:
        return {"string"} if any(isinstance(value, str) for value in schema["enum"]) else {"number"}
    found: set[str] = set()
    for choice in [*schema.get("anyOf", []), *schema.get("oneOf", [])]:
        found |= _types(choice, root)
    return found


def _json(text: str, what: str) -> Any:
    import json  # noqa: PLC0415

    try:
        return json.loads(text)
    except ValueError as error:
        raise InvalidParams(f"{what}: {text[:80]!r} is not JSON: {error}") from None


# ---- lists


def _providers(options: "argparse.Namespace") -> int:
    async def describe(host: "Host") -> list[dict[str, Any]]:
        await host.settled()
        return host.describe_providers()

    rows = _with_host(options, describe)
    if getattr(options, "json", False):
        _print(options, {"providers": rows})
    else:
        for row in rows:
            _say(f"{row['name']:<16} {row['state']:<12} {row['reason'] or ', '.join(row['methods'])}")
    return 0


def _protocols(options: "argparse.Namespace") -> int:
    async def describe(host: "Host") -> dict[str, Any]:
        await host.settled()
        listed: dict[str, Any] = await host.ask("host/protocols", {})
        return listed

    listed = _with_host(options, describe)
    if getattr(options, "json", False):
        _print(options, listed)
        return 0
    for protocol in listed["protocols"]:
        _say(f"{protocol['name']}/{protocol['version']}  {protocol['title']}  ({protocol['origin']})")
        for method, available in protocol["methods"].items():
            _say(f"  {method:<28} {'' if available else 'no provider'}".rstrip())
    return 0


def _trust(options: "argparse.Namespace") -> int:
    from gleitzeit_host import config  # noqa: PLC0415

    if options.file is None:
        trusted = {str(path): digest for path, digest in config.trusted().items()}
        if getattr(options, "json", False):
            _print(options, trusted)
        else:
            for line in trusted or ["No configuration file is trusted."]:
                _say(line)
        return 0
    file = config.working_folder() / options.file
    if options.revoke:
        config.revoke(file)
        _say(f"{options.file} is trusted no longer.")
    else:
        config.trust(file)
        _say(f"{options.file} is trusted as it is now; after a change it has to be trusted again.")
    return 0


# ---- client-config


def _client_config(options: "argparse.Namespace") -> int:
    from gleitzeit_host import client_config  # noqa: PLC0415

    client = client_config.find(options.client)
    wanted = client_config.snippet(
        client, getattr(options, "path", []), getattr(options, "config", None), getattr(options, "log_level", None)
    )
    if not options.write:
        _print(options, wanted)
        return 0
    try:
        change = client_config.plan(client, wanted)
        difference = change.diff()
        backup = client_config.write(change) if difference else None
    except ConfigurationError:
        _print(options, wanted)  # to be pasted
        raise
    if getattr(options, "json", False):
        kept = None if backup is None else str(backup)
        _print(options, {"file": str(change.file), "changed": bool(difference), "backup": kept})
    elif not difference:
        _say(f"{change.file} has it already; nothing was written.")
    else:
        for line in difference.split("\n"):
            _say(*line.split("\t"))  # what it is indented with stays
        _say(f"{change.file} is written" + (f"; what it was is in {backup}." if backup else "."))
    return 0


# ---- output


def _say(*columns: str) -> None:
    terminal.write("\t".join(map(terminal.visible, columns)) + "\n")


def _print(options: "argparse.Namespace", value: Any) -> None:
    import json  # noqa: PLC0415

    compact = getattr(options, "json", False)
    text = json.dumps(
        value, ensure_ascii=False, indent=None if compact else 2, separators=(",", ":") if compact else None
    )
    terminal.write(terminal.visible_json(text) + "\n")


def _print_error(options: "argparse.Namespace", error: RpcError) -> None:
    if getattr(options, "json", False):
        import json  # noqa: PLC0415

        terminal.complain(terminal.visible_json(json.dumps({"error": error.to_dict()}, ensure_ascii=False)))
        return
    name = error.to_dict()["data"].get("name", "error")
    terminal.complain(f"gleitzeit-host: {name} ({error.code}): {error.message}")
    for violation in error.data.get("errors", [])[1:]:
        terminal.complain(f"  {violation['path'] or 'params'}: {violation['message']}")
