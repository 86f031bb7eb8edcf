"""What operators watch: targets, alerts and dashboard, held against the metrics that exist."""

import itertools
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from prometheus_client import REGISTRY, CollectorRegistry

from pipeline.metrics import Metrics, SupervisorMetrics, TrainerMetrics
from pipeline.settings import MetricsSettings
from state.store import StoreStats
from tests.deploy_files import DEPLOY, read_yaml

DASHBOARDS = DEPLOY / "grafana" / "dashboards"
PROMTOOL = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="Prometheus is not installed")


def promtool(*arguments: str) -> None:
    """Have Prometheus' own tool check or test something."""
    tested = subprocess.run(
        [str(PROMTOOL), *arguments], capture_output=True, text=True, check=False
    )
    assert tested.returncode == 0, tested.stdout + tested.stderr


def exported_series() -> set[tuple[str, str]]:
    """Name every series of workers, trainers and supervisors, alone and with each of its labels."""
    worker, trainer, supervisor = (CollectorRegistry() for _ in range(3))
    metrics = Metrics(worker)
    metrics.watch_store(StoreStats())
    metrics.set_lag({0: 0})
    metrics.set_restoring({0: 0}, {0: 0})
    TrainerMetrics(trainer)
    SupervisorMetrics(supervisor, 2)
    exported = set()
    for family in itertools.chain(*(each.collect() for each in (worker, trainer, supervisor))):
        for sample in family.samples:
            exported.add((sample.name, ""))
            exported |= {(sample.name, f'{key}="{value}"') for key, value in sample.labels.items()}
    return exported


EXPORTED = exported_series()


def asked_series(expression: str) -> set[tuple[str, str]]:
    """Name every series of ours that an expression asks for, with its label where it names one."""
    asked = set()
    for name, label, values in re.findall(r'(lrurec_\w+)(?:\{(\w+)=~?"([\w|]+)"\})?', expression):
        asked |= {(name, f'{label}="{value}"' if label else "") for value in values.split("|")}
    return asked


def test_prometheus_scrapes_the_services_that_exist() -> None:
    """Names and ports are those of the compose file and of the settings."""
    compose = read_yaml("compose.yaml")
    config = read_yaml("prometheus/prometheus.yml")

    scraped = [source for job in config["scrape_configs"] for source in job["dns_sd_configs"]]

    ports = {name: source["port"] for source in scraped for name in source["names"]}
    own = MetricsSettings()
    assert ports == {"worker": own.worker_port, "trainer": own.trainer_port}
    for name, port in ports.items():
        service = compose["services"][name]
        assert service["ports"] == [f"127.0.0.1:{port}:{port}"]
        assert f"http://127.0.0.1:{port}/" in service["healthcheck"]["test"][-1]
    assert all((DEPLOY / "prometheus" / name).is_file() for name in config["rule_files"])
    assert "./prometheus:/etc/prometheus:ro" in compose["services"]["prometheus"]["volumes"]


def alert_rules() -> list[dict[str, Any]]:
    """All alert rules."""
    return [
        rule for group in read_yaml("prometheus/alerts.yml")["groups"] for rule in group["rules"]
    ]


@pytest.mark.parametrize("rule", alert_rules(), ids=lambda rule: rule["alert"])
def test_an_alert_asks_for_metrics_that_exist(rule: dict[str, Any]) -> None:
    """Each series in its expression, with its label, is one that a worker or trainer exports."""
    asked = asked_series(rule["expr"])

    of_prometheus = r'(up|process_start_time_seconds)\{job="lrurec-(worker|trainer)"\}'
    assert asked or re.search(of_prometheus, rule["expr"])
    assert asked <= EXPORTED
    assert rule["labels"]["severity"] in {"page", "ticket"}
    assert {"summary", "action"} <= rule["annotations"].keys()


@pytest.mark.skipif(sys.platform != "linux", reason="the client reads it from /proc")
def test_a_process_tells_when_it_started() -> None:
    """By which an alert sees that one ends again and again."""
    started_s = REGISTRY.get_sample_value("process_start_time_seconds")

    assert started_s == pytest.approx(psutil.Process().create_time(), abs=5)


@needs_promtool
def test_alerts_fire_when_they_should() -> None:
    """Prometheus itself evaluates the rules on the series of outages that were missed once."""
    promtool("test", "rules", str(DEPLOY / "prometheus" / "alerts_test.yml"))


def dashboard() -> dict[str, Any]:
    """The dashboard."""
    content = json.loads((DASHBOARDS / "lrurec.json").read_text(encoding="utf-8"))
    assert isinstance(content, dict)
    return content


def dashboard_queries() -> list[tuple[str, str]]:
    """Every query of the dashboard, by the panel that it is in."""
    content = dashboard()
    queries = [
        (panel["title"], target["expr"])
        for panel in content["panels"]
        for target in panel.get("targets", ())
    ]
    return queries + [(a["name"], a["expr"]) for a in content["annotations"]["list"]]


@pytest.mark.parametrize(("title", "expression"), dashboard_queries())
def test_a_panel_asks_for_metrics_that_exist(title: str, expression: str) -> None:
    """A panel of a metric that was renamed would be empty, which looks like peace."""
    asked = asked_series(expression)

    assert asked or re.search(r'process_\w+\{job=~"lrurec-\.\*"\}|ALERTS\{', expression), title
    assert asked <= EXPORTED


def test_panels_have_numbers_of_their_own_and_do_not_overlap() -> None:
    """What Grafana would move or drop without a word."""
    panels = dashboard()["panels"]
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in panels)
        for x, y in itertools.product(
            range(place["x"], place["x"] + place["w"]), range(place["y"], place["y"] + place["h"])
        )
    ]

    assert len({panel["id"] for panel in panels}) == len(panels)
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24  # the columns of Grafana's grid
    assert all(panel["type"] == "row" or panel["description"] for panel in panels)


@needs_promtool
def test_prometheus_can_parse_every_query_of_the_dashboard(tmp_path: Path) -> None:
    """As rules, which its tool checks; Grafana's own variables are intervals."""
    rules = [
        {"record": f"panel:{number}", "expr": re.sub(r"\$__(rate_)?interval", "1m", expression)}
        for number, (_, expression) in enumerate(dashboard_queries())
    ]
    path = tmp_path / "rules.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))

    promtool("check", "rules", str(path))


def test_grafana_finds_prometheus_and_the_dashboard() -> None:
    """The compose file mounts what the provisioning names, and nobody can log in."""
    service = read_yaml("compose.yaml")["services"]["grafana"]
    source = read_yaml("grafana/datasources/prometheus.yml")["datasources"][0]
    provider = read_yaml("grafana/dashboards/provider.yml")["providers"][0]
    config = read_yaml("prometheus/prometheus.yml")
    provisioning = "/etc/grafana/provisioning"

    assert service["volumes"] == [f"./grafana:{provisioning}:ro"]
    assert provider["options"]["path"] == f"{provisioning}/dashboards"
    environment = service["environment"]
    home = environment["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert (DEPLOY / "grafana" / Path(home).relative_to(provisioning)).is_file()
    assert source["url"] == "http://prometheus:9090"
    assert source["jsonData"]["timeInterval"] == config["global"]["scrape_interval"]
    assert environment["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "Viewer"
    assert environment["GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION"] == "true"
