"""The manifests of deploy/kubernetes: they fit the API, each other, the command line and the configuration."""

import functools
import importlib
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click
import kubernetes_validate
import pytest
import yaml

from freshrank.cli import COMMANDS
from freshrank.command import CONFIG_PATH
from freshrank.config import ENVIRONMENT, load_config
from freshrank.doors import VARIABLE as API_TOKENS
from freshrank.health import PATH as HEALTH

KUBERNETES = Path(__file__).parents[1] / "deploy/kubernetes"
BASE, COMPONENTS, OVERLAYS = (KUBERNETES / name for name in ("base", "components", "overlays"))
API_VERSIONS = ("1.30", "1.36")
"""The oldest and newest Kubernetes whose schemas the manifests are held against."""
RUN = BASE / "run.yaml"
Manifest = dict[str, Any]


def kustomization(folder: Path) -> Manifest:
    loaded: Manifest = yaml.safe_load((folder / "kustomization.yaml").read_text())
    return loaded


@functools.cache
def manifests() -> list[Manifest]:
    """Everything that base and components bring, before anything is patched."""
    files = [
        folder / name for folder in (BASE, *COMPONENTS.iterdir()) for name in kustomization(folder).get("resources", [])
    ]
    return [manifest for file in files for manifest in yaml.safe_load_all(file.read_text())]


def of_kind(*kinds: str) -> list[Manifest]:
    return [manifest for manifest in manifests() if manifest["kind"] in kinds]


def named(manifest: Manifest) -> str:
    return f"{manifest['kind']}/{manifest['metadata']['name']}"


WORKLOADS = of_kind("StatefulSet", "Deployment", "Job")
RUNNING = of_kind("StatefulSet", "Deployment")


def container(workload: Manifest) -> Manifest:
    [only] = workload["spec"]["template"]["spec"]["containers"]
    return dict(only)


def pod_labels(workload: Manifest) -> Mapping[str, str]:
    labels: Mapping[str, str] = workload["spec"]["template"]["metadata"]["labels"]
    return labels


def selects(selector: Manifest, labels: Mapping[str, str]) -> bool:
    """Whether a label selector, of either form, takes in what has these labels."""
    if not any(key in selector for key in ("matchLabels", "matchExpressions")):
        selector = {"matchLabels": selector}
    for expression in selector.get("matchExpressions", []):
        is_in = labels.get(expression["key"]) in expression["values"]
        if is_in is not {"In": True, "NotIn": False}[expression["operator"]]:
            return False
    return selector.get("matchLabels", {}).items() <= labels.items()


def selectors(manifest: Manifest) -> Iterator[Manifest]:
    """The selectors of a manifest that mean pods of ours."""
    spec = manifest.get("spec", {})
    if manifest["kind"] == "NetworkPolicy":
        yield spec["podSelector"]
        for rule in (*spec.get("ingress", []), *spec.get("egress", [])):
            for peer in (*rule.get("from", []), *rule.get("to", [])):
                if "namespaceSelector" not in peer:
                    yield peer["podSelector"]
    elif "selector" in spec:
        yield spec["selector"]


def folders() -> list[Path]:
    return sorted(path.parent for path in KUBERNETES.rglob("kustomization.yaml"))


@pytest.mark.parametrize("folder", folders(), ids=lambda path: path.relative_to(KUBERNETES).as_posix())
def test_kustomization_names_what_is_there_and_leaves_no_file_out(folder: Path) -> None:
    wanted = kustomization(folder)
    for other in (*wanted.get("resources", []), *wanted.get("components", [])):
        path = folder / other
        assert path.is_file() or (path / "kustomization.yaml").is_file(), other
    generated = {name for generator in wanted.get("configMapGenerator", []) for name in generator.get("files", [])}
    used = {*wanted.get("resources", []), *generated, "kustomization.yaml"}
    assert {path.name for path in folder.iterdir() if path.is_file()} <= used


@pytest.mark.parametrize("api_version", API_VERSIONS)
@pytest.mark.parametrize("manifest", manifests(), ids=named)
def test_manifest_fits_the_api(manifest: Manifest, api_version: str) -> None:
    if manifest["apiVersion"].startswith("monitoring.coreos.com/"):
        pytest.skip("a custom resource: no schema in Kubernetes itself")
    kubernetes_validate.validate(manifest, api_version, strict=True)


@pytest.mark.parametrize("overlay", ["production", "small", "openshift with learned weights"])
def test_overlay_builds_into_what_fits_the_api(overlay: str, tmp_path: Path) -> None:
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not on the PATH")
    folder = OVERLAYS / overlay
    if not folder.is_dir():  # components that no overlay of ours takes
        shutil.copytree(KUBERNETES, tmp_path / "kubernetes")
        folder = tmp_path / "kubernetes/overlays/taken"
        folder.mkdir()
        components = [f"../../components/{name}" for name in ("blender", "openshift")]
        images = kustomization(OVERLAYS / "production")["images"]
        wanted = {"namespace": "freshrank", "resources": ["../production"], "components": components, "images": images}
        (folder / "kustomization.yaml").write_text(yaml.safe_dump(wanted))
    done = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    built = list(yaml.safe_load_all(done.stdout))
    for manifest in built:
        if not manifest["apiVersion"].startswith("monitoring.coreos.com/"):
            kubernetes_validate.validate(manifest, API_VERSIONS[-1], strict=True)
    maps = {manifest["metadata"]["name"] for manifest in built if manifest["kind"] == "ConfigMap"}
    workloads = [manifest for manifest in built if manifest["kind"] in ("StatefulSet", "Deployment", "Job")]
    for workload in workloads:
        assert {volume["configMap"]["name"] for volume in volumes(workload) if "configMap" in volume} <= maps
        has_group = "fsGroup" in workload["spec"]["template"]["spec"]["securityContext"]
        assert has_group == ("volumeClaimTemplates" in workload["spec"] and "openshift" not in overlay)
    images = {container(workload)["image"] for workload in workloads}
    assert len(images) == 1 and ":" in images.pop(), "one image, with a tag"


def volumes(workload: Manifest) -> list[Manifest]:
    spec = workload["spec"]
    claimed = [{"name": claim["metadata"]["name"]} for claim in spec.get("volumeClaimTemplates", [])]
    return [*spec["template"]["spec"]["volumes"], *claimed]


def test_configuration_is_that_of_production_but_for_places() -> None:
    ours, production = (
        yaml.safe_load(path.read_text()) for path in (RUN, KUBERNETES.parents[1] / "configs/production.yaml")
    )
    assert {key for key in ours.keys() | production.keys() if ours.get(key) != production.get(key)} <= {"monitor"}
    load_config(RUN, environ={"FRESHRANK_KAFKA": "kafka:9092"}).check()


def test_settings_that_the_page_gives_for_learned_weights_are_allowed(tmp_path: Path) -> None:
    page = (KUBERNETES.parents[1] / "docs/deploy.md").read_text()
    [given] = re.findall(r"^```\n(join:.*?)^```", page, re.MULTILINE | re.DOTALL)
    run = yaml.safe_load(RUN.read_text())
    for section, settings in yaml.safe_load(given).items():
        run[section] = run.get(section, {}) | settings
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(run))
    learning = load_config(tmp_path / "run.yaml")
    learning.check()
    assert learning.blender.learn.method != "off"
    [blender] = [workload for workload in WORKLOADS if workload["metadata"]["name"] == "blender"]
    assert learning.monitor.blender.endswith(f":{container(blender)['ports'][0]['containerPort']}")


@pytest.mark.parametrize("workload", WORKLOADS, ids=named)
def test_container_runs_a_command_of_ours_with_options_it_has(workload: Manifest) -> None:
    name, *rest = container(workload)["args"]
    module, _, attribute = COMMANDS[name].where.partition(":")
    command: click.Command = getattr(importlib.import_module(module), attribute)
    if isinstance(command, click.Group):
        command = command.commands[rest.pop(0)]
    context = command.make_context(name, [str(arg) for arg in rest], resilient_parsing=False)
    assert context.params["config"] == Path("/etc/freshrank/run.yaml")
    assert CONFIG_PATH.dir_okay is False
    overrides = context.params["overrides"]
    assert load_config(RUN, overrides).monitor  # the overrides name settings that exist
    if name in ("join", "agents"):
        assert context.params["instance"] == "$(POD_NAME)"
        assert container(workload)["env"][0]["name"] == "POD_NAME"
        assert workload["kind"] == "StatefulSet", "a static member has a stable name"


@pytest.mark.parametrize("workload", RUNNING, ids=named)
def test_ports_and_probes_are_those_of_the_process(workload: Manifest) -> None:
    spec, name = container(workload), workload["metadata"]["name"]
    overrides = [spec["args"][i + 1] for i, arg in enumerate(spec["args"]) if arg == "--set"]
    run = load_config(RUN, overrides)
    [port] = spec["ports"]
    if name == "ranker":
        assert (run.ranker.server.host, run.ranker.server.port) == ("0.0.0.0", port["containerPort"])
    elif name == "monitor":
        assert (run.monitor.host, run.monitor.port) == ("0.0.0.0", port["containerPort"])
    else:
        assert getattr(run.monitor, name) == f"0.0.0.0:{port['containerPort']}"
    path = "/v1/health" if name == "ranker" else HEALTH
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert spec[probe]["httpGet"] == {"path": path, "port": port["name"]}
    startup = spec["startupProbe"]
    assert startup["failureThreshold"] * startup["periodSeconds"] >= 300, "torch and a checkpoint may take long to load"


@pytest.mark.parametrize("workload", WORKLOADS, ids=named)
def test_pod_has_no_privileges_and_bounds(workload: Manifest) -> None:
    pod, spec = workload["spec"]["template"]["spec"], container(workload)
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert spec["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert {"cpu", "memory"} == spec["resources"]["requests"].keys()
    assert "memory" in spec["resources"]["limits"]


@pytest.mark.parametrize("workload", WORKLOADS, ids=named)
def test_what_is_mounted_is_declared_and_what_is_written_is_mounted(workload: Manifest) -> None:
    mounts = {mount["name"]: mount["mountPath"] for mount in container(workload)["volumeMounts"]}
    assert mounts.keys() == {volume["name"] for volume in volumes(workload)}
    maps = {generator["name"]: generator for generator in kustomization(BASE)["configMapGenerator"]}
    config = next(volume["configMap"]["name"] for volume in volumes(workload) if "configMap" in volume)
    assert maps[config]["files"] == [RUN.name] and mounts[config] == "/etc/freshrank"
    run, command = load_config(RUN), container(workload)["args"][0]
    written = {"join": [run.spill.directory], "train": [run.checkpoint.folder], "blend": [run.checkpoint.folder]}
    for folder in written.get(command, []):
        assert Path(str(folder)).is_relative_to(mounts["state"])


def test_environment_comes_from_places_and_secrets_that_are_known() -> None:
    known = {setting.variable for setting in ENVIRONMENT} | {API_TOKENS}
    for folder in (BASE, *OVERLAYS.iterdir()):
        for generator in kustomization(folder).get("configMapGenerator", []):
            given = {literal.partition("=")[0] for literal in generator.get("literals", [])}
            assert given <= known and not any("PASSWORD" in name or "TOKEN" in name for name in given)
    for workload in WORKLOADS:
        sources = {name for source in container(workload)["envFrom"] for name in [next(iter(source.values()))["name"]]}
        assert sources <= {"places", "freshrank-kafka", "freshrank-redis", "freshrank-api"}
        assert "secretKeyRef" not in str(container(workload).get("env", "")), "secrets by reference, all of one kind"
    assert not of_kind("Secret"), "no secret in the repository"


@pytest.mark.parametrize("manifest", [m for m in manifests() if any(selectors(m))], ids=named)
def test_selector_takes_in_pods_that_there_are(manifest: Manifest) -> None:
    for selector in selectors(manifest):
        found = [workload for workload in WORKLOADS if selects(selector, pod_labels(workload))]
        assert found, selector
        if manifest["kind"] in ("StatefulSet", "Deployment", "Service", "PodDisruptionBudget"):
            of_all = manifest["metadata"]["name"].removesuffix("-pods")
            assert [workload["metadata"]["name"] for workload in found] == [of_all]


def test_services_reach_the_ports_and_the_page_finds_every_process() -> None:
    services = {service["metadata"]["name"]: service["spec"] for service in of_kind("Service")}
    for workload in RUNNING:
        name, [port] = workload["metadata"]["name"], container(workload)["ports"]
        [served] = services[name]["ports"]
        assert (served["port"], served["targetPort"]) == (port["containerPort"], port["name"])
        assert (services[name].get("clusterIP") == "None") == (workload["kind"] == "StatefulSet")
        assert workload["spec"].get("serviceName", name) == name
    replicas = {workload["metadata"]["name"]: workload["spec"].get("replicas", 1) for workload in RUNNING}
    for address in load_config(RUN).monitor.targets().values():
        host, _, port_number = address.partition(":")
        pod, _, service = host.rpartition(".")
        assert services[service]["ports"][0]["port"] == int(port_number)
        assert not pod or int(pod.removeprefix(f"{service}-")) < replicas[service]


def test_scaler_and_budget_are_of_what_there_is() -> None:
    scalers = {scaler["metadata"]["name"]: scaler["spec"] for scaler in of_kind("HorizontalPodAutoscaler")}
    assert scalers.keys() == {"joiner", "ranker"}
    for scaler in scalers.values():
        target = scaler["scaleTargetRef"]
        [scaled] = [m for m in manifests() if named(m) == f"{target['kind']}/{target['name']}"]
        assert "replicas" not in scaled["spec"], "the autoscaler says how many"
        assert scaler["minReplicas"] >= 2, "the disruption budget leaves one"
    assert scalers["joiner"]["maxReplicas"] == load_config(RUN).kafka.num_partitions, "more would have nothing to do"


def test_policies_allow_the_ports_there_are_and_deny_the_rest() -> None:
    policies = {policy["metadata"]["name"]: policy["spec"] for policy in of_kind("NetworkPolicy")}
    deny = policies.pop("default-deny")
    assert deny["policyTypes"] == ["Ingress", "Egress"] and not deny.keys() & {"ingress", "egress"}
    assert all(selects(deny["podSelector"], pod_labels(workload)) for workload in WORKLOADS)
    ports = {port["containerPort"] for workload in RUNNING for port in container(workload)["ports"]}
    allowed = {p["port"] for s in policies.values() for rule in s.get("ingress", []) for p in rule["ports"]}
    assert allowed == ports
    for workload in RUNNING:
        [port] = container(workload)["ports"]
        open_to = [
            rule
            for policy in policies.values()
            if selects(policy["podSelector"], pod_labels(workload))
            for rule in policy.get("ingress", [])
            if port["containerPort"] in {each["port"] for each in rule["ports"]}
        ]
        assert open_to, f"nobody may ask {workload['metadata']['name']} for its figures"


def test_every_address_of_a_manifest_stays_in_the_namespace() -> None:
    assert re.fullmatch(r"[\w.,:-]+", yaml.safe_load(RUN.read_text())["monitor"]["joiner"])
    assert {kustomization(folder)["namespace"] for folder in (BASE, *OVERLAYS.iterdir())} == {"freshrank"}
    [space] = of_kind("Namespace")
    assert space["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
