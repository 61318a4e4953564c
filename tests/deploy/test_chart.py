"""The Helm chart, rendered by the real helm: its facts, its refusals, and that the program accepts what it is given."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from proxy.settings import DEFAULTS, read
from proxy.tenants.plan_file import read_file
from tests.deploy.charts import (
    CHART,
    VALUES_FILES,
    Manifest,
    container,
    environ,
    helm,
    of_kind,
    pod_specs,
    refusal,
    render,
    template,
    the,
)
from tests.support.secrets import SECRET

pytestmark = pytest.mark.tools

DEFAULT = CHART / "ci" / "default-values.yaml"
REDIS_POSTGRES = CHART / "ci" / "redis-postgres-values.yaml"
INGRESS = CHART / "ci" / "ingress-values.yaml"
EXISTING_SECRET = CHART / "ci" / "existing-secret-values.yaml"


@pytest.fixture(params=VALUES_FILES, ids=lambda path: path.stem)
def values_file(request: pytest.FixtureRequest) -> Path:
    path: Path = request.param
    return path


@pytest.fixture
def manifests(values_file: Path) -> list[Manifest]:
    return render(values_file)


def test_lints_without_a_warning(values_file: Path) -> None:
    done = helm("lint", "--strict", CHART, "--values", values_file)
    assert done.returncode == 0, done.stdout
    assert "[WARNING]" not in done.stdout and "[ERROR]" not in done.stdout


def test_every_object_has_its_labels_and_its_release(manifests: list[Manifest]) -> None:
    for manifest in manifests:
        labels = manifest["metadata"]["labels"]
        assert labels["app.kubernetes.io/instance"] == "demo", manifest["kind"]
        assert manifest["metadata"]["name"].startswith("demo-fal-proxy")


def test_pods_run_as_an_unprivileged_user_without_capabilities(manifests: list[Manifest]) -> None:
    for pod in pod_specs(manifests):
        assert pod["automountServiceAccountToken"] is False
        assert pod["enableServiceLinks"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] == 10001
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for one in pod["containers"]:
            assert one["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert one["resources"]["requests"].keys() == {"cpu", "memory"}
            assert "memory" in one["resources"]["limits"]


def test_secrets_are_files_and_no_variable_has_one(manifests: list[Manifest]) -> None:
    pod = pod_specs(manifests)[0]
    volume = next(volume for volume in pod["volumes"] if volume["name"] == "secrets")
    assert volume["secret"]["defaultMode"] == 0o440
    files = {item["path"] for item in volume["secret"]["items"]}
    named = {Path(value).name for name, value in environ(manifests).items() if name.endswith("_FILE")}
    assert named == files
    for secret in of_kind(manifests, "Secret"):
        elsewhere = str([manifest for manifest in manifests if manifest is not secret])
        assert not [key for key, value in secret["stringData"].items() if value in elsewhere]


def test_the_probes_ask_the_right_questions(manifests: list[Manifest]) -> None:
    proxy = container(manifests)
    paths = {name: proxy[name]["httpGet"]["path"] for name in ("startupProbe", "readinessProbe", "livenessProbe")}
    assert paths == {"startupProbe": "/readyz", "readinessProbe": "/readyz", "livenessProbe": "/livez"}


def test_the_pod_outlives_its_drain(manifests: list[Manifest]) -> None:
    grace = pod_specs(manifests)[0]["terminationGracePeriodSeconds"]
    waits = int(container(manifests)["lifecycle"]["preStop"]["exec"]["command"][1])
    assert grace > waits + int(environ(manifests)["PROXY_DRAIN_SECONDS"])


def test_selectors_find_the_pods_and_not_the_test_pod(manifests: list[Manifest]) -> None:
    deployment = the(manifests, "Deployment")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    test_labels = the(manifests, "Pod")["metadata"]["labels"]
    selectors = [deployment["spec"]["selector"]["matchLabels"], the(manifests, "Service")["spec"]["selector"]]
    selectors += [pdb["spec"]["selector"]["matchLabels"] for pdb in of_kind(manifests, "PodDisruptionBudget")]
    selectors += [policy["spec"]["podSelector"]["matchLabels"] for policy in of_kind(manifests, "NetworkPolicy")]
    for selector in selectors:
        assert selector.items() <= labels.items()
        assert not selector.items() <= test_labels.items()


#: What stands behind `existingSecret` in the chart's test values.
FOREIGN_SECRET = {
    "fal-key": "id:secret",
    "session-secrets": SECRET,
    "database-url": "postgresql://u:p@h/d",
    "redis-url": "redis://h",
}


def test_the_program_accepts_what_it_is_given(manifests: list[Manifest], tmp_path: Path) -> None:
    """The rendered files are laid out as the pod would see them, and read by the program's own settings."""
    secrets = [secret["stringData"] for secret in of_kind(manifests, "Secret")] or [FOREIGN_SECRET]
    configs = [config["data"] for config in of_kind(manifests, "ConfigMap")]
    for folder, files in [("secrets", secrets), ("config", configs)]:
        (tmp_path / folder).mkdir()
        for name, content in (item for each in files for item in each.items()):
            (tmp_path / folder / name).write_text(content)
    here = {name: value.replace("/etc/fal-proxy", str(tmp_path)) for name, value in environ(manifests).items()}
    # A folder of the pod that the program may write to.
    (folder,) = {each["mountPath"] for each in container(manifests)["volumeMounts"] if each["name"] == "data"}
    assert here["PROXY_STATE_DIR"] == folder
    settings = read({**here, "PROXY_STATE_DIR": str(tmp_path)})
    # Without an Ingress, the Service is what callers see, over plain http.
    assert {warning.partition(":")[0] for warning in settings.warnings} <= {"PROXY_PUBLIC_URL"}
    assert settings.stores.rate_limit_on_error == "refuse" and settings.stores.sqlite_sync == "normal"
    assert settings.stores.retention_seconds == 90 * 86_400
    assert settings.server.refusals_per_address == "600/minute"
    assert settings.fal.key.reveal() == secrets[0]["fal-key"]
    assert [secret.reveal() for secret in settings.sessions.secrets] == secrets[0]["session-secrets"].split(",")
    plans, _ = read_file(settings.config_path)
    assert plans.tenants


def test_connections_are_bounded_as_the_values_say() -> None:
    def bounds(**values: Any) -> dict[str, str]:
        names = ("PROXY_MAX_CONNECTIONS", "PROXY_CONNECT", "PROXY_HEAD", "PROXY_KEEP_ALIVE")
        return {name: value for name, value in environ(render(DEFAULT, **values)).items() if name.startswith(names)}

    names = [name for name in DEFAULTS if name in bounds()]
    assert bounds() == {name: DEFAULTS[name] for name in names} and len(names) == 4
    changed = bounds(connections__maxPerAddress=1_000_000, connections__keepAliveSeconds=620)
    assert changed["PROXY_MAX_CONNECTIONS_PER_ADDRESS"] == "1000000"
    assert changed["PROXY_KEEP_ALIVE_SECONDS"] == "620"


def test_operators_have_a_port_of_their_own_if_the_values_name_one() -> None:
    manifests = render(REDIS_POSTGRES, opsPort=9090, networkPolicy__opsFrom=[{"podSelector": {}}])
    assert environ(manifests)["PROXY_OPS_PORT"] == "9090"
    proxy = container(manifests)
    assert {port["name"]: port["containerPort"] for port in proxy["ports"]} == {"http": 8787, "ops": 9090}
    probes = ("startupProbe", "readinessProbe", "livenessProbe")
    assert {proxy[name]["httpGet"]["port"] for name in probes} == {"ops"}
    services = {service["metadata"]["name"]: service["spec"] for service in of_kind(manifests, "Service")}
    assert services["demo-fal-proxy"]["ports"] == [{"name": "http", "port": 80, "targetPort": "http"}]
    assert services["demo-fal-proxy-ops"]["ports"] == [{"name": "ops", "port": 9090, "targetPort": "ops"}]
    assert services["demo-fal-proxy-ops"]["type"] == "ClusterIP"
    assert services["demo-fal-proxy-ops"]["selector"] == services["demo-fal-proxy"]["selector"]
    public, operators = the(manifests, "NetworkPolicy")["spec"]["ingress"]
    assert public["ports"] == [{"protocol": "TCP", "port": "http"}]
    assert operators == {"ports": [{"protocol": "TCP", "port": "ops"}], "from": [{"podSelector": {}}]}
    closed = render(REDIS_POSTGRES, opsPort=9090)
    assert len(the(closed, "NetworkPolicy")["spec"]["ingress"]) == 1


def test_helm_test_asks_where_readiness_is_answered() -> None:
    def asked(**values: Any) -> list[str]:
        (test,) = the(render(DEFAULT, **values), "Pod")["spec"]["containers"]
        return [argument.removeprefix("http://demo-fal-proxy") for argument in test["args"][1:]]

    assert asked() == [":80/livez", ":80/readyz"]
    assert asked(opsPort=9090) == [":80/livez", "-ops:9090/readyz"]
    # It lets nobody in but those whom the values name.
    assert asked(opsPort=9090, networkPolicy__enabled=True) == [":80/livez"]


def test_one_replica_keeps_sqlite_on_a_volume() -> None:
    manifests = render(DEFAULT)
    claim = the(manifests, "PersistentVolumeClaim")
    volumes = {volume["name"]: volume for volume in pod_specs(manifests)[0]["volumes"]}
    assert volumes["data"]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    assert claim["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    deployment = the(manifests, "Deployment")["spec"]
    assert (deployment["replicas"], deployment["strategy"]["type"]) == (1, "Recreate")
    assert environ(manifests)["PROXY_DATABASE_URL"] == "sqlite:////data/fal-proxy.db"
    assert not of_kind(manifests, "PodDisruptionBudget")


def test_many_replicas_scale_without_a_volume_and_without_a_gap() -> None:
    manifests = render(REDIS_POSTGRES)
    deployment = the(manifests, "Deployment")["spec"]
    assert "replicas" not in deployment
    assert deployment["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
    scaler = the(manifests, "HorizontalPodAutoscaler")["spec"]
    assert (scaler["minReplicas"], scaler["maxReplicas"]) == (3, 9)
    assert the(manifests, "PodDisruptionBudget")["spec"]["maxUnavailable"] == 1
    assert not of_kind(manifests, "PersistentVolumeClaim")


def test_the_streams_of_a_tenant_are_the_programs_default_unless_set() -> None:
    name = "PROXY_MAX_STREAMS_PER_TENANT"
    assert name not in environ(render(DEFAULT))
    assert environ(render(DEFAULT, maxStreamsPerTenant=40))[name] == "40"


def test_the_network_policy_lets_in_the_named_and_out_to_fal_and_the_stores() -> None:
    policy = the(render(REDIS_POSTGRES), "NetworkPolicy")["spec"]
    (ingress,) = policy["ingress"]
    assert ingress["from"][0]["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": "ingress-nginx"}
    ports = {port["port"] for rule in policy["egress"] for port in rule["ports"]}
    assert ports == {53, 443, 5432, 6379}


def test_the_ingress_leads_to_the_service_and_names_the_public_url() -> None:
    manifests = render(INGRESS)
    (rule,) = the(manifests, "Ingress")["spec"]["rules"]
    (path,) = rule["http"]["paths"]
    assert path["backend"]["service"] == {
        "name": the(manifests, "Service")["metadata"]["name"],
        "port": {"name": "http"},
    }
    assert environ(manifests)["PROXY_PUBLIC_URL"] == "https://ai.example.com"


def test_a_secret_of_ones_own_is_used_and_none_is_made() -> None:
    manifests = render(EXISTING_SECRET)
    assert not of_kind(manifests, "Secret") and not of_kind(manifests, "ServiceAccount")
    volume = next(volume for volume in pod_specs(manifests)[0]["volumes"] if volume["name"] == "secrets")
    assert volume["secret"]["secretName"] == "fal-proxy-secrets"
    assert "@sha256:" in container(manifests)["image"]


@pytest.mark.parametrize(
    ("changed", "annotation"),
    [
        ({"fal__key": "another-id:another-secret"}, "checksum/secret"),
        ({"config": {"plans": {"p": {"endpoints": ["fal-ai/llava-next"]}}}}, "checksum/config"),
    ],
)
def test_a_change_of_what_is_read_at_the_start_restarts_the_pods(changed: dict[str, Any], annotation: str) -> None:
    def annotations(**values: Any) -> dict[str, str]:
        found: dict[str, str] = the(render(DEFAULT, **values), "Deployment")["spec"]["template"]["metadata"][
            "annotations"
        ]
        return found

    before, after = annotations(), annotations(**changed)
    assert {name for name in before if before[name] != after[name]} == {annotation}


def notes(values_file: Path, folder: Path) -> str:
    """What helm prints when it has installed; `helm template` does not, so a copy of the chart makes it an object."""
    chart = Path(shutil.copytree(CHART, folder / "chart"))
    text = (chart / "templates" / "NOTES.txt").read_text()
    wrapped = '{{ define "notes" }}' + text + '{{ end }}kind: Notes\ntext: {{ include "notes" . | quote }}\n'
    (chart / "templates" / "notes.yaml").write_text(wrapped)
    done = helm("template", "demo", chart, "--values", values_file, "--show-only", "templates/notes.yaml")
    assert done.returncode == 0, done.stderr
    told: str = yaml.safe_load(done.stdout)["text"]
    return told


def test_the_notes_show_the_next_commands_and_no_secret(tmp_path: Path) -> None:
    told = notes(INGRESS, tmp_path)
    assert "exec deploy/demo-fal-proxy -- " in told and "fal-proxy sessions mint --tenant TENANT" in told
    assert 'proxyUrl: "https://ai.example.com/api/fal/proxy"' in told
    assert "port-forward" not in told and "example-secret" not in told


SERVABLE: dict[str, Any] = {"fal__key": "id:secret", "sessions__secrets": [SECRET]}
OWN_SECRET: dict[str, Any] = {"existingSecret__name": "mine"}
ONE_REPLICA = "More than one replica needs Redis and PostgreSQL"
REFUSALS: list[tuple[dict[str, Any], str]] = [
    ({"sessions__secrets": [SECRET]}, "There is no fal key"),
    ({"fal__key": "id:secret"}, "nothing to sign sessions with"),
    (OWN_SECRET | {"existingSecret__keys": ["session-secrets"]}, "There is no fal key"),
    (OWN_SECRET | {"existingSecret__keys": ["fal-key"]}, "nothing to sign sessions with"),
    (OWN_SECRET | {"fal__key": "id:secret"}, "existingSecret.name is set, and so is the value of fal-key"),
    (SERVABLE | {"sessions__secrets": [SECRET, "x" * 31]}, "sessions.secrets has fewer than 32 bytes"),
    (SERVABLE | {"sessions__secrets": [f"{SECRET},{SECRET}"]}, "sessions.secrets has a comma"),
    (SERVABLE | {"adminToken": "x" * 31}, "adminToken has fewer than 32 bytes"),
    (SERVABLE | {"database__url": "mysql://h/d"}, "database.url must begin with postgresql://"),
    (SERVABLE | {"replicas": 2}, ONE_REPLICA),
    (SERVABLE | {"autoscaling__enabled": True}, ONE_REPLICA),
    (SERVABLE | {"replicas": 2, "redis__url": "redis://h"}, ONE_REPLICA),
    (SERVABLE | {"replicas": 2, "database__url": "postgresql://h/d"}, ONE_REPLICA),
    (OWN_SECRET | {"replicas": 2}, ONE_REPLICA),
    (SERVABLE | {"drainSeconds": 35}, "terminationGracePeriodSeconds must be greater than drainSeconds"),
    (SERVABLE | {"preStopSeconds": 15}, "terminationGracePeriodSeconds must be greater than drainSeconds plus preStop"),
    (SERVABLE | {"ingress__enabled": True}, "ingress.enabled needs at least one of ingress.hosts"),
    (SERVABLE | {"schemas": {"a.json": "{}"}}, "schemas are for endpoints that config names"),
]


@pytest.mark.parametrize(("values", "message"), REFUSALS)
def test_refuses_what_cannot_work_and_says_why(values: dict[str, Any], message: str) -> None:
    assert message in refusal(None, **values)


def test_the_longest_allowed_drain_is_accepted() -> None:
    assert template(None, **SERVABLE, drainSeconds=34).returncode == 0


@pytest.mark.parametrize(
    "typo",
    [
        {"replicaCount": 1},
        {"image__repo": "x"},
        {"fal__keys": "x"},
        {"sessions__secret": "x"},
        {"existingSecret__key": "x"},
        {"log__levels": "info"},
        {"connections__idleSeconds": 5},
        {"config": {"plan": {}}},
        {"persistence__enable": True},
        {"ingress__host": "x"},
        {"autoscaling__min": 2},
        {"networkPolicy__enable": True},
        {"serviceAccount__annotation": {}},
        {"service__ports": 80},
        {"resources__request": {}},
        {"podDisruptionBudget__minAvailable": 1},
    ],
    ids=lambda typo: next(iter(typo)),
)
def test_a_typo_in_the_values_fails(typo: dict[str, Any]) -> None:
    said = refusal(None, **SERVABLE, **typo)
    assert "additional propert" in said.lower(), said


@pytest.mark.parametrize(
    "wrong",
    [
        {"replicas": 0},
        {"log__level": "verbose"},
        {"rateLimitOnError": "maybe"},
        {"persistence__sync": "sometimes"},
        {"opsPort": 8787},
        {"opsPort": 80},
        {"maxStreamsPerTenant": 0},
        {"fal__runUrl": "http://fal.example"},
        {"image__digest": "latest"},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_a_wrong_value_fails(wrong: dict[str, Any]) -> None:
    (name,) = wrong
    assert name.split("__")[-1] in refusal(None, **SERVABLE, **wrong)
