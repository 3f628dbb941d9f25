"""The chart: as Helm renders it, by the schemas and the restricted Pod Security Standard of Kubernetes, and by our settings."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from tests.deploy.conftest import (
    CHART,
    COMPOSE,
    SERVICES,
    SETTINGS,
    helm,
    names_in,
    program,
    read_compose,
    rendered_chart,
)

from banksman import settings
from banksman.settings import SECRET_FIELDS

VALUES, EXAMPLE = CHART / "values.yaml", CHART.parent / "example.yaml"
TEMPLATES = sorted((CHART / "templates").iterdir())
KUBERNETES = ("1.27", "1.33", "1.37")
EVERYTHING = (
    "--set=metrics.serviceMonitor=true,metrics.prometheusRule=true,metrics.caSecret=banksman-tls,slack.tokenSecret.name=slack,kafka.clientCertificate=true",
    '--set-json=networkPolicy.metrics=[{"namespaceSelector": {"matchLabels": {"name": "monitoring"}}}]',
    "--set=networkPolicy.egress[0].ports[0].port=9093,settings.BANKSMAN_LATE_S=30,image.digest=sha256:" + "a" * 64,
)


def merged(over: dict[str, Any], under: dict[str, Any]) -> dict[str, Any]:
    both = dict(under)
    for name, value in over.items():
        both[name] = (
            merged(value, under[name]) if isinstance(value, dict) and isinstance(under.get(name), dict) else value
        )
    return both


def wrong_values(**over: Any) -> list[str]:
    known = json.loads((CHART / "values.schema.json").read_text())
    values = merged(over, merged(yaml.safe_load(EXAMPLE.read_text()), yaml.safe_load(VALUES.read_text())))
    return ["/".join(map(str, error.path)) for error in jsonschema.Draft7Validator(known).iter_errors(values)]


def test_the_schema_takes_the_example_and_refuses_what_is_wrong() -> None:
    assert wrong_values() == []
    for over, where in (
        ({"kafka": {"brokers": "kafka"}}, "kafka/brokers"),
        ({"kafka": {"security": "TLS"}}, "kafka/security"),
        ({"clickhouse": {"cluster": "my cluster"}}, "clickhouse/cluster"),
        ({"image": {"tag": "latest"}}, "image/tag"),
        ({"enforcer": {"replicas": 0}}, "enforcer/replicas"),
        ({"settings": {"BANKSMAN_KAFKA_PASSWORD": "hunter2"}}, "settings"),
        ({"enforcers": {}}, ""),
    ):
        assert wrong_values(**over) == [where], over


def test_every_value_of_the_schema_has_a_default_and_the_reverse() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    values = yaml.safe_load(VALUES.read_text())

    def same(known: dict[str, Any], given: dict[str, Any], where: str) -> None:
        if "$ref" in known:
            known = schema["definitions"][known["$ref"].rpartition("/")[2]]
        properties = known.get("properties")
        if properties is None:
            return
        assert set(properties) - {"global"} == set(given), where
        for name, value in given.items():
            if isinstance(value, dict):
                same(properties[name], value, f"{where}.{name}")

    same(schema, values, "values")


def test_templates_use_values_that_are_there() -> None:
    values = yaml.safe_load(VALUES.read_text())
    used = {
        path
        for file in TEMPLATES
        for path in re.findall(r"(?:\.Values|\$values)\.([A-Za-z.]*[A-Za-z])", file.read_text())
    }
    assert len(used) > 25
    for path in used:
        found: Any = values
        for name in path.split("."):
            assert name in found, path
            found = found[name]


def test_every_name_is_a_setting() -> None:
    for file in [*TEMPLATES, VALUES]:
        assert names_in(file.read_text()) <= SETTINGS, file.name


def test_versions_are_those_of_the_project() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    version = re.search(r'^version = "(.*)"$', (CHART.parents[2] / "pyproject.toml").read_text(), re.MULTILINE)[1]  # type: ignore[index]
    assert chart["appVersion"] == version
    assert f"banksman:{version}" in COMPOSE.read_text()


def pods(documents: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Component -> pod specification."""
    return {
        one["spec"]["template"]["metadata"]["labels"]["app.kubernetes.io/component"]: one["spec"]["template"]["spec"]
        for one in documents
        if one["kind"] in ("Deployment", "StatefulSet", "Job")
    }


def environment(pod: dict[str, Any]) -> dict[str, str]:
    return {one["name"]: one.get("value", "") for one in pod["containers"][0]["env"]}


def test_helm_finds_nothing_to_say() -> None:
    ran = helm("lint", "--strict", str(CHART), "-f", str(EXAMPLE))
    assert ran.returncode == 0, ran.stdout


@pytest.mark.parametrize(("version", "more"), [("1.33", ()), *((version, EVERYTHING) for version in KUBERNETES)])
def test_by_the_schemas_of_kubernetes(version: str, more: tuple[str, ...]) -> None:
    documents = rendered_chart(*more, version=f"{version}.0")
    kinds = [one["kind"] for one in documents]
    assert (kinds.count("Deployment"), kinds.count("StatefulSet"), kinds.count("Job")) == (3, 2, 1)
    for one in documents:
        if not one["apiVersion"].startswith(
            "monitoring.coreos.com/"
        ):  # the operator's own, which Kubernetes has no schema of
            kubernetes_validate.validate(one, version, strict=True)
    broken = next(one for one in documents if one["kind"] == "Deployment")
    broken["spec"]["replicas"] = "three"
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, version, strict=True)


def test_pods_are_restricted() -> None:
    """https://kubernetes.io/docs/concepts/security/pod-security-standards/, restricted, and a root file system of stone."""
    for name, pod in pods(rendered_chart(*EVERYTHING)).items():
        own = pod["securityContext"]
        assert own["runAsNonRoot"] is True, name
        assert own["runAsUser"] == own["runAsGroup"] == own["fsGroup"] == 10001
        assert own["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        for shared in ("hostNetwork", "hostPID", "hostIPC"):
            assert shared not in pod
        (container,) = pod["containers"]
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert container["resources"]["limits"]["memory"]
        for volume in pod["volumes"]:
            (kind,) = set(volume) - {"name"}
            assert kind in ("emptyDir", "projected", "secret", "configMap", "persistentVolumeClaim")
            assert volume.get("projected", volume.get("secret", {})).get("defaultMode", 0o440) == 0o440


def test_every_value_is_one_that_the_service_takes(tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").write_text("")
    for name, pod in pods(rendered_chart(*EVERYTHING)).items():
        given = environment(pod)
        assert {one for one in given if one.startswith("BANKSMAN_")} <= SETTINGS
        for concern in settings.CONCERNS:
            settings.load(concern, given, tmp_path / "empty.yaml")
        for secret in SECRET_FIELDS:
            assert f"BANKSMAN_{secret.upper()}" not in given, name
        mounts = [one["mountPath"] for one in pod["containers"][0]["volumeMounts"]]
        for variable, value in given.items():
            if variable.endswith("_FILE"):
                assert any(value.startswith(f"{mount}/") for mount in mounts), (name, variable)


def test_a_pod_has_the_secrets_that_it_reads_and_no_others() -> None:
    for name, pod in pods(rendered_chart(*EVERYTHING)).items():
        (secrets,) = [one["projected"]["sources"] for one in pod["volumes"] if one["name"] == "secrets"]
        has = {item["path"] for one in secrets for item in one["secret"]["items"]}
        reads = {
            value.rpartition("/")[2]
            for value in environment(pod).values()
            if value.startswith("/run/secrets/banksman/")
        }
        assert has == reads, name


def test_workers_have_names_that_stay() -> None:
    documents = rendered_chart()
    stays = {
        one["spec"]["template"]["metadata"]["labels"]["app.kubernetes.io/component"]
        for one in documents
        if one["kind"] == "StatefulSet"
    }
    assert stays == {"processors", "notifier"}
    for name, pod in pods(documents).items():
        named = {one["name"]: one.get("valueFrom") for one in pod["containers"][0]["env"]}
        own = {"fieldRef": {"fieldPath": "metadata.name"}} if name in ("processors", "notifier", "archiver") else None
        assert named.get("BANKSMAN_WORKER") == own, name


def test_probes_and_services_reach_the_port_that_listens() -> None:
    documents = rendered_chart()
    services = {
        one["metadata"]["labels"]["app.kubernetes.io/component"]: one for one in documents if one["kind"] == "Service"
    }
    assert set(services) == set(SERVICES)
    compose = read_compose()
    for name, pod in pods(documents).items():
        if name == "migrate":
            continue
        (container,) = pod["containers"]
        assert container["args"] == ["serve", name] == compose["services"][name]["command"]
        (port,) = container["ports"]
        assert services[name]["spec"]["ports"][0]["port"] == port["containerPort"]
        target = f"http://{name}:{port['containerPort']}"  # as the compose file, Prometheus and the check have it
        here = COMPOSE.read_text() + (CHART.parents[1] / "prometheus" / "prometheus.yml").read_text()
        assert target in here or f"{name}:{port['containerPort']}" in here
        for probe, path in (("livenessProbe", "/healthz"), ("readinessProbe", "/readyz")):
            assert container[probe]["httpGet"] == {"path": path, "port": "http", "scheme": "HTTPS"}
        hosts = environment(pod)["BANKSMAN_HOSTS"].split(",")
        assert {"$(POD_IP)", f"banksman-{name}", f"banksman-{name}.default.svc"} <= set(hosts)


def test_selectors_find_what_they_name() -> None:
    documents = rendered_chart(*EVERYTHING)
    labels = [one["spec"]["template"]["metadata"]["labels"] for one in documents if "template" in one.get("spec", {})]
    selectors = 0
    for one in documents:
        spec = one.get("spec", {})
        selector = spec.get("selector", spec.get("podSelector"))
        if selector and one["kind"] != "ServiceMonitor":
            wanted = selector.get("matchLabels", selector)
            assert sum(wanted.items() <= own.items() for own in labels) == 1, one["metadata"]["name"]
            selectors += 1
    assert (
        selectors == 5 * 3 + 6
    )  # workloads, Services, disruption budgets; NetworkPolicies, that of `migrate` included


def test_plain_http_and_policies_have_to_be_said() -> None:
    def refused(*more: str) -> str:
        ran = helm("template", "b", str(CHART), "--kube-version", "1.33.0", "-f", str(EXAMPLE), *more)
        assert ran.returncode != 0
        return ran.stderr

    assert "tls.secret: name a Secret" in refused("--set=tls.secret=")
    assert "kafka.clientCertificate" in refused("--set=kafka.security=SSL,kafka.tlsSecret=k")
    assert "kafka.tlsSecret" in refused("--set=kafka.clientCertificate=true,kafka.tlsSecret=")
    assert "enforcer.kafka" in refused("--set=enforcer.kafka.username=banksman-enforcer")
    assert "networkPolicy.metrics" in refused("--set=metrics.serviceMonitor=true")
    assert "policies: give exactly one" in refused("--set=policies.configMap=")
    assert "policies: give exactly one" in refused("--set=policies.claim=x")
    assert "kafka.brokers" in refused("--set=kafka.brokers=").replace("/kafka/brokers", "kafka.brokers")
    assert "cluster" in refused("--set=clickhouse.cluster=my cluster")
    plain = pods(rendered_chart("--set=tls.secret=,tls.allowPlainHttp=true"))
    assert environment(plain["enforcer"])["BANKSMAN_ALLOW_PLAIN_HTTP"] == "true"
    assert plain["enforcer"]["containers"][0]["livenessProbe"]["httpGet"]["scheme"] == "HTTP"


def test_a_cluster_is_named_to_whoever_asks_clickhouse() -> None:
    made = {name: environment(pod) for name, pod in pods(rendered_chart("--set=clickhouse.cluster=main")).items()}
    told = {name for name, known in made.items() if known.get("BANKSMAN_CLICKHOUSE_CLUSTER") == "main"}
    assert told == {name for name, known in made.items() if "BANKSMAN_CLICKHOUSE" in known} != set()


def test_policies_as_files_become_a_config_map() -> None:
    documents = rendered_chart(
        "--set=policies.configMap=", r"--set-json=policies.files={\"shop.yaml\": \"project: shop\"}".replace("\\", "")
    )
    (made,) = [one for one in documents if one["kind"] == "ConfigMap"]
    assert made["data"] == {"shop.yaml": "project: shop"}
    (volume,) = [one for one in pods(documents)["enforcer"]["volumes"] if one["name"] == "policies"]
    assert volume["configMap"]["name"] == made["metadata"]["name"]


def test_a_service_may_have_a_kafka_user_of_its_own() -> None:
    own = "--set=archiver.kafka.username=banksman-archiver,archiver.kafka.passwordSecret.name=kafka-archiver"
    made = pods(rendered_chart(own, "--set=archiver.kafka.tlsSecret=kafka-archiver-tls,kafka.clientCertificate=true"))
    for name, pod in made.items():
        its = name == "archiver"
        assert environment(pod)["BANKSMAN_KAFKA_USERNAME"] == ("banksman-archiver" if its else "service"), name
        secrets = {
            item["path"]: one["secret"]["name"]
            for volume in pod["volumes"] if volume["name"] == "secrets"
            for one in volume["projected"]["sources"] for item in one["secret"]["items"]
        }  # fmt: skip
        assert secrets["kafka_password"] == ("kafka-archiver" if its else "banksman-kafka"), name
        (tls,) = [one["secret"]["secretName"] for one in pod["volumes"] if one["name"] == "kafka-tls"]
        assert tls == ("kafka-archiver-tls" if its else "kafka-ca"), name


def who_gets_in(*more: str) -> dict[str, list[dict[str, Any]]]:
    """Component -> the peers that its network policy lets in."""
    return {
        one["metadata"]["labels"]["app.kubernetes.io/component"]: one["spec"]["ingress"][0]["from"]
        for one in rendered_chart(*more)
        if one["kind"] == "NetworkPolicy" and one["spec"]["ingress"]
    }


def test_prometheus_gets_in_where_the_values_say() -> None:
    here: dict[str, Any] = {"podSelector": {}}
    elsewhere = {"namespaceSelector": {"matchLabels": {"name": "monitoring"}}}
    client = {"podSelector": {"matchLabels": {"agent": "yes"}}}
    clients = f"--set-json=networkPolicy.clients={json.dumps([client])}"
    metrics = f"--set-json=networkPolicy.metrics={json.dumps([elsewhere])}"
    assert all(peers == [here] for peers in who_gets_in().values())
    for more, listeners, others in (
        ((clients,), [client, here], [here]),
        ((metrics,), [here, elsewhere], [elsewhere]),
        ((clients, metrics), [client, elsewhere], [elsewhere]),
    ):
        for name, peers in who_gets_in(*more).items():
            assert peers == (listeners if name in ("enforcer", "console") else others), (more, name)


def test_prometheus_holds_the_certificate_against_an_authority_only_where_one_is_named() -> None:
    """A Secret of type kubernetes.io/tls need not have a ca.crt."""
    monitoring = "--set=metrics.serviceMonitor=true,networkPolicy.metrics[0].podSelector.a=b"
    for more, wanted in (
        ((), None),
        (("--set=metrics.caSecret=own-ca",), {"secret": {"name": "own-ca", "key": "ca.crt"}}),
    ):
        monitors = [one for one in rendered_chart(monitoring, *more) if one["kind"] == "ServiceMonitor"]
        assert len(monitors) == len(SERVICES)
        for one in monitors:
            assert one["spec"]["endpoints"][0]["tlsConfig"].get("ca") == wanted


def test_alerts_of_the_chart_are_those_of_prometheus_for_this_installation(tmp_path: Path) -> None:
    (made,) = [one for one in rendered_chart(*EVERYTHING) if one["kind"] == "PrometheusRule"]
    written = yaml.safe_load((CHART.parents[1] / "prometheus" / "alerts.yml").read_text())
    selected = 0
    for group, own in zip(written["groups"], made["spec"]["groups"], strict=True):
        for rule, its in zip(group["rules"], own["rules"], strict=True):
            for metric, service, labels in re.findall(r"\b(banksman_([a-z]+)_\w+)(\{[^}]*\})?", its["expr"]):
                assert labels.startswith(f'{{namespace="default",service="banksman-{service}"'), (metric, its["expr"])
                selected += 1
            assert its | {"expr": ""} == rule | {"expr": ""}
    assert selected == len(
        re.findall(r"\bbanksman_", str([rule["expr"] for g in written["groups"] for rule in g["rules"]]))
    )
    rules = tmp_path / "rules.yml"
    rules.write_text(yaml.safe_dump(made["spec"]))
    ran = subprocess.run(
        [program("promtool"), "check", "rules", str(rules)], capture_output=True, text=True, timeout=30
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
