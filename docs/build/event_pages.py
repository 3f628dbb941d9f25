"""docs/reference/events.md and topics.md from the models and the topic table."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from pathlib import Path
from typing import Any, get_type_hints

import msgspec

from banksman import events
from banksman.settings import Kafka
from banksman.topics import SPECS, Topic

GOLDEN = Path(__file__).parents[2] / "tests" / "golden" / "events"

INTRO = """# Events

One JSON object per Kafka message, UTF-8, at most 1 MiB; what is larger is cut, with a marker that gives its size and a
keyed digest. The key is the agent (in `control` a key of the record's own). Unknown fields are kept. Every record carries
CloudEvents 1.0 headers in binary mode (`ce_specversion`, `ce_id`, `ce_source`, `ce_type` = `banksman.` + kind, `ce_time`,
`content-type`) and `banksman-auth`, who signed it; a replayed one carries `banksman-replay`, the run it belongs to.

`banksman-auth` is `1 VERSION AUTHOR MAC`: the form, the version of the server secret, `service:NAME` or
`agent:PROJECT/AGENT/TOKEN_ID`, and HMAC-SHA256 in hex over the lengths (nine 32-bit big-endian numbers: topic, key, the six
headers above, `banksman-replay`, each in this order, absent ones empty) and the bytes of these parts, then the value.

Kafka adds `received`, its append time: partitions, retention, budgets and "now" go by it. An author's `time` only orders
the story inside a session.

This page is made from the models in `core/banksman/events.py` (`make docs`).
"""


def events_page() -> str:
    """The whole page."""
    parts = [INTRO, "## Common fields\n", fields_table(events.Event, set()), ""]
    common = set(events.Event.__struct_fields__)
    for topic in Topic:
        models = (
            [(kind, model) for kind, model in events.KINDS.items() if model.topic is topic]
            if topic is not Topic.DEAD
            else []
        )
        if not models:
            continue
        parts.append(f"## Topic `{topic}`\n")
        for kind, model in models:
            parts.append(f"### `{kind}`\n\n{inspect.getdoc(model)}\n")
            parts.append(fields_table(model, common))
            parts.append(f"\n```json\n{(GOLDEN / f'{kind}.json').read_text()}```\n")
    parts.append(f"## Topic `dead`\n\n{inspect.getdoc(events.Dead)}\n\n{fields_table(events.Dead, set())}\n")
    return "\n".join(parts)


def topics_page() -> str:
    """The whole page."""
    rows = [
        "# Topics\n",
        "Names, partitions and settings stand in `core/banksman/topics.py`; `banksman migrate` makes what is missing, the enforcer",
        "and the archiver check them when they start and refuse to work on others. The prefix is the setting `BANKSMAN_TOPIC_PREFIX`. Every topic has",
        "`message.timestamp.type=LogAppendTime` and no unclean leader election; with three copies `min.insync.replicas=2`.\n",
        "| topic | for | partitions | cleanup | kept | largest record |",
        "|---|---|---|---|---|---|",
    ]
    for spec in SPECS.values():
        days = Kafka().days(spec.topic)
        kept = f"{days} days (`BANKSMAN_{spec.topic.upper()}_DAYS`)" if days else "for ever"
        partitions = spec.partitions or "`BANKSMAN_PARTITIONS`"
        cleanup = "compact" if spec.compact else "delete"
        rows.append(
            f"| `banksman.{spec.topic}` | {spec.purpose} | {partitions} | {cleanup} | {kept} | {spec.max_message_bytes >> 20} MiB |"
        )
    rows.append(
        "\nWhat a setting says of a topic holds when the topic is made; later it is changed with Kafka's own tools. ClickHouse keeps"
        "\nwhat the topics forget (`BANKSMAN_RETENTION_DAYS`). This page is made by `make docs`.\n"
    )
    return "\n".join(rows)


def fields_table(model: Any, leave_out: set[str]) -> str:
    """A table of a model's fields: name, type, the note that stands under it."""
    hints = get_type_hints(model, include_extras=True)
    notes = _notes(model)
    rows = ["| field | type | |", "|---|---|---|"]
    for field in msgspec.structs.fields(model):
        if field.name in leave_out:
            continue
        needed = "" if field.required else "optional"
        note = notes.get(field.name, "")
        kind = _type(hints[field.name])
        if field.required and {"type": "null"} in msgspec.json.schema(hints[field.name]).get("anyOf", ()):
            kind += " or null"  # always there, and perhaps without a value
        rows.append(f"| `{field.encode_name}` | {kind} | {'. '.join(p for p in (needed, note) if p)} |")
    return "\n".join(rows)


def _notes(model: Any) -> dict[str, str]:
    """The string under a field in the class body is its note."""
    found: dict[str, str] = {}
    for cls in reversed([c for c in model.__mro__ if c.__module__.startswith("banksman.")]):
        body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
        assert isinstance(body, ast.ClassDef)
        for before, after in zip(body.body, body.body[1:], strict=False):
            text = after.value if isinstance(after, ast.Expr) else None
            if (
                isinstance(before, ast.AnnAssign)
                and isinstance(before.target, ast.Name)
                and isinstance(text, ast.Constant)
            ):
                found[before.target.id] = re.sub(r"\s+", " ", str(text.value)).strip().rstrip(".")
    return found


def _type(hint: Any) -> str:
    schema = msgspec.json.schema(hint)
    if "anyOf" in schema:
        schema = next(s for s in schema["anyOf"] if s.get("type") != "null")
    if "enum" in schema:
        return " ".join(f"`{value}`" for value in schema["enum"] if value is not None)
    names = {events.Name: "name", events.Uuid: "UUID", events.Uuid7: "UUIDv7", events.Time: "time"}
    for known, name in names.items():
        if schema.get("pattern") and schema.get("pattern") == msgspec.json.schema(known).get("pattern"):
            return name
    kind = schema.get("type", "object" if "$ref" in schema else "any JSON")
    if kind == "array":
        return "list"
    bounds = [f"{sign} {schema[key]:g}" for key, sign in (("minimum", "≥"),) if key in schema]
    return " ".join([str(kind), *bounds])
