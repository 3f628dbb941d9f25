"""Handing over a credential that exists once: into a file that only its owner can read, or on stdout.

The place is taken before anybody is enrolled. A disk that is full or a folder that may not be written is found out then, not
when the only copy of a credential has nowhere to go.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any

from banksman.cli import show
from banksman.errors import InvalidInput

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

ROOM = 1024  # bytes; a credential takes less than half of it
FIELD = "--out"


def subcommand(
    verbs: argparse._SubParsersAction[argparse.ArgumentParser], name: str, does: str
) -> argparse.ArgumentParser:
    """The parser of `VERB name`."""
    return verbs.add_parser(name, help=does, description=f"{does[0].upper()}{does[1:]}.", allow_abbrev=False)


def out_argument(parser: argparse.ArgumentParser, what: str) -> None:
    """`--out FILE` and `--json`, the same for everything that gives a credential."""
    from pathlib import Path

    parser.add_argument("--out", metavar="FILE", type=Path, help=f"write the {what} there (0600) instead of showing it")
    show.json_argument(parser)


def hand_over(
    enrol: Callable[[], Mapping[str, Any]], args: argparse.Namespace, sentence: str, *, replace: bool = False
) -> int:
    """Call `enrol`, give the `token` of its answer to whoever asked. InvalidInput: `--out` cannot be written.

    `replace`: an existing file is an older credential of the same agent and may go.
    """
    if args.out is None:
        answer = enrol()
        if args.json:
            show.emit(answer)
        else:
            show.note(f"{sentence}. Its credential, shown this once:")
            print(answer["token"])
        return 0
    with _place(args.out, replace=replace) as write:
        answer = enrol()
        write(answer["token"])
    show.note(f"{sentence}; the credential is in {args.out}")
    if args.json:
        show.emit({key: value for key, value in answer.items() if key != "token"} | {"out": str(args.out)})
    return 0


@contextlib.contextmanager
def _place(out: Path, *, replace: bool) -> Iterator[Callable[[str], None]]:
    """Room on the disk beside `out` -> what writes a secret into it. Without a call of that, `out` is as it was."""
    if out.exists() and not out.is_file():
        raise InvalidInput(f"{out} is no file", field=FIELD)
    if out.exists() and not replace:
        raise InvalidInput(f"{out} is there already, and may hold another credential; name another file", field=FIELD)
    whole = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        file = os.fdopen(os.open(whole, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w")
    except OSError as error:
        raise InvalidInput(f"{out} cannot be written: {error.strerror}", field=FIELD) from None
    try:
        with file:
            try:
                file.write(" " * ROOM)
                file.flush()
                os.fsync(file.fileno())
            except OSError as error:
                raise InvalidInput(f"{out} cannot be written: {error.strerror}", field=FIELD) from None

            def write(secret: str) -> None:
                file.seek(0)
                file.write(secret + "\n")
                file.truncate()
                file.flush()
                os.fsync(file.fileno())
                whole.replace(out)

            yield write
    finally:
        whole.unlink(missing_ok=True)
