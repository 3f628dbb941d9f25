"""The image's HEALTHCHECK, the same for every service: does the one that runs in this container turn?

A container runs one service, and each listens on one of three ports: so whoever takes a connection is asked for `/healthz`.
That is all it says. Whether the work is done is `/readyz`, which is no reason to start a container again while Kafka is away.
"""

from __future__ import annotations

import http.client
import ssl
import sys

from banksman import settings

TIMEOUT_S = 4.0


def ports() -> list[int]:
    """Where a service may listen in this container, by the settings that it has itself."""
    known = (
        settings.load(settings.Health).health_port,
        settings.load(settings.Enforcer).enforcer_port,
        settings.load(settings.Console).console_port,
    )
    return [port for port in known if port > 0]


def connection(port: int) -> http.client.HTTPConnection:
    """To this container itself: whose certificate it is need not be looked at."""
    if not settings.load(settings.Listener).tls_cert_file:
        return http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
    context = ssl._create_unverified_context()  # noqa: S323, SLF001 - no name of ours leaves this container
    return http.client.HTTPSConnection("127.0.0.1", port, timeout=TIMEOUT_S, context=context)


def main() -> int:
    """0: it answers; 1: nobody does, or not with 200."""
    tried = ports()
    for port in tried:
        asked = connection(port)
        try:
            asked.connect()
        except ConnectionRefusedError:
            continue
        except OSError as error:
            print(f"port {port}: {error}", file=sys.stderr)
            return 1
        try:
            asked.request("GET", "/healthz")
            status = asked.getresponse().status
        except (OSError, http.client.HTTPException) as error:
            print(f"port {port}: {error!r}", file=sys.stderr)
            return 1
        finally:
            asked.close()
        print(f"port {port}: {status}", file=sys.stdout if status == 200 else sys.stderr)
        return 0 if status == 200 else 1
    print(f"nobody listens on {', '.join(map(str, tried))}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
