"""Both services are held to their own `/openapi.json` by schemathesis, over sockets, with an operator's token and with an
agent's: no 5xx, no status, body or header that the document does not promise, no call that lets in who has no token.

Bounded and with a fixed seed here. Deeper, with another seed each time:

    BANKSMAN_SCHEMATHESIS=400 .venv/bin/pytest tests/contracts/test_openapi.py

The number is that of examples for each operation; 400 take seven minutes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.console.conftest import Stand, stand
from tests.enforcer.conftest import Answer, Enforcer, make_replica
from tests.servers import child_environment

__all__ = ["stand"]  # a fixture of another folder

EXAMPLES = int(os.environ.get("BANKSMAN_SCHEMATHESIS", "0"))  # read now: no test sees the environment
CHECKS = (
    "not_a_server_error", "status_code_conformance", "content_type_conformance", "response_headers_conformance",
    "response_schema_conformance", "negative_data_rejection", "positive_data_acceptance", "unsupported_method",
    "allow_header_conformance", "ignored_auth",
)  # fmt: skip
# No schema can say all: that a cursor is one of ours, that SQL is SQL, that the 30th of February is no day (422); that no
# integer anywhere in a body is beyond 2^53, and nothing nested deeper than 32 (400).
CONFIG = """
[checks.positive_data_acceptance]
expected-statuses = ["2xx", 400, 401, 403, 404, 409, 410, 422, 429]
"""


@pytest.fixture(scope="module")
def enforcer(stand: Stand) -> Iterator[Enforcer]:
    desk = stand.desk
    desk.policies.mkdir()
    replica = make_replica(desk)
    try:
        replica.start()
        yield replica
    finally:
        replica.end()


def get(ask: Any, token: str) -> dict[str, Any]:
    answer: Answer = ask("GET", "/openapi.json", token=token)
    assert answer.status == 200, answer.raw
    document: dict[str, Any] = answer.body
    return document


@pytest.mark.parametrize("who", ["operator", "agent"])
@pytest.mark.parametrize("name", ["enforcer", "console"])
def test_what_the_document_says(stand: Stand, enforcer: Enforcer, tmp_path: Path, name: str, who: str) -> None:
    ask: Any = enforcer if name == "enforcer" else stand
    token = stand.desk.admin if who == "operator" else stand.desk.agents["buyer"].token
    (tmp_path / "openapi.json").write_text(json.dumps(get(ask, stand.desk.viewer)))
    (config := tmp_path / "schemathesis.toml").write_text(CONFIG)
    argv = [
        str(Path(sys.executable).with_name("st")), "--config-file", str(config), "run", str(tmp_path / "openapi.json"),
        "--url", ask.base, "--phases", "examples,coverage,fuzzing", "--header", f"Authorization: Bearer {token}",
        "--checks", ",".join(CHECKS),
        "--exclude-path", "/v1/watch",  # it answers for ever; see below
        "--request-timeout", "20", "--no-color", "--continue-on-failure", "--warnings", "off",
    ]  # fmt: skip
    argv += (
        ["--max-examples", str(EXAMPLES), "--generation-database", "none"]
        if EXAMPLES
        else ["--max-examples", "25", "--generation-deterministic"]
    )
    done = subprocess.run(argv, cwd=tmp_path, env=child_environment(), capture_output=True, text=True, timeout=3600)
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-2000:]


def test_the_stream_is_as_its_document_says(stand: Stand) -> None:
    token = stand.desk.viewer
    documented = get(stand, token)["paths"]["/v1/watch"]["get"]["responses"]
    request = urllib.request.Request(stand.base + "/v1/watch?agent=a", headers={"Authorization": f"Bearer {token}"})
    with urllib.request.urlopen(request, timeout=20) as answer:
        assert str(answer.status) in documented
        assert answer.headers["content-type"].partition(";")[0] in documented["200"]["content"]
        assert answer.readline() == b"retry: 1000\n"
    for path, headers in (
        ("?agent=a%20b", {}), ("?x=1", {}), ("?agent=a&agent=b", {}), ("", {"Last-Event-ID": "\xff"}),
        ("?last_event_id=x9", {}), ("", {"Origin": "null"}), ("", {"Host": "x"}),
    ):  # fmt: skip
        told = stand("GET", f"/v1/watch{path}", token=token, headers=headers)
        assert str(told.status) in documented, told.raw
        assert 400 <= told.status < 500
        assert told.headers["content-type"] in documented[str(told.status)]["content"]
