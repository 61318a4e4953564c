"""The Helm chart, rendered by the real helm: its objects, its refusals, and whether the program accepts its files."""

from __future__ import annotations

import base64
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from proxy.pictures.cleaner import ONE_PICTURE
from proxy.settings import DEFAULTS, SECRETS, VARIABLES, read
from proxy.tenants.plan_file import read_file
from tests.deploy.chart_readme import README, figure, text
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
from tests.deploy.containers import ROOT
from tests.support.secrets import SECRET
from tests.support.webhooks import webhook_secret

pytestmark = pytest.mark.tools

DEFAULT = CHART / "ci" / "default-values.yaml"
REDIS_POSTGRES = CHART / "ci" / "redis-postgres-values.yaml"
INGRESS = CHART / "ci" / "ingress-values.yaml"
EXISTING_SECRET = CHART / "ci" / "existing-secret-values.yaml"
HTTP_ROUTE = CHART / "ci" / "httproute-values.yaml"
OPENSHIFT = CHART / "ci" / "openshift-values.yaml"
ADDITIONS = CHART / "ci" / "additions-values.yaml"
MONITORING = CHART / "ci" / "monitoring-values.yaml"
SECRET_FILES = {f"{name}_FILE" for name in SECRETS}
#: Objects that the user adds, not the chart.
OF_OTHERS = {"wait", "log-shipper"}


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
        assert pod["securityContext"].get("runAsUser", 10001) == 10001
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        containers = [*pod["containers"], *pod.get("initContainers", [])]
        for one in [one for one in containers if one["name"] not in OF_OTHERS]:
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
    named = {Path(value).name for name, value in environ(manifests).items() if name in SECRET_FILES}
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
    selectors = [deployment["spec"]["selector"]["matchLabels"]]
    selectors += [service["spec"]["selector"] for service in of_kind(manifests, "Service")]
    selectors += [pdb["spec"]["selector"]["matchLabels"] for pdb in of_kind(manifests, "PodDisruptionBudget")]
    selectors += [policy["spec"]["podSelector"]["matchLabels"] for policy in of_kind(manifests, "NetworkPolicy")]
    for selector in selectors:
        assert selector.items() <= labels.items()
        assert not selector.items() <= test_labels.items()


#: The content of `existingSecret` in the chart's test values.
FOREIGN_SECRET = {
    "fal-key": "id:secret",
    "session-secrets": SECRET,
    "database-url": "postgresql://u:p@h/d",
    "redis-url": "redis://h",
}


def test_the_program_accepts_the_rendered_files(manifests: list[Manifest], tmp_path: Path) -> None:
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
    assert settings.stores.audit_seconds == 365 * 86_400
    assert settings.server.refusals_per_address == "600/minute"
    assert settings.fal.key.reveal() == secrets[0]["fal-key"]
    assert [secret.reveal() for secret in settings.sessions.secrets] == secrets[0]["session-secrets"].split(",")
    plans, _ = read_file(settings.config_path)
    assert plans.tenants


#: Settings that no value has, and why.
WITHOUT_A_VALUE = {
    "FAL_KEY_ID": "fal.key holds both halves",
    "FAL_KEY_SECRET": "fal.key holds both halves",
    "PROXY_OPS_HOST": "it is the address of the pod",
    "PROXY_WORKERS": "a pod is one process, and the chart makes more pods",
    "PROXY_MIGRATE": "migration.enabled starts a container for it",
    "PROXY_COMMIT": "it is a fact of the image",
}
#: Values that are empty unless they are needed.
NEEDED_BY_SOME = {
    "fal__runUrl": "https://fal.example.com/run",
    "fal__queueUrl": "https://fal.example.com/queue",
    "fal__restUrl": "https://fal.example.com/rest",
    "fal__cdnUrl": "https://fal.example.com/cdn",
    "fal__apiUrl": "https://fal.example.com/api",
    "fal__usageKey": "admin:secret",
    "fal__probeSeconds": 0,
    "fal__idleSeconds": 7,
    "verifiers__turnstileUrl": "https://captcha.example.com/turnstile",
    "verifiers__hcaptchaUrl": "https://captcha.example.com/hcaptcha",
    "verifiers__recaptchaUrl": "https://captcha.example.com/recaptcha",
    "verifiers__appCheckUrl": "https://captcha.example.com/app-check",
    "otlpEndpoint": "http://collector.observability:4318",
    "pictureProcesses": 3,
    "maxStreamsPerTenant": 99,
    "connections__maxPerAddress": 98,
    "allowedOrigins": ["https://app.example.com"],
    "trustedProxies": ["10.0.0.0/8"],
    "issuerNetworks": ["10.1.0.0/16"],
    "alerts__url": "http://hooks.monitoring:9000/alerts",
    "alerts__secrets": [webhook_secret("new"), webhook_secret("old")],
    "alerts__networks": ["10.2.0.0/16"],
    "adminToken": SECRET,
    "console": False,
    "publicUrl": "https://ai.example.com",
    "consoleUrl": "https://ops.example.com",
    "consoleOidc__issuer": "https://id.example.com",
    "consoleOidc__clientId": "proxy",
    "consoleOidc__clientSecret": "x",
    "consoleOidc__roles": ["groups:ops=admin", "groups:support=viewer"],
    "redis__url": "redis://redis:6379/0",
}


def test_every_setting_has_a_value() -> None:
    here = environ(render(DEFAULT, **NEEDED_BY_SOME, config={"plans": {"a": {"endpoints": ["fal-ai/llava-next"]}}}))
    assert VARIABLES.keys() - {name.removesuffix("_FILE") for name in here} == WITHOUT_A_VALUE.keys()
    names = {name: value for name, value in here.items() if not name.endswith("_FILE")}
    signed = ",".join(NEEDED_BY_SOME["alerts__secrets"])
    secrets = {"FAL_KEY": "id:secret", "PROXY_SESSION_SECRETS": SECRET, "PROXY_ALERTS_SECRET": signed}
    secrets["PROXY_CONSOLE_OIDC_CLIENT_SECRET"] = "x"
    no_files = {"PROXY_CONFIG": "", "PROXY_STATE_DIR": ""}
    settings = read({**names, **secrets, **no_files})
    assert (settings.fal.probe_seconds, settings.fal.idle_seconds, settings.server.picture_processes) == (0, 7, 3)
    assert (settings.alerts.url, len(settings.alerts.secrets)) == (NEEDED_BY_SOME["alerts__url"], 2)
    assert settings.alerts.networks == ("10.2.0.0/16",)
    assert settings.server.console_address == "https://ops.example.com"
    assert settings.oidc is not None and [rule.value for rule in settings.oidc.roles] == ["ops", "support"]
    assert settings.traces.endpoint == NEEDED_BY_SOME["otlpEndpoint"]
    assert "captcha.example.com/hcaptcha" in settings.verifiers.hcaptcha


def test_a_collector_may_be_reached() -> None:
    for url, port in (("http://a:4318", 4318), ("https://a/otlp", 443), ("http://a", 80)):
        rules = the(render(DEFAULT, otlpEndpoint=url), "NetworkPolicy")["spec"]["egress"]
        assert {"ports": [{"protocol": "TCP", "port": port}]} in rules
    assert len(the(render(DEFAULT), "NetworkPolicy")["spec"]["egress"]) == len(rules) - 1


def test_the_receiver_of_alerts_may_be_reached_and_its_secret_is_no_variable() -> None:
    secret = webhook_secret("chart")
    manifests = render(DEFAULT, alerts__url="https://hooks.example.com:8443/a", alerts__secrets=[secret])
    assert {"ports": [{"protocol": "TCP", "port": 8443}]} in the(manifests, "NetworkPolicy")["spec"]["egress"]
    assert the(manifests, "Secret")["stringData"]["alerts-secret"] == secret
    assert environ(manifests)["PROXY_ALERTS_SECRET_FILE"] == "/etc/fal-proxy/secrets/alerts-secret"
    assert secret not in str([one for one in manifests if one["kind"] != "Secret"])


def test_pictures_count_where_a_plan_strips_them() -> None:
    assert figure("pictureBytes") == ONE_PICTURE.memory_bytes
    plans = {"plans": {"a": {"strip_metadata": True}, "b": {}}}
    assert "with maxBodyMemory and pictureProcesses can take" in refusal(DEFAULT, config=plans)
    assert render(DEFAULT, config=plans, resources__limits={"memory": "2Gi"})
    assert refusal(DEFAULT, config=plans, resources__limits={"memory": "2Gi"}, pictureProcesses=2)
    assert render(DEFAULT, config={"plans": {"b": {"strip_metadata": False}}}, pictureProcesses=64)


def test_connections_are_bounded_as_the_values_say() -> None:
    def bounds(**values: Any) -> dict[str, str]:
        names = ("PROXY_MAX_CONNECTIONS", "PROXY_CONNECT", "PROXY_HEAD", "PROXY_KEEP_ALIVE")
        return {name: value for name, value in environ(render(DEFAULT, **values)).items() if name.startswith(names)}

    names = [name for name in DEFAULTS if name in bounds()]
    assert bounds() == {name: DEFAULTS[name] for name in names} and len(names) == 4
    changed = bounds(connections__maxPerAddress=1_000_000, connections__keepAliveSeconds=620)
    assert changed["PROXY_MAX_CONNECTIONS_PER_ADDRESS"] == "1000000"
    assert changed["PROXY_KEEP_ALIVE_SECONDS"] == "620"


def test_operators_have_their_own_port() -> None:
    manifests = render(REDIS_POSTGRES, opsPort=9191)
    assert environ(manifests)["PROXY_OPS_PORT"] == "9191"
    proxy = container(manifests)
    assert {port["name"]: port["containerPort"] for port in proxy["ports"]} == {"http": 8787, "ops": 9191}
    probes = ("startupProbe", "readinessProbe", "livenessProbe")
    assert {proxy[name]["httpGet"]["port"] for name in probes} == {"ops"}
    services = {service["metadata"]["name"]: service["spec"] for service in of_kind(manifests, "Service")}
    assert services["demo-fal-proxy"]["ports"] == [{"name": "http", "port": 80, "targetPort": "http"}]
    assert services["demo-fal-proxy-ops"]["ports"] == [{"name": "ops", "port": 9191, "targetPort": "ops"}]
    assert services["demo-fal-proxy-ops"]["type"] == "ClusterIP"
    assert services["demo-fal-proxy-ops"]["selector"] == services["demo-fal-proxy"]["selector"]


def test_without_the_port_of_operators_all_routes_are_on_one_port() -> None:
    manifests = render(DEFAULT, opsPort=None)
    assert "PROXY_OPS_PORT" not in environ(manifests) and len(of_kind(manifests, "Service")) == 1
    assert {container(manifests)[name]["httpGet"]["port"] for name in ("readinessProbe", "livenessProbe")} == {"http"}
    public, operators = the(manifests, "NetworkPolicy")["spec"]["ingress"]
    assert public["ports"] == operators["ports"] == [{"protocol": "TCP", "port": "http"}]


PUBLIC: list[tuple[Path, dict[str, Any]]] = [
    (INGRESS, {}),
    (HTTP_ROUTE, {}),
    (DEFAULT, {"service__type": "LoadBalancer"}),
    (DEFAULT, {"service__type": "NodePort"}),
]


@pytest.mark.parametrize(("values_file", "values"), PUBLIC, ids=["ingress", "httproute", "balancer", "node"])
def test_operations_are_not_reachable_from_outside_unless_asked_for(values_file: Path, values: dict[str, Any]) -> None:
    """The program serves them on `opsPort` alone, to which nothing public leads."""
    manifests = render(values_file, **values)
    assert environ(manifests)["PROXY_OPS_PORT"] == "9090"
    outside = [*of_kind(manifests, "Ingress"), *of_kind(manifests, "HTTPRoute")]
    outside += [one for one in of_kind(manifests, "Service") if one["spec"]["type"] != "ClusterIP"]
    assert outside and "ops" not in str([one["spec"] for one in outside])
    said = refusal(values_file, **values, opsPort=None)
    assert "/metrics and /v1/admin would be reachable from outside" in said
    assert render(values_file, **values, opsPort=None, exposeOperations=True)


def test_helm_test_asks_where_each_is_answered() -> None:
    def probes_of(**values: Any) -> list[str]:
        (test,) = the(render(DEFAULT, **values), "Pod")["spec"]["containers"]
        return [argument.replace("http://demo-fal-proxy", "") for argument in test["args"][1:]]

    assert probes_of() == ["200 :80/livez", "404 :80/metrics", "200 -ops:9090/readyz", "200 -ops:9090/metrics"]
    assert probes_of(opsPort=None) == ["200 :80/livez", "200 :80/readyz", "200 :80/metrics"]


def test_the_migration_runs_before_the_program_and_only_with_postgresql() -> None:
    pod = pod_specs(render(ADDITIONS))[0]
    wait, migrate = pod["initContainers"]
    assert wait["name"] == "wait"
    assert (migrate["name"], migrate["args"]) == ("migrate", ["migrate"])
    assert migrate["image"] == container(render(ADDITIONS))["image"]
    # The one variable that the command reads, and the file that it names.
    (variable,) = migrate["env"]
    assert variable["name"] == "PROXY_DATABASE_URL_FILE"
    mounts = {mount["mountPath"]: mount["name"] for mount in migrate["volumeMounts"]}
    folder, _, name = variable["value"].rpartition("/")
    volume = next(volume for volume in pod["volumes"] if volume["name"] == mounts[folder])
    assert name in [item["path"] for item in volume["secret"]["items"]]
    assert "initContainers" not in pod_specs(render(DEFAULT))[0]
    assert "initContainers" not in pod_specs(render(REDIS_POSTGRES, migration__enabled=False))[0]


def test_objects_that_a_user_adds_are_rendered() -> None:
    manifests = render(ADDITIONS)
    pod, proxy = pod_specs(manifests)[0], container(manifests)
    assert [one["name"] for one in pod["containers"]] == ["proxy", "log-shipper"]
    assert pod["volumes"][-1] == {"name": "authorities", "configMap": {"name": "authorities"}}
    assert proxy["volumeMounts"][-1]["mountPath"] == "/etc/authorities"
    assert proxy["envFrom"] == [{"configMapRef": {"name": "shared-environment"}}]
    assert [one["name"] for one in proxy["env"]][-2:] == ["SSL_CERT_FILE", "NODE_NAME"]
    # A value changes one part of a probe, and keeps the others.
    assert (proxy["startupProbe"]["periodSeconds"], proxy["startupProbe"]["failureThreshold"]) == (2, 90)
    assert (proxy["readinessProbe"]["initialDelaySeconds"], proxy["readinessProbe"]["timeoutSeconds"]) == (2, 3)
    metadata = the(manifests, "Deployment")["spec"]["template"]["metadata"]
    assert metadata["labels"]["tier"] == "api" and metadata["annotations"]["example.com/log-format"] == "json"


def test_openshift_chooses_the_user() -> None:
    for pod in pod_specs(render(OPENSHIFT)):
        assert pod["securityContext"] == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    # All that the program writes to are volumes, so any user can.
    mounts = {mount["mountPath"]: mount for mount in container(render(OPENSHIFT))["volumeMounts"]}
    assert {path for path, mount in mounts.items() if not mount.get("readOnly")} == {"/data", "/tmp"}


def test_labels_and_annotations_of_all_objects_are_on_all() -> None:
    for manifest in render(MONITORING):
        assert manifest["metadata"]["labels"]["team"] == "media", manifest["kind"]
        if manifest["kind"] != "Pod":
            assert manifest["metadata"]["annotations"]["example.com/owner"] == "media", manifest["kind"]
    claim = the(render(MONITORING), "PersistentVolumeClaim")["metadata"]["annotations"]
    assert claim["helm.sh/resource-policy"] == "keep"
    assert the(render(MONITORING), "Deployment")["spec"]["selector"]["matchLabels"].keys() == {
        "app.kubernetes.io/name",
        "app.kubernetes.io/instance",
    }


def test_the_files_of_the_chart_are_those_of_deploy() -> None:
    for name, source in (("rules.yaml", "prometheus/rules.yaml"), ("dashboard.json", "grafana/dashboard.json")):
        assert (CHART / "files" / name).read_text() == (ROOT / "deploy" / source).read_text(), f"copy {source} again"


@pytest.mark.parametrize("page", ["", "https://git.example.com/fal-proxy/operations.md"])
def test_alerts_lead_to_the_runbook_of_the_values(page: str) -> None:
    rules = yaml.safe_load((ROOT / "deploy" / "prometheus" / "rules.yaml").read_text())
    for rule in rules["groups"][0]["rules"]:
        link = rule["annotations"].pop("runbook_url")
        if page:
            rule["annotations"]["runbook_url"] = f"{page}#{link.partition('#')[2]}"
    assert the(render(MONITORING, prometheusRule__runbookUrl=page), "PrometheusRule")["spec"] == rules


def test_alerts_and_dashboard_are_rendered_as_they_are() -> None:
    manifests = render(MONITORING)
    (dashboard,) = [one for one in of_kind(manifests, "ConfigMap") if one["metadata"]["name"].endswith("dashboard")]
    assert dashboard["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert dashboard["metadata"]["annotations"]["grafana_folder"] == "Media"
    shown = json.loads(dashboard["data"]["fal-proxy.json"])
    assert shown == json.loads((ROOT / "deploy" / "grafana" / "dashboard.json").read_text())
    assert not of_kind(render(DEFAULT), "PrometheusRule") and not of_kind(render(DEFAULT), "ServiceMonitor")


@pytest.mark.parametrize("ops_port", [9090, None])
def test_the_service_monitor_finds_one_service_with_the_metrics(ops_port: int | None) -> None:
    manifests = render(MONITORING, opsPort=ops_port)
    monitor = the(manifests, "ServiceMonitor")
    assert monitor["metadata"]["labels"]["release"] == "kube-prometheus-stack"
    (endpoint,) = monitor["spec"]["endpoints"]
    wanted = monitor["spec"]["selector"]["matchLabels"].items()
    found = [
        service["metadata"]["name"]
        for service in of_kind(manifests, "Service")
        if wanted <= service["metadata"]["labels"].items()
        and endpoint["port"] in [port["name"] for port in service["spec"]["ports"]]
    ]
    assert found == ["demo-fal-proxy-ops" if ops_port else "demo-fal-proxy"]
    assert (endpoint["path"], endpoint["interval"]) == ("/metrics", "15s")


def test_the_route_leads_to_the_service_and_names_the_public_url() -> None:
    manifests = render(HTTP_ROUTE)
    (rule,) = the(manifests, "HTTPRoute")["spec"]["rules"]
    assert rule["backendRefs"] == [{"name": "demo-fal-proxy", "port": 80}]
    # A run may take ten minutes, and an event stream hours.
    assert rule["timeouts"] == {"request": "0s"}
    assert environ(manifests)["PROXY_PUBLIC_URL"] == "https://ai.example.com"


def mebibytes(text: str) -> float:
    return {"Mi": 1, "Gi": 1024}[text[-2:]] * float(text[:-2])


def test_the_memory_figures_are_the_measured_ones() -> None:
    page = (ROOT / "docs" / "performance.md").read_text()
    idle = max(map(float, re.findall(r"(\d+) MiB", page.split("## Start and memory")[1].split("##")[0])))
    stream = max(map(float, re.findall(r"([\d.]+) KiB", page.split("## Open status streams")[1].split("##")[0])))
    assert idle <= figure("idleBytes") / 1024**2 <= 1.3 * idle
    assert stream <= figure("streamBytes") / 1024 <= 1.3 * stream


def test_the_limits_of_memory_have_room_for_all_streams(manifests: list[Manifest]) -> None:
    here = environ(manifests)
    needed = figure("idleBytes") + figure("streamBytes") * int(here["PROXY_MAX_STREAMS"])
    needed += int(here["PROXY_MAX_BODY_MEMORY"])
    resources = container(manifests)["resources"]
    assert mebibytes(resources["limits"]["memory"]) >= needed / 1024**2
    for scaler in of_kind(manifests, "HorizontalPodAutoscaler"):
        shares = {one["resource"]["name"]: one["resource"]["target"] for one in scaler["spec"]["metrics"]}
        assert shares.keys() == {"cpu", "memory"} == resources["requests"].keys()
        aim = mebibytes(resources["requests"]["memory"]) * shares["memory"]["averageUtilization"] / 100
        assert figure("idleBytes") / 1024**2 < aim < mebibytes(resources["limits"]["memory"])


def test_a_limit_that_just_suffices_is_accepted() -> None:
    needed = -(-(figure("idleBytes") + 100 * figure("streamBytes") + 2**26) // 2**20)
    fitting = {"maxStreams": 100, "maxBodyBytes": 2**24, "maxBodyMemory": 2**26}
    for accepted in (f"{needed}Mi", needed * 2**20, f"{needed * 1024}Ki", "2G", "1.5Gi"):
        assert render(DEFAULT, **fitting, resources__limits={"memory": accepted})
    said = refusal(DEFAULT, **fitting, resources__limits={"memory": f"{needed - 1}Mi"})
    assert f"resources.limits.memory is {needed - 1}Mi, and maxStreams (100) with" in said
    assert f"can take {needed}Mi" in said


def test_the_readme_is_made_of_the_schema() -> None:
    assert README.read_text() == text(), "run: python -m tests.deploy.chart_readme"


def test_every_value_has_a_meaning_and_every_name_a_default() -> None:
    def names(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, bool]]:
        for name, below in schema.get("properties", {}).items():
            yield f"{path}{name}", "description" in below or "properties" in below
            # Below a value that is described as a whole, all is Kubernetes' own.
            if "description" not in below:
                yield from names(below, f"{path}{name}.")

    schema = json.loads((CHART / "values.schema.json").read_text())
    found = dict(names(schema))
    assert [name for name, is_told in found.items() if not is_told] == []
    values = yaml.safe_load((CHART / "values.yaml").read_text())

    def has_default(name: str) -> bool:
        here = values
        for part in name.split("."):
            if part not in here:
                return False
            here = here[part]
        return True

    assert [name for name in found if not has_default(name)] == ["global"]


def test_the_icon_is_in_the_chart() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    encoded = base64.b64encode((CHART / "icon.svg").read_bytes()).decode()
    assert chart["icon"] == f"data:image/svg+xml;base64,{encoded}"
    assert chart["maintainers"]


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


def test_the_playground_is_served_if_it_is_turned_on() -> None:
    assert environ(render(DEFAULT))["PROXY_PLAYGROUND"] == "off"
    assert environ(render(DEFAULT, playground=True))["PROXY_PLAYGROUND"] == "on"


def test_the_console_is_the_programs_default_unless_set() -> None:
    assert "PROXY_CONSOLE" not in environ(render(DEFAULT))
    assert environ(render(DEFAULT, console=False))["PROXY_CONSOLE"] == "off"
    assert environ(render(DEFAULT, console=True))["PROXY_CONSOLE"] == "on"


def test_the_provider_of_the_console_is_set_as_a_whole() -> None:
    oidc = {
        "issuer": "https://id.example.com",
        "clientId": "proxy",
        "clientSecret": "x",
        "roles": ["a:b=admin", "a:c=viewer"],
    }
    manifests = render(DEFAULT, consoleOidc=oidc)
    given = {name: value for name, value in environ(manifests).items() if "OIDC" in name}
    assert given == {
        "PROXY_CONSOLE_OIDC_ISSUER": "https://id.example.com",
        "PROXY_CONSOLE_OIDC_CLIENT_ID": "proxy",
        "PROXY_CONSOLE_OIDC_CLIENT_SECRET_FILE": "/etc/fal-proxy/secrets/oidc-client-secret",
        "PROXY_CONSOLE_OIDC_ROLES": "a:b=admin,a:c=viewer",
    }
    assert not any("OIDC" in name for name in environ(render(DEFAULT)))


NAMESPACE = "kubernetes.io/metadata.name"


def peers(rule: dict[str, Any]) -> set[str]:
    """The namespaces that a rule names, and `test` for the pod of `helm test`."""
    found = set()
    for peer in rule["from"]:
        labels = next(iter(peer.values()))["matchLabels"]
        found.add(labels.get(NAMESPACE) or labels["app.kubernetes.io/name"].removeprefix("fal-proxy-"))
    return found


def test_the_network_policy_is_on_and_lets_in_only_the_named_namespaces() -> None:
    callers, operators = the(render(DEFAULT), "NetworkPolicy")["spec"]["ingress"]
    assert (callers["ports"][0]["port"], peers(callers)) == ("http", {"ingress-nginx", "test"})
    assert (operators["ports"][0]["port"], peers(operators)) == ("ops", {"monitoring", "test"})
    callers, operators = the(render(REDIS_POSTGRES), "NetworkPolicy")["spec"]["ingress"]
    assert peers(callers) == {"ingress-nginx", "backends", "test"}
    more = {"namespaceSelector": {"matchLabels": {NAMESPACE: "x"}}}
    changed = render(DEFAULT, networkPolicy__ingressFrom=[more], networkPolicy__operatorNamespaces=[])
    callers, operators = the(changed, "NetworkPolicy")["spec"]["ingress"]
    assert peers(callers) == {"ingress-nginx", "x", "test"} and peers(operators) == {"test"}
    assert not of_kind(render(DEFAULT, networkPolicy__enabled=False), "NetworkPolicy")


def test_helm_test_comes_through_the_network_policy() -> None:
    labels = the(render(DEFAULT), "Pod")["metadata"]["labels"].items()
    for rule in the(render(DEFAULT), "NetworkPolicy")["spec"]["ingress"]:
        (own,) = [peer["podSelector"]["matchLabels"] for peer in rule["from"] if "podSelector" in peer]
        assert own.items() <= labels


def ways_out(values_file: Path, **values: Any) -> dict[int, Any]:
    """To whom the pods may connect, by port; None for anywhere."""
    rules = the(render(values_file, **values), "NetworkPolicy")["spec"]["egress"]
    return {port["port"]: rule.get("to") for rule in rules for port in rule["ports"]}


def test_the_network_policy_lets_out_to_fal_and_the_stores() -> None:
    data = [{"namespaceSelector": {"matchLabels": {NAMESPACE: "data"}}}]
    assert ways_out(REDIS_POSTGRES) == {53: None, 443: None, 5432: data, 6379: data}
    assert ways_out(DEFAULT) == {53: None, 443: None}
    # The secret is not known here, so the usual ports are open.
    assert ways_out(EXISTING_SECRET) == {53: None, 443: None, 5432: None, 6379: None}


@pytest.mark.parametrize(
    ("url", "ports"),
    [
        ("postgresql://u:p@one:5433,two:5434/d", {5433, 5434}),
        ("postgresql://u:p%40:1@one,two:5433/d?connect_timeout=7", {5432, 5433}),
        ("postgresql://u@[2001:db8::1]/d", {5432}),
        ("postgresql://u@[2001:db8::1]:6432/d", {6432}),
        ("postgresql://h", {5432}),
    ],
)
def test_the_ports_are_those_of_the_url(url: str, ports: set[int]) -> None:
    assert ways_out(DEFAULT, database__url=url).keys() - {53, 443} == ports


def test_the_ingress_leads_to_the_service_and_names_the_public_url() -> None:
    manifests = render(INGRESS)
    (rule,) = the(manifests, "Ingress")["spec"]["rules"]
    (path,) = rule["http"]["paths"]
    assert path["backend"]["service"] == {"name": "demo-fal-proxy", "port": {"name": "http"}}
    assert environ(manifests)["PROXY_PUBLIC_URL"] == "https://ai.example.com"


def test_an_existing_secret_is_used_and_none_is_made() -> None:
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
def test_a_change_of_files_read_at_the_start_restarts_the_pods(changed: dict[str, Any], annotation: str) -> None:
    def annotations(**values: Any) -> dict[str, str]:
        found: dict[str, str] = the(render(DEFAULT, **values), "Deployment")["spec"]["template"]["metadata"][
            "annotations"
        ]
        return found

    before, after = annotations(), annotations(**changed)
    assert {name for name in before if before[name] != after[name]} == {annotation}


def notes(values_file: Path, folder: Path) -> str:
    """The notes that helm prints after an installation. `helm template` prints none, so a chart copy has them."""
    chart = Path(shutil.copytree(CHART, folder / "chart"))
    text = (chart / "templates" / "NOTES.txt").read_text()
    wrapped = '{{ define "notes" }}' + text + '{{ end }}kind: Notes\ntext: {{ include "notes" . | quote }}\n'
    (chart / "templates" / "notes.yaml").write_text(wrapped)
    done = helm("template", "demo", chart, "--values", values_file, "--show-only", "templates/notes.yaml")
    assert done.returncode == 0, done.stderr
    shown: str = yaml.safe_load(done.stdout)["text"]
    return shown


def test_the_notes_show_the_next_commands_and_no_secret(tmp_path: Path) -> None:
    shown = notes(INGRESS, tmp_path)
    assert "exec deploy/demo-fal-proxy -- " in shown and "fal-proxy sessions mint --tenant TENANT" in shown
    assert 'proxyUrl: "https://ai.example.com/api/fal/proxy"' in shown
    assert "port-forward" not in shown and "example-secret" not in shown


SERVABLE: dict[str, Any] = {"fal__key": "id:secret", "sessions__secrets": [SECRET]}
OWN_SECRET: dict[str, Any] = {"existingSecret__name": "mine"}
SCALING: dict[str, Any] = SERVABLE | {
    "autoscaling__enabled": True,
    "database__url": "postgresql://h/d",
    "redis__url": "redis://h",
}
ONE_REPLICA = "More than one replica needs Redis and PostgreSQL"
LABELS = [f"app.kubernetes.io/{name}" for name in ("name", "instance", "version", "managed-by")] + ["helm.sh/chart"]
REFUSALS: list[tuple[dict[str, Any], str]] = [
    ({"sessions__secrets": [SECRET]}, "There is no fal key"),
    ({"fal__key": "id:secret"}, "nothing to sign sessions with"),
    (OWN_SECRET | {"existingSecret__keys": ["session-secrets"]}, "There is no fal key"),
    (OWN_SECRET | {"existingSecret__keys": ["fal-key"]}, "nothing to sign sessions with"),
    (OWN_SECRET | {"fal__key": "id:secret"}, "existingSecret.name is set, and so is the value of fal-key"),
    (SERVABLE | {"sessions__secrets": [SECRET, "x" * 31]}, "sessions.secrets has fewer than 32 bytes"),
    (SERVABLE | {"sessions__secrets": [f"{SECRET},{SECRET}"]}, "sessions.secrets has a comma"),
    (SERVABLE | {"sessions__secrets": [f"{SECRET}\n{SECRET}"]}, "sessions.secrets has a line break"),
    (SERVABLE | {"adminToken": "x" * 31}, "adminToken has fewer than 32 bytes"),
    *[(SERVABLE | {"adminToken": "x" * 20 + one + "x" * 20}, "adminToken has a space") for one in " ,\n\u00e4"],
    (SERVABLE | {"database__url": "mysql://h/d"}, "database.url must begin with postgresql://"),
    *[
        (SERVABLE | {value: {label: "x"}}, f"{value} has {label}")
        for value in ("commonLabels", "podLabels")
        for label in LABELS
    ],
    (SERVABLE | {"replicas": 2}, ONE_REPLICA),
    (SERVABLE | {"autoscaling__enabled": True}, ONE_REPLICA),
    (SERVABLE | {"replicas": 2, "redis__url": "redis://h"}, ONE_REPLICA),
    (SERVABLE | {"replicas": 2, "database__url": "postgresql://h/d"}, ONE_REPLICA),
    (OWN_SECRET | {"replicas": 2}, ONE_REPLICA),
    (SERVABLE | {"drainSeconds": 35}, "terminationGracePeriodSeconds must be greater than drainSeconds"),
    (SERVABLE | {"preStopSeconds": 15}, "terminationGracePeriodSeconds must be greater than drainSeconds plus preStop"),
    (SERVABLE | {"ingress__enabled": True}, "ingress.enabled needs at least one of ingress.hosts"),
    (SERVABLE | {"schemas": {"a.json": "{}"}}, "schemas are for endpoints that config names"),
    (SERVABLE | {"httpRoute__enabled": True}, "httpRoute.enabled needs at least one of httpRoute.parentRefs"),
    (SERVABLE | {"maxBodyMemory": 2**25}, "maxBodyMemory must be at least four times maxBodyBytes"),
    (SERVABLE | {"maxStreams": 24_000}, "maxStreams (24000) with maxBodyMemory can take"),
    (SERVABLE | {"resources__limits": {"memory": "512Mi"}}, "resources.limits.memory is 512Mi"),
    (SCALING | {"resources__requests": {"memory": None}}, "is a share of resources.requests.memory, which is not set"),
    (SCALING | {"resources__requests": {"cpu": None}}, "is a share of resources.requests.cpu, which is not set"),
    (SCALING | {"resources__requests": {"cpu": "1", "memory": "128Mi"}}, "the pods would never be removed"),
    (
        SCALING
        | {
            "autoscaling__targetCPUUtilizationPercentage": None,
            "autoscaling__targetMemoryUtilizationPercentage": None,
        },
        "needs a target for CPU or for memory",
    ),
]


@pytest.mark.parametrize(("values", "message"), REFUSALS)
def test_values_that_cannot_work_are_refused_with_the_reason(values: dict[str, Any], message: str) -> None:
    assert message in refusal(None, **values)


def test_the_chart_sets_no_other_label_of_its_own() -> None:
    """Those that no value may set are all that there are."""
    done = template(None, **SERVABLE, commonLabels={"team": "ai"}, podLabels={"tier": "edge"})
    labels = [manifest["metadata"].get("labels", {}) for manifest in yaml.safe_load_all(done.stdout) if manifest]
    assert {name for one in labels for name in one} - {"team"} <= {*LABELS, "app.kubernetes.io/component"}


def test_stores_in_a_secret_need_no_url() -> None:
    keys = ["fal-key", "session-secrets", "redis-url", "database-url"]
    values = OWN_SECRET | {"existingSecret__keys": keys, "database__url": None, "redis__url": None}
    assert template(None, **values).returncode == 0


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
