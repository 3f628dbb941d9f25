"""The documentation is held to the code: what there is has its place there, and what is written there is there."""

from __future__ import annotations

import inspect
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from banksman import settings
from banksman.cli.main import VERBS
from banksman.console import openapi as console_openapi
from banksman.enforcer import openapi as enforcer_openapi
from banksman.events import KINDS
from banksman.producers import Decision, Emitter, Session, Stats, govern
from banksman.topics import SPECS

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
REFERENCE = DOCS / "reference"
PAGES = sorted([*DOCS.rglob("*.md"), *ROOT.glob("*.md")])
DECISIONS = sorted((DOCS / "decisions").glob("*.md"))
_FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)\s]+)\)")


SECRETS = (
    r"\bbm[ao]_[0-9a-f]{16}_[\w-]{40,}",
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----\s+[A-Za-z0-9+/=\s]{200,}",
    r"\bxox[abp]-\d+-\d+-\w+",
    r"\bAKIA(?!IOSFODNN7EXAMPLE)[0-9A-Z]{16}\b",  # the one of AWS's own documentation opens nothing
    r"\bghp_[A-Za-z0-9]{36}\b",
    r"\bsk-ant-[\w-]{40,}",
)


def page(name: str) -> str:
    """A reference page."""
    return (REFERENCE / name).read_text()


def anchors(text: str) -> set[str]:
    """What a `#…` may point to, made of headings as GitHub does."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.+)$", _FENCED.sub("", text), re.MULTILINE):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").lower()
        found.add(re.sub(r"[^\w\- ]", "", words).replace(" ", "-"))
    return found


def tracked() -> Iterator[tuple[str, str]]:
    """(path, text) of every text file that the repository would hold: known to git, or not ignored."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    for name in listed.stdout.decode().split("\0"):
        path = ROOT / name
        if name and path.is_file():
            try:
                yield name, path.read_text()
            except UnicodeDecodeError:
                continue  # packed data


@pytest.mark.parametrize("name", [name for concern in settings.CONCERNS for name in concern.__struct_fields__], ids=str)
def test_every_setting_has_its_place(name: str) -> None:
    assert f"`BANKSMAN_{name.upper()}`" in page("settings.md")


def test_no_setting_is_documented_that_is_not_there() -> None:
    known = {name for concern in settings.CONCERNS for name in concern.__struct_fields__}
    rows = re.findall(r"^\| `BANKSMAN_([A-Z0-9_]+)`", page("settings.md"), re.MULTILINE)
    assert [name for name in rows if name.lower() not in known] == []


def test_the_emitter_is_described_whole() -> None:
    """Every method, argument, figure and field that an agent's code can use."""
    text = page("emitter.md")
    named = set(re.findall(r"[a-z_]+", " ".join(_code(text))))
    public = {
        name
        for one in (Emitter, Session)
        for name, what in vars(one).items()
        if inspect.isfunction(what) and not name.startswith("_") and name != "forked"
    }
    arguments = set(inspect.signature(Emitter).parameters) | set(inspect.signature(govern).parameters) - {"self"}
    assert public | arguments | set(Decision.__dataclass_fields__) <= named
    rows = re.findall(r"^\| `([a-z_]+)` \|", text.partition("## Stats")[2], re.MULTILINE)
    assert rows == list(Stats.__dataclass_fields__)


def _code(text: str) -> list[str]:
    """What stands in backquotes, and in blocks."""
    return [*re.findall(r"`([^`\n]+)`", text), *re.findall(r"^    (.+)$", text, re.MULTILINE)]


def test_every_topic_has_its_place() -> None:
    assert [topic for topic in SPECS if f"`banksman.{topic}`" not in page("topics.md")] == []


def test_every_kind_of_event_has_its_place() -> None:
    assert [kind for kind in KINDS if f"`{kind}`" not in page("events.md")] == []


@pytest.mark.parametrize("verb", [verb for group in VERBS.values() for verb in group])
def test_every_command_has_its_place(verb: str) -> None:
    assert re.search(rf"^#+ .*\b{verb}\b", page("cli.md"), re.MULTILINE)


def test_no_command_is_advised_that_is_not_there() -> None:
    """In what the code tells people and in what they read: `banksman X` names a verb, and one that it has."""
    verbs = {verb for group in VERBS.values() for verb in group} | {"COMMAND", "VERB", "help"}
    ours = re.compile(
        r"^(core|producers|processors|enforcer|console|cli|examples)/.*\.(py|yaml)$|^(docs/.*|README)\.md$"
    )
    advice = re.compile(r"(?:`|: |\$ |^ +)banksman ([a-z]+)\b", re.MULTILINE)
    wrong = [
        (name, verb)
        for name, text in tracked()
        if ours.match(name)
        for verb in advice.findall(text)
        if verb not in verbs
    ]
    assert wrong == []


@pytest.mark.parametrize(
    ("service", "name"),
    [(enforcer_openapi, "http-enforcer.md"), (console_openapi, "http-console.md")],
    ids=str,
)
def test_every_address_has_its_place(service: object, name: str) -> None:
    paths = service.document()["paths"]  # type: ignore[attr-defined]
    written = re.sub(r"\{[^}]*\}", "{}", page(name))
    missing = [path for path in paths if re.sub(r"\{[^}]*\}", "{}", path) not in written]
    assert paths
    assert missing == []


@pytest.mark.parametrize("source", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(source: Path) -> None:
    for link in _LINK.findall(_FENCED.sub("", source.read_text())):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (source.parent / path).resolve() if path else source
        assert target.exists(), f"{link} leads nowhere"
        if anchor:
            assert anchor in anchors(target.read_text()), f"{link}: no such heading"


@pytest.mark.parametrize("decision", DECISIONS, ids=lambda path: path.stem)
def test_a_decision_is_question_choice_and_price_on_one_page(decision: Path) -> None:
    text = decision.read_text()
    number, title = decision.stem[:4], text.splitlines()[0]
    assert title.startswith(f"# {number}. ")
    places = [text.find(f"**{part}.**") for part in ("Question", "Choice", "Price")]
    assert -1 not in places, "Question, Choice, Price"
    assert places == sorted(places)
    assert len(text.split()) < 700, "one page"


def test_decisions_have_a_number_each() -> None:
    numbers = [decision.stem[:4] for decision in DECISIONS]
    assert len(set(numbers)) == len(numbers)


def test_the_readme_names_only_what_there_is() -> None:
    readme = (ROOT / "README.md").read_text()
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(
        re.findall(
            r"\bmake ([a-z-]+)\b", " ".join(re.findall(r"`[^`]*`|^    .*$|```.*?```", readme, re.MULTILINE | re.DOTALL))
        )
    )
    assert named <= targets
    for path in re.findall(r"`((?:[\w.-]+/)+[\w.*-]*)`", readme):
        if not path.startswith((".banksman", ".venv")):
            assert list(ROOT.glob(path.rstrip("/"))), f"`{path}` is not there"


def test_nothing_is_about_one_machine() -> None:
    """No path of whoever wrote it, no registry or mirror that only they can reach."""
    own = Path(__file__).relative_to(ROOT).as_posix()
    forbidden = re.compile(
        r"(?<![\w.])/(?:work|root|opt/wheels)/|://[\w.-]*(?:artifactory|nexus|pypi-mirror)", re.IGNORECASE
    )
    found = [f"{name}: {hit[0]}" for name, text in tracked() if name != own and (hit := forbidden.search(text))]
    assert found == []


def test_no_secret_is_in_the_repository() -> None:
    forbidden = re.compile("|".join(SECRETS))
    found = [f"{name}: {hit[0][:12]}…" for name, text in tracked() if (hit := forbidden.search(text))]
    assert found == []
