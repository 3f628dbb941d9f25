"""Becomes another program that dies with its parent: `python child.py PARENT_PID PROGRAM ARGUMENT…`. Standard library only.

The signal is SIGKILL: nobody is left who would follow up on a SIGTERM that a child ignores, cannot see because it is
frozen, or obeys only when its last long poll has ended. All our children bear it; that is tested.

Linux sends it when the parent's *thread* that forked this process ends, so whoever starts children does it from its main
thread (`children.spawn` refuses others). The setting survives exec. If the parent died before it was made, nobody would ever
send it, so that is looked at afterwards.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    parent, *argv = sys.argv[1:]
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        sys.exit(f"prctl: {os.strerror(ctypes.get_errno())}")
    if os.getppid() != int(parent):
        sys.exit("the parent is gone")
    try:
        os.execvpe(argv[0], argv, os.environ)  # noqa: S606 - that is its purpose
    except OSError as error:
        sys.exit(f"{argv[0]}: {error.strerror}")


if __name__ == "__main__":
    main()
