"""The list of Faust's faults against the tests, and the tested versions against the packages."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from pipeline.__main__ import main
from pipeline.engine import compat
from pipeline.engine.compat import FAULTS, TESTED, VersionsUntested

ROOT = Path(__file__).parents[2]


def named_in(path: str) -> set[str]:
    """The tests of a file, as they are named in the list."""
    text = (ROOT / path).read_text(encoding="utf-8")
    return {f"{path}::{name}" for name in re.findall(r"^(?:async )?def (test_\w+)", text, re.M)}


@pytest.mark.parametrize("name", FAULTS)
def test_every_fault_is_shown_and_shown_to_be_absent(name: str) -> None:
    """By tests that exist, and in versions that are named."""
    fault = FAULTS[name]

    assert fault.what
    assert fault.answer
    assert fault.shown_by
    assert fault.absent_by
    for test in (*fault.shown_by, *fault.absent_by):
        assert test in named_in(test.partition("::")[0])
    assert any(
        package.rpartition(" ")[2] == TESTED[package.split()[0]][1] for package in fault.known_in
    )
    for place in fault.upstream:
        assert re.fullmatch(r"[\w-]+/[\w-]+#\d+", place)


def test_every_test_of_a_fault_belongs_to_one() -> None:
    """Nothing is shown that the list does not name."""
    named = {test for fault in FAULTS.values() for test in (*fault.shown_by, *fault.absent_by)}

    for path in sorted((ROOT / "tests" / "integration").glob("test_faust_faults*.py")):
        assert named_in(str(path.relative_to(ROOT))) <= named


def test_what_can_be_installed_is_what_was_tested() -> None:
    """The project's own bounds are the tested range, and the pins lie in it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    bounds = {r.name: r.specifier for r in map(Requirement, project["dependencies"])}
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines)

    for name, (oldest, newest) in TESTED.items():
        found = {(clause.operator, clause.version) for clause in bounds[name]}
        assert found == {(">=", oldest), ("<=", newest)}
        assert Version(oldest) <= Version(pins[name]) <= Version(newest)


def test_the_installed_versions_are_tested() -> None:
    """Or else none of the other tests says anything."""
    compat.check_versions(allow_untested=False)


@pytest.mark.parametrize("installed", ["0.12.0", "0.14.1", "0.15.0rc1", "1.0"])
def test_other_versions_end_a_start_in_one_line(
    installed: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It says what is installed, what is tested, and how to go on anyway."""
    versions = {name: newest for name, (_, newest) in TESTED.items()} | {"aiokafka": installed}
    monkeypatch.setattr(compat, "version", versions.__getitem__)

    with pytest.raises(VersionsUntested) as refused:
        compat.check_versions(allow_untested=False)
    code = main(["worker", "--kafka.bootstrap-servers", "127.0.0.1:1"])

    assert code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert str(refused.value) in line
    assert f"aiokafka {installed} is installed, tested: 0.13.0 to 0.14.0" in line
    assert "--worker.allow-untested-versions True" in line


def test_other_versions_can_be_allowed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The start goes on, here to the Kafka that is not there, with a warning in the log."""
    versions = {name: newest for name, (_, newest) in TESTED.items()} | {"faust-streaming": "0.16"}
    monkeypatch.setattr(compat, "version", versions.__getitem__)
    flags = ["--kafka.bootstrap-servers", "127.0.0.1:1", "--kafka.connect-timeout-s", "0.2"]

    code = main(["worker", *flags, "--worker.allow-untested-versions", "True"])

    assert code == 1
    said = capsys.readouterr().err
    assert "faust-streaming 0.16 is installed, tested: 0.15.3" in said
    assert "127.0.0.1:1" in said.splitlines()[-1]
