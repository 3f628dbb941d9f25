#!/usr/bin/env python3
"""Make the secrets of `docker compose up`: deploy/compose/secrets/, one file each, and .env, which holds none.

    python3 deploy/compose/make_secrets.py

Nothing that is there already is made again: the log is signed with what is in there. Needs Python and nothing else.

The folder can be entered by its owner only, and in it banksman's own files are 0600: our containers run as that owner. Kafka,
ClickHouse and Grafana run as users of their own images, and a file reaches a container as it is; what they read is 0444,
behind the folder that nobody else of this machine can enter.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import secrets
import sys
import uuid
from pathlib import Path

HERE = Path(__file__).resolve().parent
TOP = HERE.parents[1]
IMAGE_USER = 10001
"""Who banksman's containers run as when root makes the secrets."""

JAAS = """\
KafkaServer {{
  org.apache.kafka.common.security.plain.PlainLoginModule required
  username="broker"
  password="{broker}"
  user_broker="{broker}"
  user_service="{service}";
}};
KafkaClient {{
  org.apache.kafka.common.security.plain.PlainLoginModule required
  username="service"
  password="{service}";
}};
"""
CLICKHOUSE = """\
<clickhouse>
  <profiles>
    <analyst>
      <readonly>2</readonly>
      <allow_ddl>0</allow_ddl>
      <max_execution_time>60</max_execution_time>
      <max_result_rows>1000000</max_result_rows>
      <max_result_bytes>268435456</max_result_bytes>
      <max_memory_usage>1073741824</max_memory_usage>
      <constraints>
        <max_execution_time><min>1</min><max>60</max></max_execution_time>
        <max_result_rows><min>1</min><max>1000000</max></max_result_rows>
        <max_result_bytes><min>1</min><max>268435456</max></max_result_bytes>
        <max_memory_usage><min>1</min><max>1073741824</max></max_memory_usage>
      </constraints>
    </analyst>
  </profiles>
  <users>
    <default remove="1"/>
    <admin>
      <password_sha256_hex>{writer}</password_sha256_hex>
      <networks><ip>::/0</ip></networks>
      <profile>default</profile>
      <quota>default</quota>
    </admin>
    <analyst>
      <password_sha256_hex>{reader}</password_sha256_hex>
      <networks><ip>::/0</ip></networks>
      <profile>analyst</profile>
      <quota>default</quota>
      <grants><query>GRANT SELECT ON banksman.*</query></grants>
    </analyst>
  </users>
</clickhouse>
"""


def main(folder: Path, environment: Path) -> list[str]:
    """Make what is missing -> names of what was made."""
    folder.mkdir(mode=0o700, exist_ok=True)
    folder.chmod(0o700)
    owner = (IMAGE_USER, IMAGE_USER) if os.geteuid() == 0 else (os.getuid(), os.getgid())
    made: list[str] = []

    def keep(name: str, text: str, mode: int = 0o600) -> str:
        """The secret `name`: the one that is there, or this one."""
        file = folder / name
        if file.exists():
            return file.read_text().strip()
        with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
            out.write(text + "\n")
        if os.geteuid() == 0:
            os.chown(file, *owner)
        file.chmod(mode)
        made.append(name)
        return text

    key = base64.b64encode(secrets.token_bytes(32)).decode()
    keep("banksman_secret", json.dumps({"current": 1, "versions": {"1": key}}))
    service = keep("kafka_password", secrets.token_urlsafe(32))
    writer = keep("clickhouse_password", secrets.token_urlsafe(32))
    reader = keep("clickhouse_reader_password", secrets.token_urlsafe(32))
    keep("slack_token", "")
    keep("kafka_jaas", JAAS.format(broker=secrets.token_urlsafe(32), service=service), 0o444)
    keep("clickhouse_users", CLICKHOUSE.format(writer=_sha256(writer), reader=_sha256(reader)), 0o444)
    keep("grafana_clickhouse_password", reader, 0o444)
    keep("grafana_admin_password", secrets.token_urlsafe(18), 0o444)
    made += _say(
        environment,
        BANKSMAN_UID=str(owner[0]),
        BANKSMAN_GID=str(owner[1]),
        KAFKA_CLUSTER_ID=base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("="),
    )
    return made


def _say(environment: Path, **wanted: str) -> list[str]:
    """Write into `.env` what it does not say yet; what somebody else wrote there stays -> what was written."""
    before = environment.read_text() if environment.exists() else ""
    said = re.findall(r"^\s*(?:export\s+)?(\w+)\s*=\s*\S", before, re.MULTILINE)
    missing = [name for name in wanted if name not in said]
    if missing:
        lines = ["# Written by deploy/compose/make_secrets.py; read by `docker compose`. No secret is in here."]
        lines += [f"{name}={wanted[name]}" for name in missing]
        environment.write_text(
            before + ("\n" if before and not before.endswith("\n") else "") + "\n".join(lines) + "\n"
        )
    return [f"{name} in {environment.name}" for name in missing]


def _sha256(password: str) -> str:
    """Passwords here are 256-bit random, so that a plain hash gives nothing away."""
    return hashlib.sha256(password.encode()).hexdigest()


if __name__ == "__main__":
    if sys.argv[1:]:
        sys.exit(__doc__)
    made = main(HERE / "secrets", TOP / ".env")
    print(f"made: {', '.join(made)}" if made else "all are there already; nothing was made again")
