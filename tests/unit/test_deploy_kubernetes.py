"""The Kubernetes file: true to the settings, the image and what its own parts name."""

import importlib
import re
from typing import Any

import pytest
import yaml

from pipeline.__main__ import COMMANDS
from pipeline.settings import MetricsSettings, WorkerSettings, parse_command
from tests.deploy_files import DEPLOY, read_yaml

PODS = ("lrurec-topics", "lrurec-worker", "lrurec-trainer")


def read_objects() -> dict[tuple[str, str], dict[str, Any]]:
    """Every object of the file by kind and name."""
    text = (DEPLOY / "kubernetes" / "lrurec.yaml").read_text(encoding="utf-8")
    objects = list(yaml.safe_load_all(text))
    found = {(each["kind"], each["metadata"]["name"]): each for each in objects}
    assert len(found) == len(objects)
    return found


OBJECTS = read_objects()
POD_OF = {
    name: each["spec"]["template"]
    for (_, name), each in OBJECTS.items()
    if "template" in each.get("spec", {})
}


def container(name: str) -> dict[str, Any]:
    """The one container of a pod."""
    (found,) = POD_OF[name]["spec"]["containers"]
    assert isinstance(found, dict)
    return found


def parsed_settings(name: str) -> Any:
    """Parse a pod's arguments and variables as its command does."""
    command, *arguments = container(name)["args"]
    environment = OBJECTS["ConfigMap", "lrurec"]["data"] | {
        entry["name"]: entry["value"] for entry in container(name).get("env", ())
    }
    module = importlib.import_module(COMMANDS[command].module)
    return parse_command(module.Command, arguments, prog=command, environ=environment).settings


def mounts(name: str) -> dict[str, str]:
    """Names of a pod's volumes by the path that they are mounted at."""
    return {each["mountPath"]: each["name"] for each in container(name)["volumeMounts"]}


def test_these_are_the_pods() -> None:
    """What the other tests go over."""
    assert POD_OF.keys() == set(PODS)


@pytest.mark.parametrize("name", PODS)
def test_settings_of_a_pod_are_real_and_its_folders_are_volumes(name: str) -> None:
    """The root is read-only, so each folder that is written is mounted."""
    settings = parsed_settings(name)

    own = {"lrurec-worker": settings.worker, "lrurec-trainer": settings.trainer}.get(name)
    if own is not None:
        assert mounts(name)[str(settings.trainer.releases_dir)] == "releases"
        assert mounts(name)[str(own.cache_dir.parent)] == "cache"
        # In a pod, probes and Prometheus come from outside.
        assert settings.metrics.host == "0.0.0.0"
    if name == "lrurec-worker":
        assert mounts(name)[str(settings.worker.data_dir)] == "states"
    assert container(name)["securityContext"]["readOnlyRootFilesystem"]
    assert "/tmp" in mounts(name)


@pytest.mark.parametrize("name", PODS)
def test_volumes_are_declared_and_used(name: str) -> None:
    """No volume is misspelt, none is left over."""
    claims = OBJECTS.get(("StatefulSet", name), {}).get("spec", {}).get("volumeClaimTemplates", ())
    declared = {each["name"] for each in POD_OF[name]["spec"]["volumes"]}
    declared |= {each["metadata"]["name"] for each in claims}

    assert declared == set(mounts(name).values())
    for volume in POD_OF[name]["spec"]["volumes"]:
        if "persistentVolumeClaim" in volume:
            claim = volume["persistentVolumeClaim"]["claimName"]
            assert ("PersistentVolumeClaim", claim) in OBJECTS


@pytest.mark.parametrize("name", PODS)
def test_image_and_user_are_those_of_the_dockerfile(name: str) -> None:
    """One image for compose and Kubernetes; files belong to the user that it has."""
    compose = read_yaml("compose.yaml")
    user = re.search(r"useradd --uid (\d+)", (DEPLOY / "Dockerfile").read_text())
    security = POD_OF[name]["spec"]["securityContext"]

    assert container(name)["image"] == compose["services"]["worker"]["image"]
    assert user is not None
    assert {security["runAsUser"], security["runAsGroup"], security["fsGroup"]} == {int(user[1])}
    # Variables that Kubernetes makes of a service's name look like settings.
    assert POD_OF[name]["spec"]["enableServiceLinks"] is False


@pytest.mark.parametrize(
    ("name", "port"),
    [
        ("lrurec-worker", MetricsSettings().worker_port),
        ("lrurec-trainer", MetricsSettings().trainer_port),
    ],
)
def test_probes_and_services_ask_at_the_port_of_the_metrics(name: str, port: int) -> None:
    """A wrong port would restart a healthy pod for ever, or leave it out of Prometheus."""
    own = container(name)
    service = OBJECTS["Service", name]["spec"]
    probes = [own[key] for key in ("startupProbe", "livenessProbe")]

    assert own["ports"] == [{"name": "metrics", "containerPort": port}]
    assert service["ports"] == [{"name": "metrics", "port": port}]
    assert service["selector"].items() <= POD_OF[name]["metadata"]["labels"].items()
    assert all(probe["httpGet"] == {"path": "/healthz", "port": "metrics"} for probe in probes)
    assert service["publishNotReadyAddresses"] is True


def test_a_worker_may_finish_its_work_and_is_told_apart_from_a_restoring_one() -> None:
    """The end leaves time to drain; a restore is neither a failed start nor a failed life."""
    spec = POD_OF["lrurec-worker"]["spec"]
    ready = container("lrurec-worker")["readinessProbe"]

    assert spec["terminationGracePeriodSeconds"] > WorkerSettings().stop_deadline_s
    assert ready["httpGet"] == {"path": "/readyz", "port": "metrics"}
    start = container("lrurec-worker")["startupProbe"]
    settings = parsed_settings("lrurec-worker")
    longest_s = settings.kafka.connect_timeout_s + settings.worker.restore_deadline_s
    assert start["periodSeconds"] * start["failureThreshold"] > longest_s
    for kind in ("StatefulSet", "PodDisruptionBudget"):
        selector = OBJECTS[kind, "lrurec-worker"]["spec"]["selector"]["matchLabels"]
        assert selector.items() <= POD_OF["lrurec-worker"]["metadata"]["labels"].items()
    service = OBJECTS["StatefulSet", "lrurec-worker"]["spec"]["serviceName"]
    assert ("Service", service) in OBJECTS


def test_one_trainer_at_a_time() -> None:
    """A second one waits for the folder's lock: an update ends the first before it."""
    spec = OBJECTS["Deployment", "lrurec-trainer"]["spec"]

    assert (spec["replicas"], spec["strategy"]["type"]) == (1, "Recreate")


def test_what_the_comments_say_of_secrets_is_a_setting() -> None:
    """Variables in comments are settings, and paths in them are below the secret's mount."""
    text = (DEPLOY / "kubernetes" / "lrurec.yaml").read_text(encoding="utf-8")
    comments = " ".join(line for line in text.splitlines() if line.lstrip().startswith("#"))
    environment = dict(re.findall(r"(LRUREC_KAFKA__\w+): (\S+?)[,.]?(?=\s|$)", comments))

    assert {"LRUREC_KAFKA__PASSWORD_FILE", "LRUREC_KAFKA__SSL_CA_FILE"} <= environment.keys()
    module = importlib.import_module(COMMANDS["worker"].module)
    environment["LRUREC_KAFKA__USERNAME"] = "somebody"
    parsed = parse_command(module.Command, [], prog="worker", environ=environment)
    for path in (parsed.settings.kafka.password_file, parsed.settings.kafka.ssl_ca_file):
        assert mounts("lrurec-worker")[str(path.parent)] == "kafka-secrets"
