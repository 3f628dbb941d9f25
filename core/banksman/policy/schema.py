"""The JSON Schema (2020-12) of a policy file, for editors. Made from the models that check it."""

from __future__ import annotations

from typing import Any

from banksman.policy.conditions import ROOTS, WHOLE
from banksman.policy.model import CONDITION, PolicyFile

_SCALAR: dict[str, Any] = {"type": ["string", "number", "boolean"]}
_OPERAND = {"anyOf": [_SCALAR, {"$ref": "#/$defs/Attr"}]}
_SEVERAL = {"anyOf": [{"type": "array", "items": _SCALAR, "minItems": 1}, _OPERAND]}
_ATTR = {
    "type": "object", "properties": {"attr": {"type": "string"}}, "required": ["attr"], "additionalProperties": False,
    "description": "Another attribute, as what it is compared with.",
}  # fmt: skip
_COMPARISON = {
    "anyOf": [
        _SCALAR,
        {"type": "array", "items": _SCALAR, "minItems": 1},
        {
            "type": "object", "minProperties": 1, "additionalProperties": False,
            "properties": {
                "is": _OPERAND | {"description": "The same value, of the same type."},
                "in": _SEVERAL | {"description": "One of these values."},
                "has": _SEVERAL | {"description": "A list that holds one of these."},
                "not": {"$ref": "#/$defs/Comparison"},
                "exists": {"type": "boolean"},
                "glob": {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "minItems": 1}]},
                "during": {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "minItems": 1}]},
            } | dict.fromkeys(("lt", "lte", "gt", "gte"), _OPERAND),
        },
    ],
}  # fmt: skip


def _condition() -> dict[str, Any]:
    within = "|".join(root for root in ROOTS if root not in WHOLE - {"resource"})
    several = {"type": "array", "items": {"$ref": "#/$defs/Condition"}, "minItems": 1}
    return {
        "type": "object", "minProperties": 1, "additionalProperties": False,
        "description": "All of it must hold. Attributes: args.…, resource, branch, action, agent, time, subject.…, context.…",
        "properties": {"all": several, "any": several, "not": {"$ref": "#/$defs/Condition"}}
        | {name: {"$ref": "#/$defs/Comparison"} for name in sorted(WHOLE)},
        "patternProperties": {f"^({within})\\.": {"$ref": "#/$defs/Comparison"}},
    }  # fmt: skip


def schema() -> dict[str, Any]:
    """As `banksman policy schema` prints it."""
    made = _filled(PolicyFile.model_json_schema(by_alias=True))
    made["$defs"] |= {"Condition": _condition(), "Comparison": _COMPARISON, "Attr": _ATTR}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **made, "title": "banksman policy"}


def _filled(part: Any) -> Any:
    if isinstance(part, dict):
        if part.get("$comment") == CONDITION:
            return {"$ref": "#/$defs/Condition"}
        return {key: _filled(value) for key, value in part.items()}
    return [_filled(value) for value in part] if isinstance(part, list) else part
