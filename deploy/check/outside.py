"""Is a deployment of banksman that runs as it should be, seen from outside?

    python3 deploy/check                                    what the settings name (BANKSMAN_URL, _CONSOLE_URL, _KAFKA, …)
    python3 deploy/check --tls --ca ca.pem                  and everything has to speak TLS
    python3 deploy/check --enforcer URL --enforcer URL      every replica; they have to agree
    python3 deploy/check --health archiver=http://archiver:7702 --health notifier=http://notifier:7702

It knocks where nobody should get in (Kafka, ClickHouse, enforcer, console; each without a password), asks every service how it
is, and lets `banksman doctor` send a probe through all of it. The token of an operator comes as for every command
(BANKSMAN_OPERATOR_TOKEN or _FILE); without one what needs it is left out, and that is said. Python's standard library is
enough, but for `doctor`.

Exit code: 0 nothing is wrong, 1 something is, 2 it was called wrongly.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from typing import TYPE_CHECKING

from anonymous import clickhouse_refuses, http_refuses, kafka_refuses
from findings import Finding, Place
from health import answers, doctor, replicas_agree, speaks_tls

if TYPE_CHECKING:
    from collections.abc import Iterator

COLORS = {"ok": "32", "FAILED": "31", "skipped": "33"}


def main() -> int:
    """Look at all of it, say each as it is found."""
    args = _arguments()
    found: list[Finding] = []
    for one in look(args):
        found.append(one)
        if not args.json:
            print(_line(one), flush=True)
    failed = [one for one in found if one.state == "FAILED"]
    left_out = [one for one in found if one.state == "skipped"]
    if args.json:
        print(json.dumps({"ok": not failed, "findings": [vars(one) for one in found]}))
    elif failed:
        print(f"\n{len(failed)} of {len(found)} are wrong")
    else:
        print(f"\nnothing is wrong{f', {len(left_out)} were left out' if left_out else ''}")
    return 1 if failed else 0


def look(args: argparse.Namespace) -> Iterator[Finding]:
    """Every finding, in the order in which one would look by hand."""
    enforcers = [Place("enforcer", url) for url in args.enforcer]
    consoles = [Place("console", url) for url in args.console]
    listeners = enforcers + consoles
    others = [Place(*one.split("=", 1)) for one in args.health]
    for place in listeners + others:
        if args.tls or place.secure:
            yield from speaks_tls(place, args.ca)
    for place in listeners + others:
        yield from answers(place, args.ca)
    for place in listeners:
        yield from http_refuses(place, args.ca)
    kafka_tls = args.tls or args.kafka_security.endswith("SSL")
    if args.kafka:
        for broker in args.kafka.split(","):
            yield from kafka_refuses(broker.strip(), tls=kafka_tls, ca=args.kafka_ca)
    else:
        yield Finding("kafka", "skipped", "no address: --kafka, or BANKSMAN_KAFKA")
    if args.clickhouse:
        place = Place("clickhouse", args.clickhouse)
        if args.tls or place.secure:
            yield from speaks_tls(place, args.clickhouse_ca)
        yield from clickhouse_refuses(place, args.clickhouse_user, args.clickhouse_ca)
    else:
        yield Finding("clickhouse", "skipped", "no address: --clickhouse, or BANKSMAN_CLICKHOUSE")
    for name in ("archiver", "processors", "notifier"):
        if name not in {place.name for place in others}:
            yield Finding(name, "skipped", f"no address: --health {name}=URL")
    token = _token()
    if token:
        yield from replicas_agree(enforcers, consoles, token, args.ca)
        yield from doctor(enforcers[0], consoles[0], token, args.ca)
    else:
        yield Finding("replicas, doctor", "skipped", "no token: BANKSMAN_OPERATOR_TOKEN, or _FILE")


def _arguments() -> argparse.Namespace:
    known = os.environ.get
    parser = argparse.ArgumentParser(
        "deploy/check", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--enforcer", action="append", metavar="URL", help="repeatable (BANKSMAN_URL)")
    parser.add_argument("--console", action="append", metavar="URL", help="repeatable (BANKSMAN_CONSOLE_URL)")
    parser.add_argument(
        "--health", action="append", metavar="NAME=URL", default=[], help="of another service; repeatable"
    )
    parser.add_argument("--kafka", metavar="HOST:PORT,…", default=known("BANKSMAN_KAFKA"), help="(BANKSMAN_KAFKA)")
    parser.add_argument(
        "--clickhouse", metavar="URL", default=known("BANKSMAN_CLICKHOUSE"), help="(BANKSMAN_CLICKHOUSE)"
    )
    parser.add_argument(
        "--clickhouse-user", action="append", metavar="NAME", default=[],
        help="another user that may not get in without a password; repeatable (BANKSMAN_CLICKHOUSE_USER, _READER)",
    )  # fmt: skip
    parser.add_argument("--tls", action="store_true", help="everything has to speak TLS")
    parser.add_argument("--ca", metavar="FILE", default=known("BANKSMAN_CA_FILE"), help="(BANKSMAN_CA_FILE)")
    parser.add_argument("--json", action="store_true", help="for programs")
    args = parser.parse_args()
    args.enforcer = args.enforcer or [known("BANKSMAN_URL", "http://127.0.0.1:7700")]
    args.console = args.console or [known("BANKSMAN_CONSOLE_URL", "http://127.0.0.1:7701")]
    args.clickhouse_user += ["default", known("BANKSMAN_CLICKHOUSE_USER") or "admin"]
    args.clickhouse_user += [known("BANKSMAN_CLICKHOUSE_READER") or "analyst"]
    args.kafka_security = known("BANKSMAN_KAFKA_SECURITY", "")
    args.kafka_ca = known("BANKSMAN_KAFKA_CA_FILE") or args.ca
    args.clickhouse_ca = known("BANKSMAN_CLICKHOUSE_CA_FILE") or args.ca
    named = [("--health", one.partition("=")[2]) for one in args.health]
    named += [("--enforcer", one) for one in args.enforcer] + [("--console", one) for one in args.console]
    for flag, url in [*named, ("--clickhouse", args.clickhouse or "http://left.out")]:
        if not Place(flag, url).valid:
            parser.error(f"{flag}: {url!r} is no http(s) address")
    for broker in (args.kafka or "left.out:1").split(","):
        if not broker.rpartition(":")[0] or not broker.rpartition(":")[2].strip().isdigit():
            parser.error(f"--kafka: {broker!r} is not HOST:PORT")
    return args


def _token() -> str:
    """The operator's token, as the commands find it; "": there is none."""
    file = os.environ.get("BANKSMAN_OPERATOR_TOKEN_FILE")
    if os.environ.get("BANKSMAN_OPERATOR_TOKEN"):
        return os.environ["BANKSMAN_OPERATOR_TOKEN"]
    if not file:
        return ""
    try:
        with open(file) as opened:
            return opened.read().strip()
    except OSError as error:
        sys.exit(f"deploy/check: BANKSMAN_OPERATOR_TOKEN_FILE: cannot read {file}: {error.strerror}")


def _line(one: Finding) -> str:
    state = f"{one.state:<8}"
    if sys.stdout.isatty():
        state = f"\x1b[{COLORS[one.state]}m{state}\x1b[0m"
    return f"{state} {one.name:<20} {one.text}"
