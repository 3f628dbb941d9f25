"""What bench/peers.py stands on: the rules and their answers, a wrong answer ends a run, what cannot be had is named."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parents[2] / "bench"


@pytest.fixture(autouse=True)
def bench(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its modules as they import each other."""
    monkeypatch.syspath_prepend(str(BENCH))


@pytest.mark.parametrize("agents", [1, 3, 101])
def test_our_engine_gives_the_answers_that_every_peer_is_checked_against(agents: int) -> None:
    from against import ours, timing

    assert timing.check(ours.build(agents), agents) == 27 * len({0, agents // 2, agents - 1})


@pytest.mark.parametrize("answer", ["allow", "approve", "deny"])
def test_an_engine_that_answers_wrongly_is_not_timed(answer: str) -> None:
    from against import timing

    with pytest.raises(ValueError, match=f"{answer} instead of"):
        timing.check(lambda _: answer, 1)


def test_each_rule_is_needed_for_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """So a translation that loses a kind of rule is seen."""
    import agent_rules
    from against import ours, timing

    whole = agent_rules.agent_rules
    for kind in ("never", "require_approval", "allow"):
        with monkeypatch.context() as patch:
            patch.setattr(agent_rules, "agent_rules", lambda i, kind=kind: whole(i) | {kind: []})
            decide = ours.build(1)
        with pytest.raises(ValueError, match="instead of"):
            timing.check(decide, 1)


def test_a_pattern_covers_what_ours_does() -> None:
    from against.agt import covers

    assert covers("git", "feature/*").fullmatch("feature/x")
    assert not covers("git", "feature/*").fullmatch("feature/x/y")
    assert covers("git", "acme/**").fullmatch("acme/x/y")
    assert covers("aws", "arn:aws:s3:::a-*/*").fullmatch("arn:aws:s3:::a-b/c/d")
    assert not covers("git", "acme/app.1").fullmatch("acme/app-1")


def test_what_cannot_be_fetched_is_named_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from against import fetch

    monkeypatch.setenv("BANKSMAN_BENCH_PEERS", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(fetch.Missing, match=r"cedarpy cannot be fetched: .*cedarpy"):
        fetch.packages("cedarpy")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(fetch.Missing, match="Go, which is not installed"):
        fetch.opa()
    assert not list(tmp_path.iterdir())


def test_the_command_names_the_row_that_it_does_not_know(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import peers

    monkeypatch.setattr(sys, "argv", ["peers.py", "--rows", "http,grpc"])
    with pytest.raises(SystemExit, match="2"):
        peers.main()
    assert "'grpc' is none of http, inprocess, processors, archiver" in capsys.readouterr().err
