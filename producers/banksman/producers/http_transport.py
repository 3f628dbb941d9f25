"""Events over HTTP: `POST /v1/events`, one connection, the next batch when the last one is durable."""

from __future__ import annotations

import re
from http.client import HTTPException
from typing import TYPE_CHECKING

from banksman.producers.connection import Connection, address, clock, reason
from banksman.producers.transport import Away, NotLetIn, Rejected
from banksman.signing import Credential
from banksman.stamps import rfc3339

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from banksman.producers.connection import Answer

TIMEOUT_S = 30.0
"""For a batch: a broker's failover takes up to 6 s, and what was on its way is sent again from the beginning."""

_INDEX = re.compile(r"\[(\d+)\]").match


class HttpTransport:
    """Sends to an enforcer."""

    def __init__(
        self,
        url: str,
        credential: Credential | str,
        *,
        ca_file: str = "",
        headers: Mapping[str, str] | None = None,
        timeout: float = TIMEOUT_S,
    ) -> None:
        """`credential`: an agent's, or a bare token. InvalidSetting: the address or the certificates cannot be used."""
        token = credential.token if isinstance(credential, Credential) else credential.strip().partition(".")[0]
        self._where = address(url, ca_file)
        self._connection = Connection(self._where)
        self._url, self._timeout = url, timeout
        self._headers = {
            "Authorization": f"Bearer {token}",
            "Content-Type": "application/x-ndjson",
            "Accept": "application/json",
            **(headers or {}),
        }
        self._aborted = False

    def send(self, payloads: Sequence[bytes], late: Callable[[Away], None]) -> None:  # noqa: ARG002 - it has a time-out
        """As `Transport.send`."""
        if self._aborted:
            raise Away("stopping")
        headers = self._headers | {"Banksman-Sent": rfc3339()}
        try:
            answer = self._connection.post("/v1/events", b"\n".join(payloads), headers, until=clock() + self._timeout)
        except (OSError, HTTPException) as error:
            raise Away(f"nobody answers at {self._url}: {reason(error)}") from None
        if answer.status != 200:
            raise refusal(answer, len(payloads))

    def abort(self) -> None:
        """As `Transport.abort`."""
        self._aborted = True
        self._connection.abort()

    def close(self) -> None:
        """As `Transport.close`."""
        self._connection.close()

    def forked(self) -> None:
        """As `Transport.forked`: closing this process' side of a socket says nothing on it."""
        self._connection.close()
        self._connection = Connection(self._where)
        self._aborted = False


def refusal(answer: Answer, count: int) -> Away | Rejected:
    """What an answer that is not 200 means for a batch of `count` events.

    Only what a service of ours says about one event, or about the size of the whole, can be for ever: a proxy's error page, a
    wrong address or a setting over there must not make an agent throw its events away.
    """
    ours = answer.problem.get("status") == answer.status
    index = _INDEX(str(answer.problem.get("field") or ""))
    if ours and index and int(index[1]) < count and answer.status in (400, 403, 413, 422):
        return Rejected(answer.text, at=int(index[1]))
    if ours and answer.status == 413:
        return Rejected(answer.text, too_large=True)
    if answer.status in (401, 403):
        return NotLetIn(answer.text, retry_after=answer.retry_after)
    return Away(answer.text, retry_after=answer.retry_after)
