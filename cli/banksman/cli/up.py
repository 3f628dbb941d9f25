"""`banksman up`: everything on this machine, until Ctrl-C."""

from __future__ import annotations

import asyncio
import shlex
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from banksman import log, settings
from banksman.cli import show
from banksman.errors import InvalidSetting

if TYPE_CHECKING:
    import argparse

    from banksman.cli.stack import Ports, Stack
    from banksman.cli.steps import Steps

HELP = """Start everything on this machine and keep it running until Ctrl-C: a real Kafka broker, ClickHouse's engine behind
its HTTP protocol, the enforcer, the processors, the archiver, the notifier and the console. The first time takes longer: the
broker's jars are fetched and checked. All data lies in one folder; after a stop and a start everything is as before."""
EXAMPLES = """
  banksman up                                     everything under .banksman/, policies from policies/
  banksman up --demo                              agents act, the two questions are answered, then it ends
  banksman up --data /srv/banksman --policies /etc/banksman/policies
  banksman up --enforcer-port 17700 --console-port 17701 --kafka-port 19092 --clickhouse-port 18123
"""

HERE = ("127.0.0.1", "localhost")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("--demo", action="store_true", help="a short, complete show in a folder of its own, then end")
    parser.add_argument("--data", type=Path, metavar="DIR", help="where everything is kept (BANKSMAN_DATA; .banksman)")
    parser.add_argument("--policies", type=Path, metavar="DIR", help="the policy files (BANKSMAN_POLICIES; policies)")
    for name, variable, port in (
        ("kafka", "BANKSMAN_KAFKA", 9092),
        ("clickhouse", "BANKSMAN_CLICKHOUSE", 8123),
        ("enforcer", "BANKSMAN_ENFORCER_PORT", 7700),
        ("console", "BANKSMAN_CONSOLE_PORT", 7701),
    ):
        parser.add_argument(f"--{name}-port", type=int, metavar="PORT", help=f"{name}'s port ({variable}; {port})")


def run(args: argparse.Namespace) -> int:
    """Do it."""
    log.hush_kafka()
    if args.demo:
        from banksman.cli.demo import story

        return story.run(args)
    from banksman.cli.folder import Folder, provide_policies
    from banksman.cli.stack import Stack
    from banksman.cli.steps import Steps

    where = Folder(args.data or Path(settings.load(settings.Local).data))
    policies = args.policies or Path(settings.load(settings.Enforcer).policies)
    steps = Steps()
    stack = Stack(where, chosen_ports(args), policies, steps, report)
    stack.claim()
    starter = provide_policies(policies)
    if starter:
        show.note(f"{policies} held no policy: {starter} is a commented start. What no rule names is denied.")
    return asyncio.run(_serve(stack, steps))


def chosen_ports(args: argparse.Namespace) -> Ports:
    """Flags first, then the settings. InvalidSetting: a setting names a server elsewhere, which `up` would not use."""
    from urllib.parse import urlsplit

    from banksman.cli.stack import Ports

    kafka, clickhouse = settings.load(settings.Kafka).kafka, settings.load(settings.ClickHouse).clickhouse
    enforcer, console = settings.load(settings.Enforcer).enforcer_port, settings.load(settings.Console).console_port
    ports = {}
    embedded = (("kafka", "BANKSMAN_KAFKA", f"//{kafka}"), ("clickhouse", "BANKSMAN_CLICKHOUSE", clickhouse))
    for name, variable, address in embedded:
        flag = getattr(args, f"{name}_port")
        if flag is not None:
            ports[name] = flag
            continue
        parts = urlsplit(address)
        if parts.scheme == "https" or parts.hostname not in HERE or "," in address or not parts.port:
            raise InvalidSetting(
                "names a server elsewhere, and `up` starts one of its own: unset it, or run the services "
                "one by one (`banksman serve`)", field=variable,
            )  # fmt: skip
        ports[name] = parts.port
    ports["enforcer"] = enforcer if args.enforcer_port is None else args.enforcer_port
    ports["console"] = console if args.console_port is None else args.console_port
    for name, port in ports.items():
        if not 0 < port < 65536:
            raise InvalidSetting("must be between 1 and 65535", field=f"--{name}-port")
    if len(set(ports.values())) < len(ports):
        raise InvalidSetting("must differ from each other", field="ports")
    return Ports(**ports)


async def _serve(stack: Stack, steps: Steps) -> int:
    stop = stopping(stack)
    began = time.monotonic()
    try:
        if await until(stop, stack, steps):
            show.say(board(stack, time.monotonic() - began))
            await stop.wait()
        show.note("stopping (Ctrl-C again: without waiting)")
    finally:
        await stack.stop()
    show.note(f"stopped; the data is kept in {near(stack.folder.root)}")
    return 0


async def until(stop: asyncio.Event, stack: Stack, steps: Steps) -> bool:
    """Start the stack; False when somebody said stop before it was there."""
    starting, asked = asyncio.ensure_future(stack.start()), asyncio.ensure_future(stop.wait())
    try:
        with steps:
            await asyncio.wait({starting, asked}, return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                starting.result()
                return True
            return False
    finally:
        for task in (starting, asked):
            task.cancel()
        await asyncio.gather(starting, asked, return_exceptions=True)


def stopping(stack: Stack) -> asyncio.Event:
    """An event that Ctrl-C, SIGTERM and a closed terminal set. Whoever says it twice does not want to wait."""
    stop = asyncio.Event()

    def told() -> None:
        if stop.is_set():
            stack.hurry()
        stop.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, told)
    return stop


def report(name: str, text: str) -> None:
    """What a child did, as it happens."""
    print(f"{time.strftime('%H:%M:%S')} {name}: {show.safe(text, newlines=True)}", file=sys.stderr, flush=True)


def board(stack: Stack, took: float) -> str:
    """What is where, and what to type next. Other ports than the usual ones: what to export first."""
    from banksman.cli.stack import Ports

    ports, here, reader = stack.ports, stack.folder, stack.clickhouse.clickhouse_reader
    policies = sorted(file for file in stack.policies.glob("*.yaml") if not file.name.endswith("_test.yaml"))
    kafka, clickhouse = f"127.0.0.1:{ports.kafka}", f"127.0.0.1:{ports.clickhouse}"
    lines = [
        "",
        f"banksman is up ({show.seconds(took)})",
        "",
        f"  enforcer    http://127.0.0.1:{ports.enforcer}",
        f"  console     http://127.0.0.1:{ports.console}",
        f"  Kafka       {kafka:<21}  SASL user {stack.kafka.kafka_username}, password in {near(here.kafka_password)}",
        f"  ClickHouse  {clickhouse:<21}  read-only user {reader}, password in {near(here.reader_password)}",
        f"  policies    {near(stack.policies)} ({len(policies)} file{'s' * (len(policies) != 1)})",
        f"  admin token {near(here.admin_token)}"
        + (f" (operator {stack.enrolled}, made now)" if stack.enrolled else ""),
        f"  logs        {near(here.logs)}",
        "",
        "next, in another terminal:",
    ]
    if ports != Ports() or here.root != Path(".banksman").absolute():
        lines += [f"  export {name}={shlex.quote(value)}" for name, value in stack.addresses().items()]
    lines += [
        "  banksman agents add my-agent --project my-project --owner you@example.com --out my-agent.credential",
        "  banksman status",
        "",
        "Ctrl-C stops everything.",
    ]
    return "\n".join(lines)


def near(path: Path) -> str:
    """A path as one would type it here."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)
