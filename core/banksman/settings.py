"""Settings: the environment (`BANKSMAN_*`) first, then `banksman.yaml`, then the default that stands here.

One frozen model per concern. They are read once, at the edge of a process, and passed in: nothing else looks at the
environment. The reference page is made from the descriptions below.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, get_type_hints

import msgspec
from msgspec import Meta

from banksman.errors import InvalidSetting

if TYPE_CHECKING:
    from collections.abc import Mapping

    from banksman.topics import Topic

S = TypeVar("S", bound="Concern")


class Concern(msgspec.Struct, frozen=True, kw_only=True):
    """A group of settings. Its field `kafka_username` is BANKSMAN_KAFKA_USERNAME, or `kafka_username` in the file."""

    def __repr__(self) -> str:
        """Without passwords and tokens: settings end up in logs."""
        shown = {name: getattr(self, name) for name in self.__struct_fields__}
        hidden = {name: "…" for name in shown if name in SECRET_FIELDS and shown[name]}
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in (shown | hidden).items())})"


SECRET_FIELDS = frozenset(
    ("kafka_password", "clickhouse_password", "clickhouse_reader_password", "token", "operator_token", "slack_token")
)


MOST_DAYS = 10_000


def _about(text: str, **more: Any) -> Meta:
    return Meta(description=text, **more)


class Kafka(Concern, frozen=True, kw_only=True):
    """Where the log is, and how to get in."""

    kafka: Annotated[str, _about("Brokers, host:port, comma-separated.", examples=["k1:9092,k2:9092"])] = (
        "127.0.0.1:9092"
    )
    kafka_security: Annotated[
        Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"], _about("How to speak to the brokers.")
    ] = "PLAINTEXT"
    kafka_sasl_mechanism: Annotated[
        Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"], _about("Which SASL mechanism.")
    ] = "PLAIN"
    kafka_username: Annotated[str, _about("SASL user.")] = ""
    kafka_password: Annotated[str, _about("SASL password; better in a file, by BANKSMAN_KAFKA_PASSWORD_FILE.")] = ""
    kafka_password_file: Annotated[str, _about("File that holds the SASL password.")] = ""
    kafka_ca_file: Annotated[str, _about("CA certificates (PEM) that the brokers' TLS is checked against.")] = ""
    kafka_cert_file: Annotated[str, _about("Client certificate (PEM) for mutual TLS.")] = ""
    kafka_key_file: Annotated[str, _about("Private key (PEM) of the client certificate.")] = ""
    topic_prefix: Annotated[str, _about("Put before every topic's name.", pattern="^[A-Za-z0-9._-]{0,100}$")] = (
        "banksman."
    )
    partitions: Annotated[
        int, _about("Partitions of `actions` and `decisions` when they are created.", ge=1, le=1000)
    ] = 4
    replication: Annotated[int, _about("Copies of every partition when topics are created.", ge=1, le=9)] = 1

    actions_days: Annotated[
        int, _about("How long Kafka keeps `actions`, set when the topic is created.", ge=1, le=MOST_DAYS)
    ] = 7
    decisions_days: Annotated[int, _about("The same for `decisions`.", ge=1, le=MOST_DAYS)] = 30
    alerts_days: Annotated[int, _about("The same for `alerts`.", ge=1, le=MOST_DAYS)] = 90
    dead_days: Annotated[int, _about("The same for `dead`.", ge=1, le=MOST_DAYS)] = 90

    def topic(self, topic: Topic) -> str:
        """The full name of a topic."""
        return self.topic_prefix + topic

    def days(self, topic: Topic) -> int | None:
        """How long Kafka keeps a topic's records; None: for ever."""
        days: int | None = getattr(self, f"{topic}_days", None)
        return days

    def client(self) -> dict[str, Any]:
        """Keyword arguments that every aiokafka client of ours is made with. InvalidSetting: unreadable files."""
        options: dict[str, Any] = {
            "bootstrap_servers": [server.strip() for server in self.kafka.split(",")],
            "security_protocol": self.kafka_security,
            "request_timeout_ms": 5000,
            "metadata_max_age_ms": 2000,  # a failover is noticed in seconds, not in five minutes
        }
        if self.kafka_security.startswith("SASL"):
            options |= {
                "sasl_mechanism": self.kafka_sasl_mechanism,
                "sasl_plain_username": self.kafka_username,
                "sasl_plain_password": self.kafka_password
                or _read(self.kafka_password_file, "BANKSMAN_KAFKA_PASSWORD_FILE"),
            }
        if self.kafka_security.endswith("SSL"):
            import ssl

            try:
                context = ssl.create_default_context(cafile=self.kafka_ca_file or None)
                if self.kafka_cert_file:
                    context.load_cert_chain(self.kafka_cert_file, self.kafka_key_file or None)
            except (OSError, ssl.SSLError) as error:
                raise InvalidSetting(f"cannot be used: {error}", field="BANKSMAN_KAFKA_CA_FILE or _CERT_FILE") from None
            options["ssl_context"] = context
        return options


class ClickHouse(Concern, frozen=True, kw_only=True):
    """Where the audit log is kept. The services write as one user, questions are asked as another, read-only one."""

    clickhouse: Annotated[str, _about("HTTP address of ClickHouse.", examples=["https://ch.internal:8443"])] = (
        "http://127.0.0.1:8123"
    )
    clickhouse_database: Annotated[str, _about("Database of ours.", pattern="^[A-Za-z_][A-Za-z0-9_]{0,63}$")] = (
        "banksman"
    )
    clickhouse_cluster: Annotated[
        str,
        _about(
            "Cluster, as the servers' configuration names it: the tables are replicated and sharded there. Empty: one server.",
            pattern="^([A-Za-z_][A-Za-z0-9_-]{0,63})?$",
        ),
    ] = ""
    clickhouse_user: Annotated[str, _about("User that migrates and writes.")] = "admin"
    clickhouse_password: Annotated[str, _about("Its password; better in a file.")] = ""
    clickhouse_password_file: Annotated[str, _about("File that holds its password.")] = ""
    clickhouse_reader: Annotated[str, _about("Read-only user that questions are asked as.")] = "analyst"
    clickhouse_reader_password: Annotated[str, _about("Its password; better in a file.")] = ""
    clickhouse_reader_password_file: Annotated[str, _about("File that holds its password.")] = ""
    clickhouse_ca_file: Annotated[str, _about("CA certificates (PEM) for an https address.")] = ""
    retention_days: Annotated[
        int,
        # ClickHouse's times of expiry end in 2106, and begin anew in 1970.
        _about("How long the audit log keeps an event, from its `received`; `migrate` applies it.", ge=1, le=MOST_DAYS),
    ] = 365

    def writer(self) -> tuple[str, str]:
        """(user, password) of the services."""
        return self.clickhouse_user, self.clickhouse_password or _read(
            self.clickhouse_password_file, "BANKSMAN_CLICKHOUSE_PASSWORD_FILE"
        )

    def reader(self) -> tuple[str, str]:
        """(user, password) of those who only ask."""
        return self.clickhouse_reader, self.clickhouse_reader_password or _read(
            self.clickhouse_reader_password_file, "BANKSMAN_CLICKHOUSE_READER_PASSWORD_FILE"
        )


class Secrets(Concern, frozen=True, kw_only=True):
    """What services sign with."""

    secret_file: Annotated[str, _about("File with the server secret that all signing keys come from (0600).")] = (
        ".banksman/secret.json"  # noqa: S105 - a path
    )


class Listener(Concern, frozen=True, kw_only=True):
    """What every HTTP listener of ours obeys."""

    hosts: Annotated[str, _about("Names that a `Host` header may carry besides loopback's, comma-separated.")] = ""
    tls_cert_file: Annotated[str, _about("Certificate chain (PEM): the listeners speak TLS.")] = ""
    tls_key_file: Annotated[str, _about("Private key (PEM) of the certificate.")] = ""
    allow_plain_http: Annotated[
        bool, _about("Listen beyond loopback without TLS, e.g. behind a proxy that has it.")
    ] = False


class Health(Concern, frozen=True, kw_only=True):
    """How archiver, processors and notifier say how they are; enforcer and console say it where they listen anyway."""

    health_host: Annotated[str, _about("Address to listen on.")] = "127.0.0.1"
    health_port: Annotated[
        int,
        _about(
            "Port of `/healthz`, `/readyz` and `/metrics`; 0: any free one, which is printed; -1: none.",
            ge=-1,
            le=65535,
        ),
    ] = -1
    late_s: Annotated[
        float, _about("How long a service may be away, or behind, before the notifier tells people.", ge=10)
    ] = 60.0


class Enforcer(Concern, frozen=True, kw_only=True):
    """The decision point."""

    enforcer_host: Annotated[str, _about("Address to listen on.")] = "127.0.0.1"
    enforcer_port: Annotated[int, _about("Port to listen on; 0: any free one.", ge=0, le=65535)] = 7700
    policies: Annotated[str, _about("Folder of policy files.")] = "policies"
    record_deadline_s: Annotated[float, _about("How long a decision waits for its record's acknowledgement.", gt=0)] = (
        2.0
    )
    lease_s: Annotated[float, _about("How long one heartbeat that came back allows answers.", gt=0)] = 1.5
    heartbeat_s: Annotated[float, _about("Time between heartbeats.", gt=0)] = 0.4
    queue: Annotated[int, _about("Decisions that may wait for their record at once; beyond: 503.", ge=1)] = 4096
    agent_share: Annotated[float, _about("Share of the queue that one agent may fill; beyond: 429.", gt=0, le=1)] = 0.25
    agent_rate: Annotated[float, _about("Requests per second and agent; beyond: 429.", gt=0)] = 2000.0
    agent_sessions: Annotated[int, _about("Sessions that one agent may have open (seen in the last hour).", ge=1)] = (
        10000
    )
    agent_approvals: Annotated[int, _about("Approvals that one agent may have pending.", ge=1)] = 100
    budget_stale_s: Annotated[
        float,
        _about(
            "How old what is known of spending may be before agents whose budget denies or asks get 503 `budget_unknown`.",
            gt=0,
        ),
    ] = 30.0
    max_body: Annotated[int, _about("Largest request body in bytes, after decompression.", ge=1024)] = 8 * 1024 * 1024


class Worker(Concern, frozen=True, kw_only=True):
    """A worker of the processors."""

    worker: Annotated[
        str,
        _about(
            "A stable name of this worker: one that comes back under it within its session has its partitions back at once."
        ),
    ] = ""
    worker_session_s: Annotated[
        float,
        _about(
            "How long a worker may be away before others have its partitions; the broker's group.min.session.timeout.ms (6 s "
            "where nobody changed it) is the least.",
            ge=1,
            le=300,
        ),
    ] = 6.0


class Slack(Concern, frozen=True, kw_only=True):
    """Where the notifier tells people."""

    slack_token: Annotated[
        str, _about("Bot token (xoxb-…), better in a file. Without one alerts are told in the notifier's log.")
    ] = ""
    slack_token_file: Annotated[str, _about("File that holds the bot token.")] = ""
    slack_channel: Annotated[
        str, _about("Channel of what no policy names a channel for: #name, or its id.", examples=["C0123456789"])
    ] = "#banksman-alerts"
    slack_url: Annotated[str, _about("Where Slack's Web API is.")] = "https://slack.com/api/"
    slack_timeout_s: Annotated[
        float, _about("How long Slack may take to answer; then what was sent is looked for.", gt=0)
    ] = 10.0

    def bot_token(self) -> str:
        """The bot token, from where it stands; "": nowhere."""
        return self.slack_token or _read(self.slack_token_file, "BANKSMAN_SLACK_TOKEN_FILE")


class Console(Concern, frozen=True, kw_only=True):
    """The read side."""

    console_host: Annotated[str, _about("Address to listen on.")] = "127.0.0.1"
    console_port: Annotated[int, _about("Port to listen on; 0: any free one.", ge=0, le=65535)] = 7701
    sql_seconds: Annotated[float, _about("Longest an analyst's query may run.", gt=0)] = 30.0
    sql_rows: Annotated[int, _about("Most rows that an analyst's query may return.", ge=1)] = 100_000


class Client(Concern, frozen=True, kw_only=True):
    """What agents and operators' commands connect with."""

    url: Annotated[str, _about("Where the enforcer is.")] = "http://127.0.0.1:7700"
    console_url: Annotated[str, _about("Where the read side is.")] = "http://127.0.0.1:7701"
    token: Annotated[str, _about("An agent's credential; better in a file.")] = ""
    token_file: Annotated[str, _about("File with an agent's credential, as `agents add --out` writes it.")] = ""
    operator_token: Annotated[str, _about("An operator's token.")] = ""
    operator_token_file: Annotated[str, _about("File with an operator's token; else .banksman/admin.token.")] = ""
    ca_file: Annotated[str, _about("CA certificates (PEM) that the enforcer's TLS is checked against.")] = ""
    spool: Annotated[str, _about("Folder of the agent's spool; default: ~/.local/state/banksman/spool.")] = ""
    spool_bytes: Annotated[
        int, _about("Most that the spool may hold; beyond: see BANKSMAN_SPOOL_FULL.", ge=1 << 20)
    ] = 256 * 1024 * 1024
    spool_full: Annotated[
        Literal["drop", "refuse"],
        _about("At that cap: drop the oldest events and count them, or refuse new ones and every decision."),
    ] = "drop"
    transport: Annotated[
        Literal["http", "kafka"], _about("How an agent's events travel: through the enforcer, or straight into Kafka.")
    ] = "http"
    decide_timeout_s: Annotated[float, _about("How long an agent waits for a decision, tries included.", gt=0)] = 10.0

    def credential(self) -> str:
        """The agent's credential, from where it stands; "": nowhere."""
        return self.token or _read(self.token_file, "BANKSMAN_TOKEN_FILE")


class Local(Concern, frozen=True, kw_only=True):
    """`banksman up`."""

    data: Annotated[str, _about("Folder that `up` keeps everything in.")] = ".banksman"
    java: Annotated[str, _about("Java executable (17 or newer) for the embedded broker.")] = ""
    cache: Annotated[str, _about("Folder of the broker's jars; default: ~/.cache/banksman.")] = ""
    maven_mirror: Annotated[str, _about("Where the jars come from, instead of Maven Central.")] = ""


CONCERNS: tuple[type[Concern], ...] = (
    Kafka,
    ClickHouse,
    Secrets,
    Listener,
    Health,
    Enforcer,
    Worker,
    Slack,
    Console,
    Client,
    Local,
)


def load(concern: type[S], environ: Mapping[str, str] | None = None, file: Path | None = None) -> S:
    """One concern from the environment and the file. InvalidSetting names the variable, or the file and key.

    `file` None: BANKSMAN_CONFIG, else ./banksman.yaml if it is there.
    """
    environ = os.environ if environ is None else environ
    written = _config(environ, file)
    values: dict[str, Any] = {}
    hints = get_type_hints(concern, include_extras=True)
    for name in concern.__struct_fields__:
        variable = f"BANKSMAN_{name.upper()}"
        if variable in environ:
            given, where = environ[variable], variable
        elif name in written:
            given, where = written[name], f"{written['']}: {name}"
        else:
            continue
        try:
            values[name] = msgspec.convert(given, hints[name], strict=False)
        except msgspec.ValidationError as error:
            raise InvalidSetting(str(error), field=where) from None
    return concern(**values)


def _config(environ: Mapping[str, str], file: Path | None) -> dict[str, Any]:
    chosen = file or Path(environ.get("BANKSMAN_CONFIG", "banksman.yaml"))
    if not chosen.exists():
        if file or "BANKSMAN_CONFIG" in environ:
            raise InvalidSetting(f"{chosen} is not there", field="BANKSMAN_CONFIG")
        return {}
    try:
        import yaml
    except ImportError:
        raise InvalidSetting(
            f"{chosen} needs PyYAML: pip install 'banksman[server]'", field="BANKSMAN_CONFIG"
        ) from None
    try:
        written = yaml.safe_load(chosen.read_text()) or {}
    except (OSError, yaml.YAMLError) as error:
        raise InvalidSetting(f"{chosen} cannot be read: {error}", field="BANKSMAN_CONFIG") from None
    if not isinstance(written, dict):
        raise InvalidSetting(f"{chosen} must be a mapping of settings", field="BANKSMAN_CONFIG")
    known = {name for concern in CONCERNS for name in concern.__struct_fields__}
    for key in written:
        if key not in known:
            raise InvalidSetting("is not a setting", field=f"{chosen}: {key}")
    return {**written, "": str(chosen)}


def _read(path: str, variable: str) -> str:
    if not path:
        return ""
    try:
        return Path(path).read_text().strip()
    except OSError as error:
        raise InvalidSetting(f"cannot read {path}: {error.strerror}", field=variable) from None
