"""What every test can ask for: Hypothesis profiles, one real Kafka for the run, own settings.

Kafka's client is imported by the fixtures that need it: tests of the model start without it.
"""

import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from pipeline.settings import BrokerSettings, Settings

# A run in the background of a shell is told to ignore Ctrl-C, one under nohup to ignore a hang-up,
# and so would be all that tests start.
for _number, _handler in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGHUP, signal.SIG_DFL),
):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, _handler)

hypothesis.settings.register_profile("default", deadline=None, max_examples=50)
hypothesis.settings.register_profile("ci", deadline=None, max_examples=50, derandomize=True)
hypothesis.settings.register_profile("nightly", deadline=None, max_examples=2000)
# The profile may be named on the command line (--hypothesis-profile); this is what holds otherwise.
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "default")  # noqa: TID251

ID_BYTES = 32


def pytest_make_parametrize_id(val: object) -> str | None:
    """Long bytes are named by their length: two processes that run the suite must agree on names.

    A gzip header, say, holds the second in which it was made.
    """
    return f"{len(val)} bytes" if isinstance(val, bytes) and len(val) > ID_BYTES else None


@pytest.fixture(scope="session")
def kafka() -> Iterator[str]:
    """Address of a real Kafka: TEST_KAFKA_BROKER, else one started for this run alone."""
    given = os.environ.get("TEST_KAFKA_BROKER")  # noqa: TID251
    if given:
        yield given
        return
    from pipeline.cluster.broker import running_broker

    with tempfile.TemporaryDirectory(prefix="lrurec-kafka-") as folder:
        settings = BrokerSettings(data_dir=Path(folder), port=0)
        with running_broker(settings) as info:
            yield info.address


@pytest.fixture
def settings(kafka: str, tmp_path: Path) -> Iterator[Settings]:
    """Settings with topics, group, application id and folders of this test alone."""
    from tests.kafka import remove_traces, unique_settings

    own = unique_settings(kafka, tmp_path)
    yield own
    remove_traces(own)
