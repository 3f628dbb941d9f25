"""The notifier between a real Kafka and a Slack that does everything that goes wrong: each incident told once, in order."""

from __future__ import annotations

import logging
import os
import re
import signal
from typing import Any

import pytest
from tests import raw_batches
from tests.processors.fake_slack import FakeSlack, drops, fails, hangs, limited, refuses
from tests.processors.notifying import Notifying, finding
from tests.servers import Broker, child_environment, freeze

from banksman import signing, stamps
from banksman.local import children
from banksman.processors.notifier import incidents as incidents_module
from banksman.processors.notifier import notifier as notifier_module
from banksman.processors.notifier import slack as slack_module
from banksman.processors.notifier import telling as telling_module
from banksman.settings import Kafka
from banksman.topics import Topic


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slack takes more than it does, and messages are brought up to date at once."""
    monkeypatch.setattr(slack_module, "POST_S", 0.01)
    monkeypatch.setattr(slack_module, "MINUTE_S", 1.0)
    monkeypatch.setattr(telling_module, "UPDATE_S", 0.1)
    monkeypatch.setattr(telling_module, "LOOK_S", 0.1)
    monkeypatch.setattr(telling_module, "BACKOFF_S", (0.05, 0.5))


async def test_an_incident_from_its_first_finding_to_its_end(
    notifying: Notifying, slack: FakeSlack, hurried: None
) -> None:
    async with notifying.here():
        await notifying.publish(
            finding(owner="ann@acme.example", suggestion="banksman kill s", evidence={"cost_usd": 3.2})
        )
        await notifying.until(slack.parents)
        first = slack.parents()[0]
        assert slack.name(first.channel) == "#banksman-alerts"
        for shown in (
            "p/a",
            "ann@acme.example",
            "```banksman kill s```",
            "```banksman session s --agent a```",
            "$3.20",
            "once",
        ):
            assert shown in first.words
        await notifying.publish(finding(), finding())
        await notifying.until(lambda: "3 times" in first.words)
        assert not slack.replies(first), "a repeat is no news"
        await notifying.publish(finding(severity="page", title="it is worse"))
        reply = (await notifying.until(lambda: slack.replies(first)))[0]
        assert reply.text.startswith("🔴 PAGE now: it is worse")
        assert reply.body["reply_broadcast"]
        assert "🔴 PAGE: it is worse" in first.text
        await notifying.publish(finding(severity="info", title="it does other things now", over=True))
        await notifying.until(lambda: len(slack.replies(first)) == 2)
        assert "✅ over" in slack.replies(first)[1].text
        assert "it does other things now" in slack.replies(first)[1].text
        assert "✅ over (page)" in first.text
        assert "kill" not in first.words
        told, worse, resolved = await notifying.recorded("alert", "alert", "alert.resolved")
        await notifying.publish(finding())
        await notifying.until(lambda: len(slack.parents()) == 2)
    assert (told.severity, worse.severity, resolved.severity) == ("warn", "page", "page")
    assert told.evidence["ts"] == first.ts
    assert told.evidence["channel"] == first.channel
    assert told.evidence["incident"] == resolved.evidence["incident"] == told.parent == first.payload["incident"]
    assert resolved.count == 4
    assert told.owner == "ann@acme.example"


async def test_whatever_slack_does_each_is_told_once_and_in_order(
    notifying: Notifying, slack: FakeSlack, hurried: None
) -> None:
    slack.spoil(
        "chat.postMessage", limited(0.3), fails(500), fails(503, accepted=True), hangs(accepted=False), hangs(accepted=True),
        drops(accepted=True), drops(accepted=False), limited(0.2), refuses("internal_error"), refuses("invalid_blocks"),
    )  # fmt: skip
    slack.spoil("conversations.history", fails(500), limited(0.2), hangs(accepted=False))
    names = [f"budgets/agent-{number}" for number in range(8)]
    async with notifying.here(slack_timeout_s=0.4):
        await notifying.publish(*(finding(name) for name in names))
        await notifying.until(lambda: len(slack.parents()) == 8 and not slack.left)
        await notifying.publish(*(finding(name, over=True, title="gone") for name in names))
        await notifying.recorded(*["alert"] * 8, *["alert.resolved"] * 8)
    assert [re.findall(r"agent-\d", message.text)[0] for message in slack.parents()] == [f"agent-{n}" for n in range(8)]
    assert all(len(slack.replies(message)) == 1 for message in slack.parents())
    assert not slack.disobeyed


async def test_slack_away_nothing_is_lost_and_many_become_a_digest(
    notifying: Notifying, slack: FakeSlack, hurried: None
) -> None:
    async with notifying.here():
        await notifying.publish(finding("loops/first"))
        await notifying.until(slack.parents)
        slack.away()
        names = [f"loops/agent-{number}" for number in range(30)]
        await notifying.publish(*(finding(name, severity="page" if name.endswith("-7") else "warn") for name in names))
        await notifying.publish(finding("loops/first", over=True, title="gone"), finding("loops/agent-3", over=True))
        slack.back()
        await notifying.until(lambda: len(slack.parents()) == 2)
        found = await notifying.recorded(*["alert"] * 31, *["alert.resolved"] * 2)
        await notifying.publish(finding("loops/agent-5", severity="page"))
        await notifying.until(lambda: len(slack.parents()) == 3)
        assert "PAGE: loops/agent-5" in slack.parents()[2].text, (
            "what got worse after a digest has a message of its own"
        )
        assert not slack.replies(slack.parents()[1])
        await notifying.publish(*(finding(name, over=True, title="gone") for name in names))
        await notifying.until(lambda: slack.replies(slack.parents()[1]))
        await notifying.recorded(*["alert"] * 31, *["alert.resolved"] * 2, "alert", *["alert.resolved"] * 29)
    digest = slack.parents()[1]
    assert "30 new alerts at once" in digest.text
    assert "1 page loops, 29 warn loops" in digest.text
    assert "agent-7" in digest.words
    assert "and 10 more" in digest.words
    assert {each.evidence["ts"] for each in found[1:31]} == {digest.ts}
    assert sorted(each.fingerprint for each in found[1:31]) == sorted(names)
    assert [reply.text[-12:] for reply in slack.replies(digest)] == ["all of these"]


async def test_a_policy_names_the_channel_unless_it_cannot_be_used(
    notifying: Notifying, slack: FakeSlack, hurried: None
) -> None:
    await notifying.policy("billing", "#billing-agents")
    async with notifying.here(slack_channel="#else"):
        await notifying.publish(finding("loops/a", project="billing"), finding("loops/b", project="other"))
        await notifying.until(lambda: len(slack.parents()) == 2)
        assert [slack.name(m.channel) for m in sorted(slack.parents(), key=lambda m: m.text)] == [
            "#billing-agents",
            "#else",
        ]
        await notifying.policy("billing", "#nowhere")
        slack.spoil("chat.postMessage", refuses("not_in_channel"), where=lambda body: body["channel"] == "#nowhere")
        while slack.left != 0:  # the policy's news and the finding come over different topics
            await notifying.publish(finding(f"loops/{stamps.uuid7()}", project="billing"))
            await notifying.until(lambda: len(slack.parents()) > 2 or not slack.left)
        await notifying.until(lambda: len(slack.parents("#else")) >= 2)


async def test_what_nobody_of_ours_wrote_for_live_use_is_no_alert(
    notifying: Notifying, slack: FakeSlack, hurried: None
) -> None:
    other = signing.Secret({1: b"x" * 32}, 1)
    async with notifying.here():
        forger = Notifying(notifying.kafka, other, notifying.secret_file, notifying.folder, slack)
        await forger.publish(finding("loops/forged", severity="page"))
        await notifying.publish(finding("loops/replayed"), replay="run-1")
        await notifying.publish(finding("loops/quiet", severity="info"), finding("loops/never-open", over=True))
        once = finding("loops/real")
        topic = notifying.kafka.topic(Topic.ALERTS)
        await raw_batches.put(notifying.kafka, topic, 0, raw_batches.UNREADABLE)  # stops nobody either
        await notifying.publish(once, once)
        await notifying.until(slack.parents)
        found = await notifying.recorded("alert", "alert")
    assert len(slack.parents()) == 1
    assert "loops/real" in slack.parents()[0].text
    assert {each.evidence["channel"] for each in found} == {"log", slack.parents()[0].channel}, "info goes to the log"


async def test_what_is_not_seen_again_is_over_by_itself(
    notifying: Notifying, slack: FakeSlack, hurried: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(incidents_module.QUIET_MS, "forged", 300)
    monkeypatch.setattr(notifier_module, "MARGIN_MS", 50)
    async with notifying.here():
        await notifying.publish(finding("forged/control", severity="page"))
        first = (await notifying.until(slack.parents))[0]
        await notifying.until(lambda: slack.replies(first))
        assert "not seen again" in slack.replies(first)[0].text


async def test_without_a_token_it_is_told_in_the_log(notifying: Notifying) -> None:
    process = notifying.process(token="")
    log = notifying.log(0)
    await notifying.until(lambda: "notifier ready" in log.read_text())
    await notifying.publish(
        finding("loops/x", severity="page", title="bad\u202e\nthing <!channel>", suggestion="banksman kill s --agent a")
    )
    await notifying.until(lambda: "PAGE" in log.read_text())
    await notifying.publish(finding("loops/x", over=True, title="it stopped"))
    await notifying.until(lambda: "✅ over" in log.read_text())
    told, resolved = await notifying.recorded("alert", "alert.resolved")
    assert told.evidence["channel"] == "log" == resolved.evidence["channel"]
    assert "BANKSMAN_SLACK_TOKEN is not set" in log.read_text()
    lines = [line for line in log.read_text().splitlines() if "PAGE" in line]
    assert len(lines) == 1
    assert "bad⟨U+202E⟩⏎thing" in lines[0]
    assert "| banksman kill s --agent a" in lines[0]
    process.terminate()
    assert process.wait(20) == 0


async def test_killed_between_slacks_answer_and_the_record(notifying: Notifying, slack: FakeSlack) -> None:
    """At every step: Slack has accepted, and the notifier is killed before it knows."""
    told: list[str] = []
    for step, cause in (
        ("opened", finding()),
        ("page", finding(severity="page")),
        ("over", finding(over=True, title="it stopped")),
    ):
        slack.spoil("chat.postMessage", hangs(accepted=True), where=lambda body, step=step: _step(body) == step)  # type: ignore[misc]
        process = notifying.process(timeout_s=30)
        await notifying.recorded(*told)
        await notifying.publish(cause)
        await notifying.until(lambda: not slack.left and slack.messages)
        process.kill()
        process.wait()
        told.append("alert.resolved" if cause.over else "alert")
    notifying.process()
    await notifying.publish(finding("loops/next"))
    await notifying.recorded("alert", "alert", "alert", "alert.resolved")
    first, second = slack.parents()
    assert [reply.payload["step"] for reply in slack.replies(first)] == ["page", "over"]
    assert first.payload["step"] == "opened"
    assert "loops/next" in second.text
    assert "✅ over" in first.text


def _step(body: dict[str, Any]) -> str:
    return str(body["metadata"]["event_payload"]["step"])


async def test_killed_before_slack_has_accepted_and_in_a_digest(notifying: Notifying, slack: FakeSlack) -> None:
    slack.put("#banksman-alerts", {"metadata": {"event_type": "banksman_incident", "event_payload": {}}}, "another app")
    names = [f"loops/agent-{number}" for number in range(25)]
    one = finding("loops/first")
    for accepted in (False, True):
        slack.spoil("chat.postMessage", hangs(accepted=accepted))
        process = notifying.process(timeout_s=30)
        await notifying.publish(*([one] if not accepted else map(finding, names)))
        await notifying.until(lambda: not slack.left)
        await notifying.until(lambda: slack.calls[-1][1] == "chat.postMessage")
        process.kill()
        process.wait()
        if not accepted:
            process = notifying.process()
            await notifying.until(lambda: len(slack.parents()) == 2)
            await notifying.recorded("alert")
            process.kill()
            process.wait()
    notifying.process()
    await notifying.recorded(*["alert"] * 26)
    assert [message.payload.get("step") for message in slack.parents()] == [None, "opened", "digest"]


@pytest.mark.parametrize("of_a_person", [False, True])
async def test_our_messages_are_known_and_another_app_cannot_make_an_incident_look_told(
    notifying: Notifying, slack: FakeSlack, of_a_person: bool
) -> None:
    slack.of_a_person = of_a_person
    one = finding("loops/first")
    payload = {"incident": one.id, "step": "opened", "severity": "warn", "over": False}
    slack.put(
        "#banksman-alerts", {"metadata": {"event_type": "banksman_incident", "event_payload": payload}}, "B0OTHER"
    )
    slack.spoil("chat.postMessage", drops(accepted=True))
    await notifying.publish(one)
    async with notifying.here():
        await notifying.until(lambda: len(slack.parents()) == 2)
        await notifying.recorded("alert")
        assert len(slack.parents()) == 2


async def test_one_that_was_frozen_tells_nothing_that_another_has_told(notifying: Notifying, slack: FakeSlack) -> None:
    first = notifying.process(worker="")
    await notifying.until(lambda: "notifier ready" in notifying.log(0).read_text())
    second = notifying.process(worker="")
    await notifying.until(lambda: "notifier ready" in notifying.log(1).read_text())
    await notifying.publish(finding("loops/one"))
    await notifying.recorded("alert")
    reigns = first if "told in" in notifying.log(0).read_text() else second
    freeze(reigns.pid)
    await notifying.publish(finding("loops/two"))
    await notifying.recorded("alert", "alert", seconds=30)
    os.kill(reigns.pid, signal.SIGCONT)
    await notifying.publish(finding("loops/three"))
    await notifying.recorded("alert", "alert", "alert", seconds=30)
    await notifying.publish(*(finding(f"loops/{name}", over=True) for name in ("one", "two", "three")))
    await notifying.recorded(*["alert"] * 3, *["alert.resolved"] * 3, seconds=30)
    assert [message.text.split(" is wrong")[0][-3:] for message in slack.parents()] == ["one", "two", "ree"]
    assert all(len(slack.replies(message)) == 1 for message in slack.parents())


async def test_kafka_away_for_a_while(notifying: Notifying, slack: FakeSlack, broker: Broker) -> None:
    async with notifying.here(slack_channel="#a"):
        await notifying.publish(finding("loops/one"), finding("loops/one"))
        await notifying.recorded("alert")
        slack.spoil("chat.postMessage", hangs(accepted=True))
        await notifying.publish(finding("loops/two"))
        await notifying.until(lambda: not slack.left)
        broker.kill()
        broker.process = children.spawn(broker.node.argv(), log=broker.node.log, env=child_environment())
        await broker.node.ready()
        await notifying.publish(finding("loops/three"), finding("loops/one", over=True, title="it stopped"))
        # The one whose answer was lost is looked for first: it may be recorded last.
        await notifying.recorded(*["alert"] * 3, "alert.resolved", ordered=False)
    assert [message.text.split(" is wrong")[0][-3:] for message in slack.parents()] == ["one", "two", "ree"]
    assert len(slack.replies(slack.parents()[0])) == 1


async def test_a_post_a_second_and_what_came_meanwhile_in_one_edit(notifying: Notifying, kafka_settings: Kafka) -> None:
    with FakeSlack(["#banksman-alerts"], apart=0.95) as slack:
        notifying.slack = slack
        async with notifying.here():
            await notifying.publish(*(finding(f"loops/{number}") for number in range(3)))
            await notifying.publish(*(finding("loops/0") for _ in range(20)))
            await notifying.until(lambda: len(slack.parents()) == 3)
            await notifying.until(lambda: "21 times" in slack.parents()[0].words)
        assert len(slack.parents()[0].edits) <= 2
        assert not slack.disobeyed
        assert [message.payload["severity"] for message in slack.parents()] == ["warn"] * 3


async def test_an_old_log_is_no_news_to_the_first_notifier(
    notifying: Notifying, slack: FakeSlack, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(notifier_module, "NEWS_MS", -1_000)
    caplog.set_level(logging.INFO)
    await notifying.publish(finding("loops/past"), finding("loops/past", over=True), finding("loops/now"))
    async with notifying.here():
        await notifying.until(slack.parents)
        await notifying.recorded("alert")
    assert "loops/now" in slack.parents()[0].text
    long_ago = finding("loops/ancient", time="2020-01-01T00:00:00.000000Z")
    async with notifying.here():
        await notifying.publish(long_ago, finding("loops/last"))
        await notifying.until(lambda: len(slack.parents()) == 2)
    assert all("ancient" not in message.text for message in slack.parents())
