"""The compose file and the image: valid by the published schema, and true to the settings."""

import importlib
import json
import re
import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from pipeline.__main__ import COMMANDS
from pipeline.settings import WorkerSettings, parse_command
from tests.deploy_files import DEPLOY, read_yaml

ROOT = Path(__file__).parents[2]
OWN_SERVICES = ("topics", "worker", "trainer")


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    """The compose file."""
    return read_yaml("compose.yaml")


def test_compose_follows_the_published_schema(compose: dict[str, Any]) -> None:
    """What docker compose would refuse is refused here."""
    vendored = files("check_jsonschema") / "builtin_schemas" / "vendor" / "compose-spec.json"
    # The draft that the schema names, by a URL that jsonschema does not know as its own.
    validator = jsonschema.Draft7Validator(json.loads(vendored.read_text(encoding="utf-8")))

    misspelt = compose | {"services": {"worker": compose["services"]["worker"] | {"prots": []}}}

    validator.validate(compose)
    with pytest.raises(jsonschema.ValidationError, match="prots"):
        validator.validate(misspelt)


def test_ports_are_published_on_loopback_alone(compose: dict[str, Any]) -> None:
    """A Kafka without a password must not be open to the network."""
    ports = [port for service in compose["services"].values() for port in service.get("ports", ())]

    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_images_are_pinned(compose: dict[str, Any]) -> None:
    """Every image names a version, Kafka's is the one that the tests run on."""
    from pipeline.cluster.jars import locked_jars

    images = {name: service["image"] for name, service in compose["services"].items()}
    images |= dict(re.findall(r"FROM ((\S+:\S+))", (DEPLOY / "Dockerfile").read_text()))

    assert all(re.search(r":v?\d+\.\d+", image) for image in images.values()), images
    assert images["kafka"] == f"apache/kafka:{locked_jars()[0]}"


@pytest.mark.parametrize("name", OWN_SERVICES)
def test_commands_and_settings_of_a_service_are_real(compose: dict[str, Any], name: str) -> None:
    """Arguments and variables are parsed by the command itself; folders of data are volumes."""
    service = compose["services"][name]
    command, *arguments = service["command"]
    module = importlib.import_module(COMMANDS[command].module)

    parsed = parse_command(module.Command, arguments, prog=command, environ=service["environment"])

    settings = parsed.settings
    assert settings.kafka.bootstrap_servers == "kafka:9092"
    mounted = [volume.split(":")[1] for volume in service.get("volumes", ())]
    if name == "worker":
        assert str(settings.worker.data_dir) in mounted
    if name != "topics":
        assert str(settings.trainer.releases_dir) in mounted


def test_services_start_in_order_and_may_finish_their_work(compose: dict[str, Any]) -> None:
    """Topics wait for Kafka's health, the rest for the topics; the stop leaves time to drain."""
    services = compose["services"]

    assert services["topics"]["depends_on"] == {"kafka": {"condition": "service_healthy"}}
    for name in ("worker", "trainer"):
        after = services[name]["depends_on"]
        assert after == {"topics": {"condition": "service_completed_successfully"}}
        assert int(services[name]["stop_grace_period"].rstrip("s")) > (
            WorkerSettings().stop_deadline_s
        )
    for name in services.keys() - {"topics"}:
        assert services[name]["healthcheck"]["test"][0] == "CMD"


def test_named_volumes_are_declared_and_used(compose: dict[str, Any]) -> None:
    """No volume is misspelt: a container's data would be gone with it."""
    used = {
        volume.split(":")[0]
        for service in compose["services"].values()
        for volume in service.get("volumes", ())
        if not volume.startswith(".")
    }

    assert used == compose["volumes"].keys()


def test_the_image_gets_what_it_copies() -> None:
    """The ignore file lets through every path that the Dockerfile copies, and nothing else."""
    dockerfile = (DEPLOY / "Dockerfile").read_text()
    copied = {
        path
        for line in re.findall(r"^COPY (?!--from)(.*)$", dockerfile, re.MULTILINE)
        for path in line.split()[:-1]
    }
    ignore = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()

    assert {line[1:] for line in ignore if line.startswith("!")} == copied
    assert ignore.index("*") < min(ignore.index(f"!{path}") for path in copied)


def test_what_is_installed_has_every_file_of_the_packages() -> None:
    """The image runs from an installed copy: what is missing there is missed at a start."""
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {name: ROOT / name.replace(".", "/") for name in setuptools["packages"]}
    patterns = setuptools["package-data"]

    for top in ("models", "state", "pipeline"):
        for path in (ROOT / top).rglob("*"):
            if path.is_dir() or path.suffix == ".pyc":
                continue
            package = ".".join(path.parent.relative_to(ROOT).parts)
            assert folders.get(package) == path.parent, path
            # setuptools takes py.typed by itself.
            assert (
                path.suffix == ".py"
                or path.name == "py.typed"
                or any(path.match(pattern) for pattern in patterns.get(package, ()))
            ), path
