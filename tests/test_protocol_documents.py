"""The protocol documents: valid OpenRPC, valid JSON Schema, and examples that do what they say."""

import json
import os
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
from support.host import HostProcess

from gleitzeit_host.protocol import Method, Protocol

PROTOCOLS = Path(__file__).parent.parent / "protocols"
DOCUMENTS = sorted(PROTOCOLS.glob("*/v*.json"))
LOADED = [Protocol(path.parent.name, path.stem, json.loads(path.read_text("utf-8")), str(path)) for path in DOCUMENTS]
EXAMPLES = [
    pytest.param(method, example, id=f"{method.name}: {example['name']}")
    for protocol in LOADED
    for method in protocol.methods.values()
    for example in method.source.get("examples", [])
]


def official() -> jsonschema_rs.Draft7Validator:
    folder = os.environ.get("GLEITZEIT_OPENRPC_SCHEMAS")
    if not folder:
        pytest.skip("needs GLEITZEIT_OPENRPC_SCHEMAS: see tests/support/fetch_openrpc_schema.sh")
    schema, json_schema = (
        json.loads((Path(folder) / name).read_text("utf-8")) for name in ("openrpc.json", "json-schema.json")
    )
    for document in (schema, json_schema):
        document["$schema"] = "http://json-schema.org/draft-07/schema#"
    registry = jsonschema_rs.Registry(
        [
            (f"https://meta.json-schema.tools{slash}", {**json_schema, "$id": f"https://meta.json-schema.tools{slash}"})
            for slash in ("", "/")
        ]
    )
    return jsonschema_rs.Draft7Validator(schema, registry=registry, offline=True)


def problems(validator: jsonschema_rs.Draft7Validator, document: Any) -> list[str]:
    return [f"{'/'.join(map(str, e.instance_path))}: {e.message[:300]}" for e in validator.iter_errors(document)]


def values(example: dict[str, Any]) -> dict[str, Any]:
    return {param["name"]: param["value"] for param in example["params"]}


def assert_holds(expected: Any, found: Any) -> None:
    """Every member that is expected is there and equal; others may be there, too."""
    if isinstance(expected, dict) and isinstance(found, dict):
        for key, value in expected.items():
            assert key in found
            assert_holds(value, found[key])
    else:
        assert found == expected


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_document_satisfies_the_official_meta_schema(path: Path) -> None:
    assert problems(official(), json.loads(path.read_text("utf-8"))) == []


def test_rpc_discover_satisfies_the_official_meta_schema_and_can_be_loaded(host: HostProcess) -> None:
    validator = official()
    document = host.call("rpc.discover")
    assert problems(validator, document) == []
    names = {method["name"] for method in document["methods"]}
    assert names == {name for protocol in LOADED for name in protocol.methods}
    for protocol in LOADED:
        mine = [method for method in document["methods"] if method["name"] in protocol.methods]
        Protocol(protocol.name, protocol.version, {**document, "methods": mine}, "rpc.discover")


def test_the_meta_schema_refuses_what_is_no_document() -> None:
    validator = official()
    assert problems(validator, {"openrpc": "1.3.2", "info": {"title": "x"}, "methods": []})
    assert problems(validator, {"openrpc": "1.3.2", "info": {"title": "x", "version": "1"}, "methods": [{"name": 5}]})


@pytest.mark.parametrize("protocol", LOADED, ids=lambda protocol: protocol.name)
def test_every_method_and_param_says_what_it_is(protocol: Protocol) -> None:
    for method in protocol.methods.values():
        assert method.source["summary"]
        assert method.source["description"]
        assert method.source["paramStructure"] == "by-name"
        assert method.extension.tool.title
        assert method.extension.timeout_ms
        assert all(param.get("description") for param in method.source["params"])


@pytest.mark.parametrize(("method", "example"), EXAMPLES)
def test_an_example_satisfies_its_own_schemas(method: Method, example: dict[str, Any]) -> None:
    method.validate(values(example))
    if method.protocol.name == "llm":  # the others show only what is the same in every run
        jsonschema_rs.Draft202012Validator(method.result_schema(), offline=True).validate(example["result"]["value"])


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with HostProcess(tmp_path_factory.mktemp("examples")) as host:
        yield host


@pytest.mark.parametrize(("method", "example"), EXAMPLES)
def test_an_example_does_what_it_says(shared: HostProcess, method: Method, example: dict[str, Any]) -> None:
    available = {m["name"]: m["x-gleitzeit"]["available"] for m in shared.call("rpc.discover")["methods"]}
    if not available[method.name]:
        pytest.skip(f"nobody serves {method.name} yet")
    result = shared.call(method.name, values(example))
    assert_holds(example["result"]["value"], result)
    jsonschema_rs.Draft202012Validator(method.result_schema(), offline=True).validate(result)
