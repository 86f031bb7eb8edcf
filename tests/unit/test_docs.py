"""The documents against the code: what they name exists, and what exists is named."""

import dataclasses
import importlib
import json
import re
import shlex
import typing
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import msgspec
import pytest
import yaml
from prometheus_client import CollectorRegistry

from pipeline.__main__ import COMMANDS
from pipeline.commands import bench
from pipeline.environment import environment_flags
from pipeline.errors import DeadReason, PipelineError
from pipeline.events import EventDecoder
from pipeline.settings import FieldSettings, Settings, parse_command
from state.row import RowLayout
from state.store import StoreStats
from tests.settings_tables import with_tables

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("deploy/*.md")])
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
DAY_MS = 86_400_000
RECORD_MS = 1_735_730_000_000  # when the examples' records were written


def read(name: str) -> str:
    """A page by its path."""
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(page: str, language: str) -> list[str]:
    """The code blocks of a page in one language."""
    return [code for kind, code in BLOCK.findall(page) if kind == language]


def rows(page: str) -> list[list[str]]:
    """The cells of every table row of a page, headings left out."""
    lines = [line for line in page.splitlines() if line.startswith("| ")]
    return [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        for line, below in zip(lines, [*lines[1:], ""], strict=True)
        if not below.startswith("| ---") and not line.startswith("| ---")
    ]


def names(cell: str) -> list[str]:
    """What stands between backticks in a cell."""
    return re.findall(r"`([^`]+)`", cell)


def section(page: str, heading: str) -> str:
    """The text under a heading, up to the next one of its level."""
    level = heading.split(" ")[0]
    return page.split(f"\n{heading}\n")[1].split(f"\n{level} ")[0]


# --- settings, metrics, topics, codes


def test_every_setting_stands_with_its_default() -> None:
    """The tables are what the code makes of them; else: python -m tests.settings_tables."""
    page = read("docs/settings.md")

    assert page == with_tables(page)
    for field in dataclasses.fields(Settings):
        assert f"<!-- settings: {field.name} -->" in page


@pytest.fixture(scope="module")
def exported() -> dict[str, tuple[str, dict[str, set[str]]]]:
    """Every metric of worker, supervisor and trainer: kind, and values by label."""
    metrics = importlib.import_module("pipeline.metrics")
    found: dict[str, tuple[str, dict[str, set[str]]]] = {}
    for kind in (metrics.Metrics, metrics.SupervisorMetrics, metrics.TrainerMetrics):
        registry = CollectorRegistry()
        made = kind(registry, 1) if kind is metrics.SupervisorMetrics else kind(registry)
        if kind is metrics.Metrics:
            made.watch_store(StoreStats())
            made.set_lag({0: 0})
            made.set_restoring({0: 0}, {0: 0})
        for family in registry.collect():
            ending = {"counter": "_total", "info": "_info"}.get(family.type, "")
            labels: dict[str, set[str]] = {}
            for sample in family.samples:
                for label, value in sample.labels.items():
                    labels.setdefault(label, set()).add(value)
            labels.pop("le", None)
            shown = "gauge" if family.type == "info" else family.type
            found[family.name + ending] = (shown, labels)
    return found


def test_every_metric_stands_with_its_kind_and_labels(
    exported: dict[str, tuple[str, dict[str, set[str]]]],
) -> None:
    """A metric or a label's value that is new, gone or renamed fails this."""
    told = {}
    for name, kind, labels, *_ in (row for row in rows(read("docs/metrics.md")) if len(row) == 5):
        told[names(name)[0]] = (kind, set(names(labels)))

    assert told.keys() == exported.keys()
    for name, (kind, labels) in exported.items():
        closed = labels.keys() - {"partition", "process"}
        if name == "lrurec_build_info":  # values of this machine
            closed = set()
        values = {value for label in closed for value in labels[label]}
        assert told[name] == (kind, labels.keys() | values), name


def test_queries_and_texts_name_metrics_that_exist(
    exported: dict[str, tuple[str, dict[str, set[str]]]],
) -> None:
    """Every word that looks like a metric is one."""
    legal = set(exported)
    for name, (kind, _) in exported.items():
        if kind == "histogram":
            legal |= {f"{name}_{ending}" for ending in ("bucket", "sum", "count")}

    for page in PAGES:
        for word in re.findall(r"\blrurec_[a-z_]+\b", page.read_text()):
            assert word in legal or word == "lrurec_stream", (page.name, word)


def test_every_alert_stands_with_its_severity() -> None:
    """The table of alerts is that of the rules."""
    groups = yaml.safe_load(read("deploy/prometheus/alerts.yml"))["groups"]
    rules = {rule["alert"]: rule["labels"]["severity"] for g in groups for rule in g["rules"]}

    table = rows(section(read("docs/metrics.md"), "## Alerts"))

    assert {names(alert)[0]: severity for alert, severity, _ in table} == rules


def test_every_topic_stands_with_how_it_is_kept() -> None:
    """Names, cleanup and retention are those that `lrurec topics create` uses."""
    topics = importlib.import_module("pipeline.cluster.topics").all_topics(Settings())
    table = {names(row[0])[0]: row for row in rows(read("docs/topics.md")) if len(row) == 6}

    assert table.keys() == {topic.name for topic in topics}
    for topic in topics:
        _, _, _, partitions, cleanup, retention = table[topic.name]
        assert names(cleanup) == [topic.config["cleanup.policy"]]
        assert (partitions == "1") == (not topic.keyed_by_user)
        kept = topic.config.get("retention.ms")
        days = kept and ("for ever" if kept == "-1" else f"{int(kept) // DAY_MS} days")
        assert retention == (days or "")


def test_every_reason_of_a_dead_letter_stands_with_its_meaning() -> None:
    """The closed set of reasons, none more."""
    letters = section(read("docs/topics.md"), "## Dead letters")
    told = [name for row in rows(letters) for name in names(row[0])]

    assert {name for name in told if not name.startswith("lrurec-")} == set(DeadReason)


def test_every_exit_code_stands_with_its_name() -> None:
    """The codes by which a worker ends itself, and those of the frame around every command."""
    codes = importlib.import_module("pipeline.engine.stop").ExitCode
    frame = importlib.import_module("pipeline.__main__").__doc__
    text = section(read("docs/operating.md"), "## Exit codes")

    told = {row[0]: names(row[1])[0] for row in rows(text) if len(row) == 4}

    assert told == {str(int(code)): code.name for code in codes}
    general = {int(code) for row in rows(text) if len(row) == 3 for code in row[0].split(", ")}
    assert general == {int(code) for code in re.findall(r"(?:^|[;:] )(\d+) ", frame or "")}


def test_the_size_of_a_row_is_the_layout_s() -> None:
    """The formula and the number at the defaults."""
    settings = Settings()
    config = settings.model.config(n_items=1)
    layout = RowLayout(
        ring=settings.ring,
        recommended=settings.recommend.top_k,
        blocks=config.n_blocks,
        channels=config.state_size,
    )
    text = section(read("docs/operating.md"), "## Sizing")

    assert "`168 + 8 x (top_k + ring) + 16 x n_blocks x hidden_size`" in text
    by_formula = 168 + 8 * (layout.recommended + layout.ring)
    by_formula += 16 * config.n_blocks * config.hidden_size
    assert layout.row_bytes == by_formula
    assert f"{layout.row_bytes:,} at the defaults" in text


# --- examples


def wire_types() -> list[type]:
    """What the examples of docs/topics.md are, in their order."""
    return [
        importlib.import_module("pipeline.worker.wire").Recommendation,
        importlib.import_module("pipeline.worker.catalogue").CatalogueItem,
        importlib.import_module("pipeline.user_commands").UserCommand,
        importlib.import_module("pipeline.worker.releases").Announcement,
    ]


def test_the_messages_shown_are_messages() -> None:
    """Each example is read by the code that reads such messages, and has all their fields."""
    event, *others = blocks(read("docs/topics.md"), "json")
    types = wire_types()

    decoded = EventDecoder(FieldSettings()).decode(event.encode(), RECORD_MS)

    assert decoded is not None
    assert (decoded.user_key, decoded.item_id, decoded.event_id) == (b"u-17", "sku-42", "9f1c")
    assert len(others) == len(types)
    for text, kind in zip(others, types, strict=True):
        made = msgspec.json.decode(text, type=kind)
        assert json.loads(msgspec.json.encode(made)) == json.loads(text)


def test_the_mappings_shown_read_the_events_beside_them() -> None:
    """Each event of docs/existing-topic.md is one, by the settings in the block below it."""
    mapping = section(read("docs/existing-topic.md"), "## 1. Map the fields")
    found = BLOCK.findall(mapping)

    decoded = []
    for (_, event), (_, settings) in zip(found[::2], found[1::2], strict=True):
        environ = dict(re.findall(r"export (\w+)=(\S+)", settings))
        flags = [flag for line in command_lines(settings) for flag in line[2:]]
        worker = importlib.import_module("pipeline.commands.worker").Command
        command = parse_command(worker, flags, prog="", environ=environ)
        decoded.append(EventDecoder(command.settings.fields).decode(event.encode(), RECORD_MS))

    assert [(one.user_key, one.item_id, one.timestamp_ms) for one in decoded if one] == [
        (b"c-9", "4711", 1735729200000),
        (b"17", "A/100", RECORD_MS),
        (b"u1", "i1", 1735689600000),
    ]


def command_lines(code: str) -> Iterator[list[str]]:
    """The words of every line that calls lrurec."""
    for line in code.replace("\\\n", " ").splitlines():
        if line.startswith(("lrurec ", ".venv/bin/lrurec ")):
            yield shlex.split(line, comments=True)


def all_command_lines() -> list[tuple[str, list[str]]]:
    """Every line of a shell block that calls lrurec, with its page."""
    found = []
    for page in PAGES:
        for code in blocks(page.read_text(), "sh"):
            found += [(page.name, line) for line in command_lines(code)]
    return found


@pytest.mark.parametrize(
    "words",
    [pytest.param(words, id=f"{page}: {shlex.join(words)}") for page, words in all_command_lines()],
)
def test_every_command_shown_can_be_called(words: list[str]) -> None:
    """Its name and all its options are those of a command."""
    _, name, *arguments = words

    module: ModuleType = importlib.import_module(COMMANDS[name].module)

    assert parse_command(module.Command, arguments, prog=name, environ={})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_names_exists(page: Path) -> None:
    """Commands, targets of make, variables, files and tests."""
    text = page.read_text()
    targets = set(re.findall(r"^([a-z]+):", read("Makefile"), re.MULTILINE))

    for name in re.findall(r"`(?:\.venv/bin/)?lrurec ([a-z][a-z-]*)", text):
        assert name in COMMANDS
    for name in re.findall(r"^make ([a-z]+)|`make ([a-z]+)", text, re.MULTILINE):
        assert "".join(name) in targets
    variables = set(re.findall(r"\bLRUREC_\w+(?==)", text))
    environment_flags(dict.fromkeys(variables, ""), Settings())
    for path in re.findall(r"`((?:models|state|pipeline|tests|deploy|docs)/[\w./-]*)", text):
        assert (ROOT / path).exists(), path
    for path, test in re.findall(r"(tests/[\w/]+\.py)::(\w+)", text):
        assert f"def {test}(" in read(path), test


def anchor(heading: str) -> str:
    """The anchor of a heading, as Git hosts make it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    """Links to other pages, and to headings on them."""
    for target in LINK.findall(BLOCK.sub("", page.read_text())):
        if target.startswith("https://"):
            continue
        path, _, wanted = target.partition("#")
        other = (page.parent / path).resolve() if path else page
        assert other.exists(), target
        if wanted:
            headings = re.findall(r"^#+ (.*)$", BLOCK.sub("", other.read_text()), re.MULTILINE)
            assert wanted in map(anchor, headings), target


# --- benchmarks and checks


def test_every_benchmark_can_be_called_by_its_name() -> None:
    """`lrurec bench` knows the modules that there are."""
    modules = {path.stem for path in (ROOT / "tests" / "benchmarks").glob("bench_*.py")}

    assert {f"bench_{name}" for name in typing.get_args(bench.Name)} == modules


def test_benchmarks_without_a_checkout_are_refused_in_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """An installed package has no benchmarks; the message says where they are."""
    monkeypatch.setattr(bench, "__file__", str(tmp_path / "pipeline" / "commands" / "bench.py"))

    with pytest.raises(PipelineError, match="checkout"):
        bench.run(bench.Command(name="step"))


def test_commit_hooks_are_the_commands_of_make_check() -> None:
    """What a commit is held to is what `make check` is."""
    (repository,) = yaml.safe_load(read(".pre-commit-config.yaml"))["repos"]
    recipe = read("Makefile").split("\ncheck:")[1].split("\n\n")[0]

    hooks = [hook["entry"] for hook in repository["hooks"]]

    assert hooks == [f".venv/bin/{command}" for command in re.findall(r"@\$\(BIN\)/(.*)", recipe)]
