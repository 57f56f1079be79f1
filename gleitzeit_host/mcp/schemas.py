"""JSON Schemas that every MCP client can read: without references, and objects without combinators at the top."""

from typing import Any

from gleitzeit_host.protocol import resolve

_DATA = frozenset({"default", "const", "enum", "examples"})  # keywords whose value is no schema
_MAPS = frozenset({"properties", "patternProperties", "dependentSchemas", "$defs"})  # of a name to a schema
_COMBINATORS = ("allOf", "anyOf", "oneOf", "not", "if", "then", "else")
_MAX_NODES = 5000  # schemas in one schema; what lies beyond is left open


def inline(schema: Any, components: dict[str, Any]) -> dict[str, Any]:
    """Return the schema with what its references point to in their place.

    A schema that contains itself is left open where it would begin anew.

    Args:
        schema: Of an OpenRPC document; its references begin with `#/components/`.
        components: The document's.
    """
    return _Inliner(components).inline(schema, ())


class _Inliner:
    def __init__(self, components: dict[str, Any]) -> None:
        self._root = {"components": components}
        self._left = _MAX_NODES

    def inline(self, schema: Any, within: tuple[str, ...]) -> dict[str, Any]:
        if schema is False:
            return {"not": {}}
        self._left -= 1
        if not isinstance(schema, dict) or self._left < 0:
            return {}
        own = {key: self._keyword(key, value, within) for key, value in schema.items() if key != "$ref"}
        reference = schema.get("$ref")
        if reference is None:
            return own
        if reference in within:
            return own
        target = self.inline(resolve(reference, self._root), (*within, reference))
        clashing = set(own) & set(target) - {"title", "description", "default", "examples", "deprecated"}
        return {"allOf": [target, own]} if clashing else {**target, **own}

    def _keyword(self, key: str, value: Any, within: tuple[str, ...]) -> Any:
        if key in _DATA:
            return value
        if key in _MAPS and isinstance(value, dict):
            return {name: self.inline(child, within) for name, child in value.items()}
        if isinstance(value, dict):
            return self.inline(value, within)
        if isinstance(value, list) and value and isinstance(value[0], dict):
            return [self.inline(child, within) for child in value]
        return value


def as_object(schema: dict[str, Any]) -> dict[str, Any] | None:
    """Return a schema of the same objects, or of more, with `type: object` and no combinators at the top.

    Args:
        schema: Without references.

    Returns:
        None where the schema allows something other than objects.
    """
    parts = [part for part in map(as_object, schema.get("allOf", [])) if part is not None]
    choices = [as_object(choice) for key in ("anyOf", "oneOf") for choice in schema.get(key, [])]
    if schema.get("type") != "object" and not parts and not (choices and all(choices)):
        return None
    merged = {key: value for key, value in schema.items() if key not in _COMBINATORS}
    for part in parts:
        merged["properties"] = {**part.get("properties", {}), **merged.get("properties", {})}
        merged["required"] = list(dict.fromkeys([*part.get("required", []), *merged.get("required", [])]))
    merged["type"] = "object"
    if not merged.get("required", True):
        del merged["required"]
    return merged
