"""What docker-compose.yml describes, run without Docker: its Kafka from the same release's jars, its secrets, its services.

Every process gets what the file gives it. What has to differ: names of containers become 127.0.0.1, ports free ones, and
/run/secrets a folder of the test's. ClickHouse is the embedded one, with the passwords of those secrets.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from tests.deploy.conftest import ROOT, SERVICES, image_environment, read_compose
from tests.servers import child_environment, wait_for_http

from banksman.local import children, jars, java
from banksman.local.chdb.users import write_users
from banksman.local.kafka import free_port, kafka_uuid

MAKE_SECRETS = ROOT / "deploy" / "compose" / "make_secrets.py"
AUDIT = '''\
"""Says on stderr whenever something is written, made or removed: a service keeps nothing on disk."""
import os, sys
def told(event, arguments):
    if event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) and str(arguments[0]) != "/dev/null":
        os.write(2, f"WRITES {arguments[0]}\\n".encode())
    elif event in ("os.mkdir", "os.rename", "os.remove", "os.symlink", "os.link"):
        os.write(2, f"WRITES {event} {arguments[0]}\\n".encode())
sys.addaudithook(told)
'''
POLICY = """\
project: shop
version: 1
owner: shop-team
agents:
  buyer:
    allow:
      - {service: git, actions: [pull]}
"""
EXTRA = {"open": "PLAINTEXT", "tls": "SASL_SSL", "opentls": "SSL", "mutual": "SSL"}
READY = re.compile(r"^(?:listening \S+|\w+ ready)$", re.MULTILINE)


def make_secrets(folder: Path) -> Path:
    """As the command makes them, beside an `.env`, in a folder like the project's -> the folder of secrets."""
    script = folder / "deploy" / "compose" / MAKE_SECRETS.name
    script.parent.mkdir(parents=True)
    script.write_text(MAKE_SECRETS.read_text())
    ran = subprocess.run([sys.executable, "-I", str(script)], capture_output=True, text=True, timeout=30)
    assert ran.returncode == 0, ran.stderr
    return script.parent / "secrets"


@dataclass
class Running:
    """The processes; `ports` by service. Kafka has listeners that no file of ours has: `open` wants no login, `tls` wants
    one over TLS, with the certificate `tls.pem`; `opentls` wants none over TLS, `mutual` a client's certificate.
    """

    folder: Path
    secrets: Path
    ports: dict[str, int] = field(default_factory=dict)
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    _before: dict[Path, int] = field(default_factory=dict)
    """What a log held before its process was started."""

    def begin(self) -> None:
        """All of it, as `docker compose up` would: servers, migrate, services."""
        self.ports = {name: free_port() for name in ("kafka", "controller", *EXTRA, "clickhouse", *SERVICES)}
        for folder in ("audit", "policies", "tmp"):
            (self.folder / folder).mkdir()
        (self.folder / "audit" / "sitecustomize.py").write_text(AUDIT)
        (self.folder / "policies" / "shop.yaml").write_text(POLICY)
        self._start_kafka()
        self._start_clickhouse()
        ran = self.run("migrate", "migrate")
        assert ran.returncode == 0, ran.stderr
        for name in SERVICES:
            self.launch(name)
        for name in SERVICES:
            self.await_ready(name)

    def start(self, name: str, *, kept_as: str = "", **environment: str) -> None:
        """A service of the file, as the image runs it -> when it says that it is ready. `kept_as`: another one like it."""
        self.launch(name, kept_as=kept_as, **environment)
        self.await_ready(kept_as or name)

    def launch(self, name: str, *, kept_as: str = "", **environment: str) -> None:
        log = self.log(kept_as or name)
        self._before[log] = log.stat().st_size if log.exists() else 0
        command = read_compose()["services"][name]["command"]
        process = children.spawn([_banksman(), *command], log=log, env=self.environment(name) | environment)
        self.processes[kept_as or name] = process

    def await_ready(self, name: str) -> None:
        log, end = self.log(name), time.monotonic() + 40
        while not READY.search(log.read_text()[self._before[log] :]):
            assert self.processes[name].poll() is None, children.last_lines(log)
            assert time.monotonic() < end, children.last_lines(log)
            time.sleep(0.02)  # between two looks
        if name in self.ports and name in SERVICES:  # a copy of one may speak TLS
            wait_for_http(f"{self.url(name)}/readyz", self.processes[name], log, seconds=60)

    def stop(self, name: str) -> int:
        process = self.processes.pop(name)
        process.terminate()
        return process.wait(20)

    def end(self) -> None:
        for process in reversed(self.processes.values()):
            process.kill()
            process.wait()

    def log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.ports[name]}"

    def run(self, name: str, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """`docker compose exec NAME banksman …`, or a service that ends."""
        env = self.environment(name) | environment
        return subprocess.run([_banksman(), *words], capture_output=True, text=True, timeout=90, env=env, cwd="/")

    def environment(self, name: str) -> dict[str, str]:
        """What the image and the file give a service, moved to here."""
        given = image_environment() | {k: str(v) for k, v in read_compose()["services"][name]["environment"].items()}
        port = str(self.ports[name]) if name in self.ports else "-1"
        moved = {key: self._moved(value) for key, value in given.items()}
        return (
            {key: value for key, value in child_environment().items() if key not in ("HOME", "TMPDIR")}
            | moved
            | {
                "PYTHONPATH": str(self.folder / "audit"),
                "TMPDIR": str(self.folder / "tmp"),
                "BANKSMAN_POLICIES": str(self.folder / "policies"),
                "BANKSMAN_HEALTH_PORT": port if name not in ("enforcer", "console") else str(free_port()),
                "BANKSMAN_ENFORCER_PORT": str(self.ports["enforcer"]),
                "BANKSMAN_CONSOLE_PORT": str(self.ports["console"]),
                "BANKSMAN_URL": self.url("enforcer"),
                "BANKSMAN_CONSOLE_URL": self.url("console"),
            }
        )

    def _moved(self, value: str) -> str:
        for old, new in (
            ("kafka:9092", f"127.0.0.1:{self.ports['kafka']}"),
            ("clickhouse:8123", f"127.0.0.1:{self.ports['clickhouse']}"),
            ("/run/secrets/", f"{self.secrets}/"),
        ):
            value = value.replace(old, new)
        return value

    def _start_clickhouse(self) -> None:
        passwords = {
            name: (self.secrets / name).read_text().strip()
            for name in ("clickhouse_password", "clickhouse_reader_password")
        }
        users = {
            "admin": (passwords["clickhouse_password"], False),
            "analyst": (passwords["clickhouse_reader_password"], True),
        }
        write_users(self.folder / "users.json", users)
        argv = [sys.executable, "-m", "banksman.local.chdb", "--path", str(self.folder / "chdb")]
        argv += ["--port", str(self.ports["clickhouse"]), "--users", str(self.folder / "users.json")]
        log = self.log("clickhouse")
        self.processes["clickhouse"] = children.spawn(argv, log=log, env=child_environment())
        wait_for_http(f"{self.url('clickhouse')}/ping", self.processes["clickhouse"], log)

    def _start_kafka(self) -> None:
        given = read_compose()["services"]["kafka"]["environment"]
        properties = self.folder / "server.properties"
        properties.write_text("".join(f"{name}={value}\n" for name, value in self._kafka_properties(given).items()))
        options = given["KAFKA_OPTS"].replace("/run/secrets/", f"{self.secrets}/")
        classes = jars.class_path(jars.fetch(jars.cache_folder()))
        command = [
            str(java.find_java()),
            "-Xmx256m",
            "-XX:+UseSerialGC",
            "-XX:TieredStopAtLevel=1",
            options,
            "-cp",
            classes,
        ]
        made = subprocess.run(
            [*command, "kafka.tools.StorageTool", "format", f"--cluster-id={kafka_uuid()}", "-c", str(properties)],
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert made.returncode == 0, made.stdout + made.stderr
        log = self.log("kafka")
        self.processes["kafka"] = children.spawn(
            [*command, "kafka.Kafka", str(properties)], log=log, env=child_environment()
        )

    def _kafka_properties(self, given: dict[str, str]) -> dict[str, str]:
        """The image's own rule: KAFKA_A_B is a.b; but for those that its scripts read themselves."""
        told = {
            name.removeprefix("KAFKA_").lower().replace("_", "."): str(value)
            for name, value in given.items()
            if name.startswith("KAFKA_") and name not in ("KAFKA_OPTS", "KAFKA_HEAP_OPTS")
        }
        for name, value in told.items():
            moved = (
                value.replace("0.0.0.0", "127.0.0.1")
                .replace("://kafka:", "://127.0.0.1:")
                .replace("@kafka:", "@127.0.0.1:")
            )
            moved = moved.replace(":9092", f":{self.ports['kafka']}").replace(":9093", f":{self.ports['controller']}")
            told[name] = moved.replace("/var/lib/kafka/data", str(self.folder / "kafka"))
        certificate(self.folder / "tls.pem", "DNS:localhost,IP:127.0.0.1")
        for name, protocol in EXTRA.items():
            told["listeners"] += f",{name.upper()}://127.0.0.1:{self.ports[name]}"
            told["advertised.listeners"] += f",{name.upper()}://127.0.0.1:{self.ports[name]}"
            told["listener.security.protocol.map"] += f",{name.upper()}:{protocol}"
            if protocol.endswith("SSL"):
                told[f"listener.name.{name}.ssl.keystore.type"] = "PEM"
                told[f"listener.name.{name}.ssl.keystore.location"] = f"{self.folder}/tls.pem"
        told |= {
            "listener.name.mutual.ssl.client.auth": "required",
            "listener.name.mutual.ssl.truststore.type": "PEM",
            "listener.name.mutual.ssl.truststore.location": f"{self.folder}/tls.pem.crt",
        }
        return told


def certificate(file: Path, names: str) -> None:
    """A key and a certificate of these names (`DNS:…,IP:…`) that nobody but itself vouches for, in one file."""
    argv = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "1",
    ]
    argv += ["-subj", "/CN=test", "-addext", f"subjectAltName={names}", "-addext", "basicConstraints=critical,CA:FALSE"]
    subprocess.run(
        [*argv, "-keyout", f"{file}.key", "-out", f"{file}.crt"], check=True, capture_output=True, timeout=30
    )
    file.write_text(Path(f"{file}.key").read_text() + Path(f"{file}.crt").read_text())


def _banksman() -> str:
    return str(Path(sys.executable).with_name("banksman"))
