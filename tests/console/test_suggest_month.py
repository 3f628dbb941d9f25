"""`banksman policy suggest`, `lint` and `backtest`, one after the other, on a month of five agents' decisions."""

from __future__ import annotations

import json
import urllib.parse
import urllib.request
from datetime import UTC, datetime
from pathlib import Path

import pytest
from tests.console import month
from tests.console.conftest import Policy, Stand
from tests.enforcer.conftest import until

from banksman import stamps
from banksman.events import PolicyLoaded
from banksman.policy.load import load
from banksman.signing import service_signer

_COLUMNS = (
    "received", "time", "id", "kind", "project", "agent", "session", "source", "parent", "service", "action", "resource",
    "branch", "decision", "tier", "reason", "rule", "policy", "policy_version", "shadow", "verified", "author", "topic",
    "partition", "offset", "raw",
)  # fmt: skip


@pytest.fixture(scope="module")
def lived(stand: Stand) -> Stand:
    """The stand, with the month in it. The log's own times are the broker's, so its rows go straight into the table."""
    rows = []
    for offset, record in enumerate(month.decisions(datetime.now(UTC))):
        told = {name: value for name, value in record.items() if name in _COLUMNS}
        told |= {
            "received": record["time"][:23], "time": record["time"][:-1], "verified": True, "author": "service:enforcer",
            "topic": "decisions", "partition": 9, "offset": offset, "raw": json.dumps(record),
        }  # fmt: skip
        rows.append(json.dumps(told))
    loaded = load(month.POLICY.encode(), "month.yaml")
    clickhouse = stand.archive.clickhouse
    statement = f"INSERT INTO `{clickhouse.clickhouse_database}`.events ({', '.join(_COLUMNS)}) FORMAT JSONEachRow"
    request = urllib.request.Request(
        f"{clickhouse.clickhouse}/?{urllib.parse.urlencode({'query': statement})}",
        "\n".join(rows).encode(),
        {"X-ClickHouse-User": clickhouse.clickhouse_user, "X-ClickHouse-Key": clickhouse.clickhouse_password},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        assert answer.status == 200
    stand.desk.write(
        PolicyLoaded(
            v=1, id=stamps.uuid7(), time=stamps.rfc3339(), source="enforcer#1", project=month.PROJECT, replica="r1",
            text=loaded.text, file="month.yaml", policy_version=loaded.policy.version,
        ),
        signer=service_signer(stand.archive.secret, "enforcer"),
    )  # fmt: skip
    stored = f"SELECT count() AS n FROM @events WHERE kind = 'policy.loaded' AND project = '{month.PROJECT}'"
    until(lambda: stand.archive.ask(stored)[0]["n"], 20)
    return stand


def _round(policy: Policy, agent: str) -> tuple[str, str]:
    """Suggest, lint and backtest for one agent -> (the suggested policy, what was said beside it)."""
    file = f"{agent}.yaml"
    code, _, told = policy("suggest", "--agent", agent, "--since", "31d", "--out", file)
    assert code == 0, told
    assert policy("lint", file)[0] == 0
    code, out, _ = policy("backtest", file, "--since", "31d", "--agent", agent, "--json")
    report = json.loads(out)
    assert report["decisions"] > 1000
    assert (code, report["moved"]) == (0, []), "the suggestion gives the same answers as were given"
    return Path(file).read_text(), told


@pytest.mark.usefixtures("lived")
@pytest.mark.parametrize(
    ("agent", "granted", "said"),
    [
        (
            "invoices",
            [
                "branches: [feature/*, fix/*]",
                'resources: ["arn:aws:s3:::invoice-data/20??/??/*"]',
                "when: {args.amount: {lt: 500}}",
                "approvers: {any: [bob@acme.example]",
            ],
            "not in it, as it was denied 30 times: git push acme/platform feature/mine-too",
        ),
        ("deploys", ["actions: [delete]", "freeze:", "confidence high"], ""),
        ("reports", ["- service: slack", "budget: {daily_tokens: 30000", "/srv/reports/in/*"], "postgres drop"),
        ("desk", ["docs.acme.example/guide/*", "during: [office]"], "api.acme.example/v1/tickets"),
    ],
)
def test_a_month_goes_round(policy: Policy, agent: str, granted: list[str], said: str) -> None:
    text, told = _round(policy, agent)
    for one in granted:
        assert one in text, text
    assert said in told


@pytest.mark.usefixtures("lived")
def test_an_agent_that_was_allowed_nothing_has_nothing_to_go_by(policy: Policy) -> None:
    assert policy("suggest", "--agent", "nobody", "--since", "31d")[0] == 1
