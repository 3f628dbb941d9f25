"""The folder of `banksman up`: what lies where in it, and the secrets that it keeps (each in a file of its own, 0600)."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
from importlib import resources
from typing import TYPE_CHECKING

from banksman.errors import BadDeployment, BanksmanError
from banksman.signing import new_token

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

STARTER = "my-project.yaml"
FULL = 4 << 20
"""Bytes. ClickHouse reserves 1 MiB for a part before it writes one."""


class Folder:
    """Paths under one data folder. Relative ones are made absolute: children may work elsewhere."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self.run = self.root / "run"
        self.logs = self.root / "logs"
        self.kafka = self.root / "kafka"
        self.clickhouse = self.root / "clickhouse"
        self.secret = self.root / "secret.json"
        self.kafka_password = self.root / "kafka.password"
        self.clickhouse_password = self.root / "clickhouse.password"
        self.reader_password = self.root / "clickhouse-reader.password"
        self.admin_token = self.root / "admin.token"
        self.replays = self.root / "replay"


def password(file: Path) -> str:
    """The password in `file`; a new one is made when there is no file yet."""
    return _kept(file, lambda: secrets.token_urlsafe(32))


def operator_token(file: Path) -> str:
    """The operator's token in `file`; a new one, that nobody knows yet, is made when there is no file."""
    return _kept(file, lambda: new_token("bmo")[0])


def _kept(file: Path, make: Callable[[], str]) -> str:
    try:
        return file.read_text().strip()
    except FileNotFoundError:
        made = make()
        write_secret(file, made)
        return made


def write_secret(file: Path, text: str) -> None:
    """Write a secret so that nobody else ever sees it and a crash leaves the old file or the new one, never a half."""
    whole = file.with_name(f".{file.name}.{os.getpid()}")
    with os.fdopen(os.open(whole, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as out:
        out.write(text + "\n")
        out.flush()
        os.fsync(out.fileno())
    whole.replace(file)


def provide_policies(folder: Path) -> Path | None:
    """Put the commented starter policy into a folder that has no policy -> the file that was written, or None."""
    if any(not file.name.endswith("_test.yaml") for file in folder.glob("*.yaml")):
        return None
    folder.mkdir(parents=True, exist_ok=True)
    starter = folder / STARTER
    starter.write_text(resources.files(__package__).joinpath("starter-policy.yaml").read_text())
    return starter


@contextlib.contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turns what the disk says into one clear line: BadDeployment.

    A child that found the disk full could often not even write that down. So an error is looked at in that light, too.
    """
    try:
        yield
    except BanksmanError as error:
        if folder.exists() and shutil.disk_usage(folder).free < FULL:
            raise BadDeployment(f"the disk that holds {folder} is full: {error}") from None
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise BadDeployment(f"the disk that holds {folder} is full") from None
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR):
            raise BadDeployment(f"{error.filename or folder}: {error.strerror}") from None
        raise
