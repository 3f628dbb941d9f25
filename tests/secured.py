"""A broker as in production: TLS, SCRAM, client certificates, an ACL for everything. Certificates are made by `trustme`."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import trustme
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from tests.servers import Broker, child_environment

from banksman import acls
from banksman.local import children, jars, java, kafka
from banksman.settings import Kafka

AGENT = "agent"


@dataclass(frozen=True)
class Papers:
    """Certificates of one authority, as files."""

    authority: trustme.CA
    folder: Path

    @property
    def ca(self) -> str:
        return self._written("ca.pem", self.authority.cert_pem.bytes())

    def issue(
        self, *names: str, called: str | None = None, kind: trustme.KeyType = trustme.KeyType.ECDSA
    ) -> tuple[str, str]:
        """(certificate chain, key) for hosts or addresses; `called`: the common name; `kind`: of the key."""
        made = self.authority.issue_cert(*names, common_name=called, key_type=kind)
        chain = b"".join(pem.bytes() for pem in made.cert_chain_pems)
        stem = called or names[0]
        key = load_pem_private_key(made.private_key_pem.bytes(), None)
        as_java_wants_it = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return self._written(f"{stem}.crt", chain), self._written(f"{stem}.key", as_java_wants_it)

    def _written(self, name: str, content: bytes) -> str:
        path = self.folder / name
        path.write_bytes(content)
        return str(path)


def papers(folder: Path) -> Papers:
    """A new authority, trusted by whoever is given its `ca`."""
    folder.mkdir(exist_ok=True)
    return Papers(trustme.CA(), folder)


@dataclass(frozen=True)
class Secured:
    """The broker; every client comes by TLS. Only `service`, on a listener that no test uses, may do everything."""

    broker: Broker
    papers: Papers
    prefix: str

    def port(self, listener: str) -> int:
        return self.broker.node.listeners[listener][0]

    def settings(self, user: str, **more: object) -> Kafka:
        """Of a user with SCRAM over TLS."""
        given: dict[str, object] = {
            "kafka": f"127.0.0.1:{self.port('SECURE')}", "kafka_security": "SASL_SSL",
            "kafka_sasl_mechanism": "SCRAM-SHA-512", "kafka_username": user,
            "kafka_password": self.broker.node.scram.get(user, "nobody's"), "kafka_ca_file": self.papers.ca,
            "topic_prefix": self.prefix, "partitions": 2,
        }  # fmt: skip
        return Kafka(**(given | more))  # type: ignore[arg-type]  # checked by the struct itself

    def mutual(self, called: str | None) -> Kafka:
        """Of whoever has the certificate of that name; None: of one without."""
        cert, key = self.papers.issue(f"{called}.acme.example", called=called) if called else ("", "")
        return Kafka(
            kafka=f"127.0.0.1:{self.port('MUTUAL')}", kafka_security="SSL", kafka_ca_file=self.papers.ca,
            kafka_cert_file=cert, kafka_key_file=key, topic_prefix=self.prefix, partitions=2,
        )  # fmt: skip


@contextmanager
def a_secured_broker(folder: Path, prefix: str = "acme.") -> Iterator[Secured]:
    """One user for each kind of principal, named as the kind, and `agent`."""
    made = papers(folder / "papers")
    cert, key = made.issue("127.0.0.1")
    identity, trusted = folder / "broker.pem", folder / "clients-ca.pem"
    identity.write_text(Path(key).read_text() + Path(cert).read_text())
    trusted.write_text(Path(made.ca).read_text())
    node = kafka.Node(
        folder / "kafka", java=java.find_java(), jars=jars.fetch(jars.cache_folder()), port=kafka.free_port(), heap="256m",
        users={kafka.SUPER_USER: secrets.token_hex(8)},
        scram={name: secrets.token_hex(8) for name in (*acls.KINDS, AGENT)},
        listeners={"SECURE": (kafka.free_port(), "SASL_SSL"), "MUTUAL": (kafka.free_port(), "SSL")},
        extra={
            "ssl.keystore.type": "PEM", "ssl.keystore.location": str(identity),
            "ssl.truststore.type": "PEM", "ssl.truststore.location": str(trusted),
            "listener.name.secure.sasl.enabled.mechanisms": "SCRAM-SHA-512",
            "listener.name.secure.scram-sha-512.sasl.jaas.config":
                "org.apache.kafka.common.security.scram.ScramLoginModule required;",
            "listener.name.mutual.ssl.client.auth": "required",
            "listener.name.mutual.ssl.principal.mapping.rules": "RULE:^CN=([^,]+).*$/$1/",
        },
    )  # fmt: skip
    node.prepare()
    process = children.spawn(node.argv(), log=node.log, env=child_environment())
    try:
        asyncio.run(node.ready())
        yield Secured(Broker(node, process), made, prefix)
    finally:
        process.kill()
        process.wait()
