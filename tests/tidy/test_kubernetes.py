"""The Kubernetes manifests: they build, the schema accepts them, and what they say of each other and of us is true.

There is no cluster here. `kubectl kustomize` builds what would be applied, from files that `quorate init` has generated
for the test; kubernetes-validate checks it by Kubernetes' own schema; each process reads its container's settings.
"""

import base64
import importlib
import importlib.util
import itertools
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from quorate_cli.app import app as commands
from quorate_cli.endpoints import ENDPOINTS_VARIABLE, TOKEN_FILE_VARIABLE
from quorate_core.secrets import require_strong, widest_mode
from quorate_core.settings import HostPort, ProcessSettings
from quorate_gateway.settings import GatewaySettings
from quorate_inventory.migrate import MigrateSettings as InventoryMigrateSettings
from quorate_inventory.settings import InventoryProcessSettings
from quorate_node.settings import ClusterState, Members, NodeSettings
from quorate_order.migrate import MigrateSettings as OrderMigrateSettings
from quorate_order.settings import OrderProcessSettings
from support.repository import ROOT
from typer.main import get_command

NO_KUBECTL = (
    "kubectl is not installed, so the Kubernetes manifests are not checked. Any from 1.27 on will do, and needs no "
    "cluster; its package is called kubectl, kubernetes-client or google-cloud-cli"
)
KUBERNETES_OLDEST = "1.27"
GENERATED = ("cluster.id", "cluster.secret", "token")
SETTINGS: dict[str, type[ProcessSettings]] = {
    "quorate_node": NodeSettings,
    "quorate_gateway": GatewaySettings,
    "quorate_order": OrderProcessSettings,
    "quorate_order.migrate": OrderMigrateSettings,
    "quorate_inventory": InventoryProcessSettings,
    "quorate_inventory.migrate": InventoryMigrateSettings,
}
COMMAND_VARIABLES = {ENDPOINTS_VARIABLE, TOKEN_FILE_VARIABLE}
START = "/opt/quorate/lib/start.py"
POD_IP = "10.1.2.3"
WORKLOADS = {
    "quorate-node": "StatefulSet",
    "quorate-gateway": "Deployment",
    "quorate-order": "Deployment",
    "quorate-inventory": "Deployment",
    "quorate-documents": "Job",
}


@dataclass(frozen=True)
class Container:
    """A container of a workload's pods; `serves` is false for what runs once."""

    workload: dict[str, Any]
    spec: dict[str, Any]
    serves: bool

    @property
    def name(self) -> str:
        return f"{self.workload['metadata']['name']}/{self.spec['name']}"

    @property
    def pod(self) -> dict[str, Any]:
        return pod_of(self.workload)["spec"]

    @property
    def module(self) -> str | None:
        """The module that it runs; None for the `quorate` command."""
        program, *rest = self.spec["command"]
        if program == "quorate":
            return None
        assert program == "python"
        assert rest[0] in (START, "-m")
        return rest[1]

    def environment(self, manifests: "Manifests", pod_name: str) -> dict[str, str]:
        """What Kubernetes would give it, in a pod of this name."""
        found: dict[str, str] = {}
        for variable in self.spec["env"]:
            # NB: only what was declared before is expanded; what was not would stay as it is written.
            found[variable["name"]] = re.sub(
                r"\$\((\w+)\)", lambda match: found.get(match[1], match[0]), _value(variable, manifests, pod_name)
            )
        return found


@dataclass(frozen=True)
class Manifests:
    objects: list[dict[str, Any]]

    def of(self, *kinds: str) -> list[dict[str, Any]]:
        return [each for each in self.objects if each["kind"] in kinds]

    def get(self, kind: str, name: str) -> dict[str, Any]:
        return next(each for each in self.of(kind) if each["metadata"]["name"] == name)

    @property
    def workloads(self) -> list[dict[str, Any]]:
        return self.of("StatefulSet", "Deployment", "Job")

    @property
    def containers(self) -> Iterator[Container]:
        for workload in self.workloads:
            pod = pod_of(workload)["spec"]
            for spec in pod.get("initContainers", []):
                yield Container(workload, spec, serves=False)
            for spec in pod["containers"]:
                yield Container(workload, spec, serves=workload["kind"] != "Job")

    def selected(self, selector: dict[str, Any]) -> set[str]:
        """Names of the workloads whose pods `selector` takes, which has labels only."""
        wanted = selector.items()
        return {each["metadata"]["name"] for each in self.workloads if wanted <= labels_of(each).items()}

    def keys(self, kind: str, name: str) -> set[str]:
        return set(self.get(kind, name)["data"])


def pod_of(workload: dict[str, Any]) -> dict[str, Any]:
    return workload["spec"]["template"]


def labels_of(workload: dict[str, Any]) -> dict[str, str]:
    return pod_of(workload)["metadata"]["labels"]


def ports_of(workload: dict[str, Any]) -> dict[str, int]:
    containers = pod_of(workload)["spec"]["containers"]
    return {port["name"]: port["containerPort"] for each in containers for port in each.get("ports", [])}


def sources_of(volume: dict[str, Any]) -> list[dict[str, Any]]:
    return volume.get("projected", {}).get("sources", [])


def _value(variable: dict[str, Any], manifests: Manifests, pod_name: str) -> str:
    if "value" in variable:
        return variable["value"]
    source = variable["valueFrom"]
    if "configMapKeyRef" in source:
        reference = source["configMapKeyRef"]
        return manifests.get("ConfigMap", reference["name"])["data"][reference["key"]]
    return {"metadata.name": pod_name, "status.podIP": POD_IP}[source["fieldRef"]["fieldPath"]]


def build(folder: Path) -> "subprocess.CompletedProcess[str]":
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.fail(NO_KUBECTL) if os.environ.get("CI") == "true" else pytest.skip(NO_KUBECTL)
    return subprocess.run([kubectl, "kustomize", str(folder)], capture_output=True, text=True, check=False, timeout=60)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of k8s/ with a cluster's own files in it, as the deployer makes them."""
    copy = tmp_path_factory.mktemp("deploy") / "k8s"
    shutil.copytree(ROOT / "k8s", copy, ignore=shutil.ignore_patterns("generated"))
    command = [sys.executable, "-P", "-m", "quorate_cli", "init", str(copy / "base" / "generated")]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    return copy


@pytest.fixture(scope="module", params=["base", "overlays/example"])
def manifests(request: pytest.FixtureRequest, tree: Path) -> Manifests:
    built = build(tree / request.param)
    assert built.returncode == 0, built.stderr
    return Manifests(list(yaml.safe_load_all(built.stdout)))


@pytest.mark.parametrize("missing", GENERATED)
def test_without_a_clusters_own_file_nothing_is_built_and_the_file_is_named(
    tree: Path, tmp_path: Path, missing: str
) -> None:
    copy = shutil.copytree(tree, tmp_path / "k8s")
    (copy / "base" / "generated" / missing).unlink()
    built = build(copy / "base")
    assert built.returncode != 0
    assert built.stdout == ""
    assert f"generated/{missing}" in built.stderr


@pytest.mark.parametrize("name", GENERATED)
def test_a_clusters_own_files_cannot_be_committed_by_mistake(name: str) -> None:
    path = f"k8s/base/generated/{name}"
    assert subprocess.run(["git", "check-ignore", "--quiet", path], cwd=ROOT, check=False).returncode == 0
    assert subprocess.check_output(["git", "ls-files", path], cwd=ROOT) == b""


@pytest.fixture(scope="module")
def schema() -> ModuleType:
    """Imported here, so that an environment without it fails the tests that want it, and no others."""
    return importlib.import_module("kubernetes_validate")


@pytest.mark.parametrize("version", [KUBERNETES_OLDEST, None], ids=["oldest", "newest"])
def test_the_strict_schema_accepts_every_object(manifests: Manifests, schema: ModuleType, version: str | None) -> None:
    refused = []
    for each in manifests.objects:
        try:
            # NB: a kind without a schema raises too; the command of the same name would only warn.
            schema.validate(each, version or schema.latest_version(), strict=True)
        except schema.ValidationError as error:
            refused.append(f"{each['kind']} {each['metadata']['name']}: {list(error.path)}: {error.message}")
    assert refused == []


def test_the_strict_schema_refuses_a_field_that_does_not_exist(manifests: Manifests, schema: ModuleType) -> None:
    nodes = manifests.get("StatefulSet", "quorate-node")
    with pytest.raises(schema.ValidationError, match="podManagmentPolicy"):
        schema.validate(
            {**nodes, "spec": {**nodes["spec"], "podManagmentPolicy": "Parallel"}}, KUBERNETES_OLDEST, strict=True
        )


def test_every_part_of_the_platform_is_there(manifests: Manifests) -> None:
    assert {each["metadata"]["name"]: each["kind"] for each in manifests.workloads} == WORKLOADS
    modules = {each.module for each in manifests.containers}
    assert modules == {*SETTINGS, None}


def test_every_command_can_be_run(manifests: Manifests) -> None:
    for each in manifests.containers:
        if each.module is None:
            assert each.spec["command"][1] in get_command(commands).list_commands(None)  # type: ignore[attr-defined,arg-type]
        else:
            assert importlib.util.find_spec(each.module) is not None, each.name
    dockerfile = (ROOT / "Dockerfile").read_text()
    assert (ROOT / "docker" / Path(START).name).is_file()
    assert re.search(rf"COPY .*docker/{Path(START).name}.* {Path(START).parent}/", dockerfile)
    assert "USER 10001:10001" in dockerfile


def test_the_image_is_of_this_version(manifests: Manifests) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert {each.spec["image"] for each in manifests.containers} == {f"quorate:{version}"}


def pods_of(workload: dict[str, Any]) -> list[str]:
    """A StatefulSet numbers its pods; others have names nobody knows before."""
    name = workload["metadata"]["name"]
    if workload["kind"] == "StatefulSet":
        return [f"{name}-{at}" for at in range(workload["spec"]["replicas"])]
    return [f"{name}-5d9c7b6f4-x7k2p"]


def test_each_variable_is_a_setting_of_its_process(manifests: Manifests) -> None:
    unknown = []
    for each in manifests.containers:
        names = {variable["name"] for variable in each.spec["env"]} - {"POD_NAME", "POD_IP"}
        if each.module is None:
            known = COMMAND_VARIABLES
        else:
            settings = SETTINGS[each.module]
            known = {f"{settings.model_config.get('env_prefix', '')}{field}".upper() for field in settings.model_fields}
        unknown += [f"{each.name}: {name}" for name in names - known]
    assert unknown == []


def test_each_process_takes_its_settings_in_every_pod(
    manifests: Manifests, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith("QUORATE_")]:
        monkeypatch.delenv(name)
    for each in manifests.containers:
        if each.module is None:
            continue
        for pod in pods_of(each.workload):
            with monkeypatch.context() as patched:
                for name, value in each.environment(manifests, pod).items():
                    assert "$(" not in value, f"{each.name}: {name} is not expanded"
                    patched.setenv(name, value.replace("/cluster/", f"{mounted(each, manifests, tmp_path)}/"))
                settings = SETTINGS[each.module].from_command_line(each.name, [])
            assert str(settings.data_dir) == "/data"
            for field in ("http", "peer", "listen", "admin"):
                address = getattr(settings, field, None)
                assert address is None or address.port in ports_of(each.workload).values(), f"{each.name}: {field}"
            if each.serves:
                assert getattr(settings, "token_file", None), f"{each.name} is open to all"


def test_a_node_takes_the_name_of_the_member_at_its_own_address(
    manifests: Manifests, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So a pod can become a new member, under a new name: the old one's is never used again."""
    nodes = manifests.get("StatefulSet", "quorate-node")
    assert [node_settings(manifests, pod, monkeypatch).name for pod in pods_of(nodes)] == pods_of(nodes)
    renamed = "quorate-node-1=quorate-node-1.quorate-nodes:7501,quorate-node-2b=quorate-node-2.quorate-nodes:7501"
    changes = {"QUORATE_NODE_MEMBERS": renamed}
    assert node_settings(manifests, "quorate-node-2", monkeypatch, changes).name == "quorate-node-2b"


def test_after_the_first_start_an_overlay_says_that_an_empty_claim_is_a_loss(
    manifests: Manifests, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the lines that the example has in a comment."""
    assert node_settings(manifests, "quorate-node-0", monkeypatch).cluster_state is ClusterState.NEW
    overlay = shutil.copytree(tree, tmp_path / "k8s") / "overlays" / "example"
    text = (overlay / "kustomization.yaml").read_text()
    lines, count = re.subn(r"^# (configMapGenerator:|  .*)$", r"\1", text, flags=re.MULTILINE)
    assert count == 5
    (overlay / "kustomization.yaml").write_text(lines)
    built = build(overlay)
    assert built.returncode == 0, built.stderr
    later = Manifests(list(yaml.safe_load_all(built.stdout)))
    assert node_settings(later, "quorate-node-0", monkeypatch).cluster_state is ClusterState.EXISTING


def node_settings(
    manifests: Manifests, pod: str, monkeypatch: pytest.MonkeyPatch, changes: dict[str, str] | None = None
) -> NodeSettings:
    """As a node's process would read them in this pod; its files are not read."""
    node = next(each for each in manifests.containers if each.module == "quorate_node")
    variables = node.environment(manifests, pod) | (changes or {})
    with monkeypatch.context() as patched:
        for name in [name for name in os.environ if name.startswith("QUORATE_")]:
            patched.delenv(name)
        for name, value in variables.items():
            if not name.endswith("CLUSTER_ID_FILE"):
                patched.setenv(name, value)
        return NodeSettings.from_command_line(pod, ["--cluster-id", "c-1"])


def mounted(container: Container, manifests: Manifests, folder: Path) -> Path:
    """A folder with what the container finds under /cluster."""
    mounts = {mount["mountPath"]: mount["name"] for mount in container.spec["volumeMounts"]}
    made = folder / container.name.replace("/", "-")
    made.mkdir(exist_ok=True)
    for volume in container.pod["volumes"]:
        if volume["name"] != mounts.get("/cluster"):
            continue
        for source in sources_of(volume):
            ((kind, reference),) = source.items()
            data = manifests.get({"secret": "Secret", "configMap": "ConfigMap"}[kind], reference["name"])["data"]
            for item in reference["items"]:
                content = data[item["key"]]
                text = base64.b64decode(content).decode() if kind == "secret" else content
                (made / item["path"]).write_text(text)
                if kind == "secret":
                    require_strong(text.strip(), item["path"])
    return made


def test_a_mounted_secret_is_readable_by_the_process_and_acceptable_to_it(manifests: Manifests) -> None:
    """Root owns what is mounted, and fsGroup may read it: the kubelet adds 0440 to the mode, whatever it was."""
    for each in manifests.workloads:
        spec = pod_of(each)["spec"]
        context = spec["securityContext"]
        assert context["fsGroup"] == context["runAsGroup"]
        modes = [volume["projected"]["defaultMode"] for volume in spec["volumes"] if sources_of(volume)]
        assert len(modes) == 1
        assert (modes[0] | 0o440) & 0o777 & ~widest_mode(0, context["runAsUser"]) == 0


def test_members_endpoints_pods_and_their_service_agree(manifests: Manifests) -> None:
    nodes = manifests.get("StatefulSet", "quorate-node")
    service = manifests.get("Service", nodes["spec"]["serviceName"])
    ports, domain = ports_of(nodes), service["metadata"]["name"]
    config = next(each["data"] for each in manifests.of("ConfigMap") if "members" in each["data"])
    pods = pods_of(nodes)
    assert len(pods) % 2 == 1
    assert dict(Members.parse(config["members"])) == {pod: HostPort(f"{pod}.{domain}", ports["peer"]) for pod in pods}
    assert config["endpoints"].split(",") == [f"http://{pod}.{domain}:{ports['http']}" for pod in pods]
    node = next(each for each in manifests.containers if each.module == "quorate_node")
    for pod in pods:
        advertised = node.environment(manifests, pod)["QUORATE_NODE_HTTP_ADVERTISE"]
        assert f"http://{advertised}" in config["endpoints"].split(",")
    # Members must reach each other before any of them is ready, and start together.
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"] is True
    assert nodes["spec"]["podManagementPolicy"] == "Parallel"
    budget = manifests.get("PodDisruptionBudget", "quorate-node")
    assert budget["spec"]["maxUnavailable"] == 1


def test_every_selector_takes_the_pods_that_it_is_meant_for(manifests: Manifests) -> None:
    for each in manifests.of("StatefulSet", "Deployment"):
        name = each["metadata"]["name"]
        assert manifests.selected(each["spec"]["selector"]["matchLabels"]) == {name}
        for constraint in pod_of(each)["spec"].get("topologySpreadConstraints", []):
            assert manifests.selected(constraint["labelSelector"]["matchLabels"]) == {name}
    found = {
        f"{each['kind']} {each['metadata']['name']}": manifests.selected(
            each["spec"]["selector"] if each["kind"] == "Service" else each["spec"]["selector"]["matchLabels"]
        )
        for each in manifests.of("Service", "PodDisruptionBudget")
    }
    assert found == {
        "Service quorate-nodes": {"quorate-node"},
        "Service quorate-api": {"quorate-node"},
        "Service quorate-gateway": {"quorate-gateway"},
        "Service quorate-gateway-admin": {"quorate-gateway"},
        "PodDisruptionBudget quorate-node": {"quorate-node"},
        "PodDisruptionBudget quorate-gateway": {"quorate-gateway"},
    }


def test_every_port_that_is_named_exists(manifests: Manifests) -> None:
    by_name = {each["metadata"]["name"]: ports_of(each) for each in manifests.workloads}
    for each in manifests.of("Service"):
        (workload,) = manifests.selected(each["spec"]["selector"])
        assert {port["targetPort"] for port in each["spec"]["ports"]} <= by_name[workload].keys()
        if each["spec"].get("clusterIP") == "None":  # its clients dial the pods, so no port is translated
            assert {port["name"]: port["port"] for port in each["spec"]["ports"]} == by_name[workload]
    for each in manifests.containers:
        probes = [each.spec[name]["httpGet"]["port"] for name in each.spec if name.endswith("Probe")]
        assert set(probes) <= by_name[each.workload["metadata"]["name"]].keys()
    for each in manifests.of("NetworkPolicy"):
        for rule in each["spec"].get("ingress", []):
            for workload in manifests.selected(each["spec"]["podSelector"]["matchLabels"]):
                assert {port["port"] for port in rule["ports"]} <= by_name[workload].keys()


def test_what_a_pod_refers_to_exists_and_is_used(manifests: Manifests) -> None:
    accounts = {each["metadata"]["name"]: each for each in manifests.of("ServiceAccount")}
    for workload in manifests.workloads:
        spec = pod_of(workload)["spec"]
        assert accounts[spec["serviceAccountName"]]["automountServiceAccountToken"] is False
        claims = {each["metadata"]["name"] for each in workload["spec"].get("volumeClaimTemplates", [])}
        volumes = claims | {volume["name"] for volume in spec["volumes"]}
        containers = [*spec.get("initContainers", []), *spec["containers"]]
        assert {mount["name"] for each in containers for mount in each["volumeMounts"]} == volumes
        for volume in spec["volumes"]:
            for source in sources_of(volume):
                ((kind, reference),) = source.items()
                wanted = {item["key"] for item in reference["items"]}
                assert wanted <= manifests.keys({"secret": "Secret", "configMap": "ConfigMap"}[kind], reference["name"])
            if "persistentVolumeClaim" in volume:
                assert manifests.get("PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"])


def test_every_container_is_restricted_bounded_and_probed(manifests: Manifests) -> None:
    for each in manifests.containers:
        pod, own = each.pod["securityContext"], each.spec["securityContext"]
        assert pod["runAsNonRoot"] is True
        assert pod["runAsUser"] == 10001
        assert pod["seccompProfile"] == {"type": "RuntimeDefault"}
        assert own == {
            "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}
        }, each.name  # fmt: skip
        assert each.pod["automountServiceAccountToken"] is False
        # Else a Service's own variables, QUORATE_GATEWAY_PORT and the like, would be read as settings.
        assert each.pod["enableServiceLinks"] is False
        assert not {"hostNetwork", "hostPID", "hostIPC", "hostUsers"} & each.pod.keys()
        kinds = {kind for volume in each.pod["volumes"] for kind in volume if kind != "name"}
        assert kinds <= {"emptyDir", "projected", "persistentVolumeClaim"}
        for limit, resource in itertools.product(("requests", "limits"), ("cpu", "memory")):
            assert each.spec["resources"][limit][resource], each.name
        if each.serves:
            paths = {probe: each.spec[probe]["httpGet"]["path"] for probe in each.spec if probe.endswith("Probe")}
            assert paths == {"startupProbe": "/livez", "livenessProbe": "/livez", "readinessProbe": "/readyz"}, (
                each.name
            )


@pytest.mark.parametrize("name", ["quorate-order", "quorate-inventory"])
def test_a_service_on_sqlite_has_one_instance_on_a_claim_of_its_own_and_migrates_first(
    manifests: Manifests, name: str
) -> None:
    workload = manifests.get("Deployment", name)
    assert workload["spec"]["replicas"] == 1
    assert workload["spec"]["strategy"] == {"type": "Recreate"}
    spec = pod_of(workload)["spec"]
    (migration,), (process,) = spec["initContainers"], spec["containers"]
    assert migration["command"][-1] == f"{process['command'][-1]}.migrate"
    data = {"name": "data", "mountPath": "/data"}
    assert data in migration["volumeMounts"]
    assert data in process["volumeMounts"]
    (volume,) = [volume for volume in spec["volumes"] if volume["name"] == "data"]
    assert volume["persistentVolumeClaim"]["claimName"] == name


def test_only_members_reach_the_peer_port_and_only_the_gateways_clients_come_from_anywhere(
    manifests: Manifests,
) -> None:
    # One policy takes every pod and allows nothing: what follows are the only ways in.
    everything = manifests.get("NetworkPolicy", "quorate-default-deny")["spec"]
    assert manifests.selected(everything["podSelector"]["matchLabels"]) == set(WORKLOADS)
    assert everything == {"podSelector": everything["podSelector"], "policyTypes": ["Ingress"]}
    ways = {
        (workload, port["port"]): frozenset().union(*(callers(peer, manifests) for peer in rule.get("from", [{}])))
        for each in manifests.of("NetworkPolicy")
        for rule in each["spec"].get("ingress", [])
        for workload in manifests.selected(each["spec"]["podSelector"]["matchLabels"])
        for port in rule["ports"]
    }
    services = {"quorate-order", "quorate-inventory"}
    assert ways == {
        ("quorate-node", "peer"): {"quorate-node"},
        ("quorate-node", "http"): {*WORKLOADS, "clients"},
        ("quorate-gateway", "http"): {"anyone"},
        ("quorate-gateway", "admin"): {"clients"},
        ("quorate-order", "http"): {"quorate-gateway", *services},
        ("quorate-inventory", "http"): {"quorate-gateway", *services},
    }


def callers(peer: dict[str, Any], manifests: Manifests) -> set[str]:
    """Whom an entry of a policy's `from` lets in; pods of the same namespace only, unless it is everybody."""
    if not peer:
        return {"anyone"}
    assert peer.keys() == {"podSelector"}
    labels = peer["podSelector"]["matchLabels"]
    return {"clients"} if labels == {"quorate-client": "true"} else manifests.selected(labels)


def test_the_example_puts_all_into_one_namespace_that_admits_restricted_pods_only(tree: Path) -> None:
    built = build(tree / "overlays" / "example")
    objects = Manifests(list(yaml.safe_load_all(built.stdout)))
    (namespace,) = objects.of("Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    placed = {each["metadata"].get("namespace") for each in objects.objects if each is not namespace}
    assert placed == {namespace["metadata"]["name"]}
    gateway = objects.get("Service", "quorate-gateway")
    assert gateway["spec"]["type"] == "LoadBalancer"
    assert {port["targetPort"] for port in gateway["spec"]["ports"]} == {"http"}
