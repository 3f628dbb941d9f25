"""`python -m banksman.local.chdb`: ClickHouse's HTTP interface over a folder, on 127.0.0.1."""

from __future__ import annotations

import argparse
import fcntl
import os
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from banksman.errors import BadDeployment, BanksmanError
from banksman.local.chdb.engine import Engine
from banksman.local.chdb.faults import Fault
from banksman.local.chdb.server import LOOPBACK, Server
from banksman.local.chdb.users import load_users

if TYPE_CHECKING:
    from types import FrameType
    from typing import IO

CLOSE_WITHIN = 8.0


def main() -> int:
    """Serve until SIGTERM or SIGINT; exit 4 with one line when that cannot begin."""
    parser = argparse.ArgumentParser(prog="python -m banksman.local.chdb", description=__doc__)
    parser.add_argument("--path", type=Path, required=True, help="folder of the data; one process owns it")
    parser.add_argument("--port", type=int, default=8123, help="0: any free one")
    parser.add_argument("--users", type=Path, required=True, help="JSON file (0600) of users")
    parser.add_argument("--max-body", type=int, default=1 << 30, help="largest request body in bytes, decompressed")
    parser.add_argument("--memory", type=int, default=2 << 30, help="most memory that the engine may take, in bytes")
    parser.add_argument("--threads", type=int, default=0, help="threads of one query; 0: one a core")
    parser.add_argument("--queries", type=int, default=16, help="queries at once; others wait for 10 s")
    chosen = parser.parse_args()
    path = chosen.path.absolute()
    try:
        users = load_users(chosen.users)
        claim = _claim(path)
        _enter_nowhere(path)
        engine = Engine(path, memory=chosen.memory, threads=chosen.threads, slots=chosen.queries)
    except Fault as fault:
        print(f"{path}: {fault.text}", file=sys.stderr)
        return 4
    except (BanksmanError, OSError) as error:
        print(error, file=sys.stderr)
        return 4
    try:
        server = Server(chosen.port, engine, users, max_body=chosen.max_body)
    except OSError as error:
        print(f"cannot listen on {LOOPBACK}:{chosen.port}: {error.strerror}", file=sys.stderr)
        engine.close(0)
        return 4

    def stop(_number: int, _frame: FrameType | None) -> None:
        threading.Thread(target=server.shutdown).start()  # it waits for the loop that this handler interrupts

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    print(f"listening http://{LOOPBACK}:{server.server_address[1]}", flush=True)
    server.serve_forever(poll_interval=0.1)
    server.server_close()
    if not engine.close(CLOSE_WITHIN):
        # Leaving through the interpreter would take the engine apart under a running query. The data are on disk.
        print(f"queries did not end within {CLOSE_WITHIN:g} s", file=sys.stderr, flush=True)
        os._exit(1)
    claim.close()
    return 0


def _claim(path: Path) -> IO[str]:
    """Make the folder (0700) and hold it as long as the returned file is open. BadDeployment: another server has it."""
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    file = open(path / "server.lock", "a+")  # noqa: SIM115 - it is kept open
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = file.read().strip()
        file.close()
        raise BadDeployment(f"{path} is in use by another ClickHouse server (pid {holder})") from None
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    return file


def _enter_nowhere(path: Path) -> None:
    """Go to an empty folder: the engine takes the name of a table it does not know for a file's in the working directory."""
    nowhere = path / "config" / "nowhere"
    nowhere.mkdir(parents=True, exist_ok=True, mode=0o700)
    os.chdir(nowhere)


if __name__ == "__main__":
    sys.exit(main())
