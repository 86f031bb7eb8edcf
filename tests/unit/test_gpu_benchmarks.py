"""The benchmarks for a GPU, where there is none: they measure, and mix no devices."""

from types import SimpleNamespace

import pytest
import torch

from models.config import ModelConfig
from models.recommender import Recommender
from tests.benchmarks import bench_step, gpu_scan
from tests.benchmarks.gpu_scan import BACKWARD, DOUBLING, FORWARD, measure_scan
from tests.benchmarks.gpu_step import (
    FLOOR,
    GRAPH,
    LAUNCHES,
    LISTS,
    PLAIN,
    PRODUCT,
    RANKED,
    USERS,
    measure_lists,
    measure_steps,
)
from tests.fake_gpu import FakeGpu
from tests.recorded_graph import capture_by_recording

CONFIG = ModelConfig(n_items=9, hidden_size=4, state_size=6, n_blocks=2)


def test_both_ways_are_measured_where_a_graph_can_be_had() -> None:
    """Every batch size has a figure for each way, and a floor that grows with the users."""
    recommender = Recommender(CONFIG, torch.Generator().manual_seed(0)).eval()

    costs = measure_steps(recommender, torch.device("cpu"), capture_by_recording, rounds=1)

    assert tuple(costs) == USERS
    assert all(by.keys() == {GRAPH, LAUNCHES, FLOOR} for by in costs.values())
    assert min(min(by.values()) for by in costs.values()) > 0
    floors = [by[FLOOR] for by in costs.values()]
    assert floors == sorted(floors)


def test_lists_are_measured_beside_their_product() -> None:
    """Every batch size has a figure for each way."""
    recommender = Recommender(CONFIG, torch.Generator().manual_seed(0)).eval()

    costs = measure_lists(recommender, torch.device("cpu"), capture_by_recording, rounds=1)

    assert tuple(costs) == USERS
    assert all(by.keys() == {RANKED, LISTS, PLAIN, PRODUCT} for by in costs.values())
    assert min(min(by.values()) for by in costs.values()) > 0


def test_the_scan_is_measured_each_way_beside_its_bytes() -> None:
    """Every form has a figure for each way; the floor counts 16 bytes, and 24."""
    costs = measure_scan(torch.device("cpu"), (3, 5, 4), lambda body, _device: body, rounds=1)

    assert costs.keys() == {"loop", DOUBLING, gpu_scan.FLOOR}
    assert all(by.keys() == {FORWARD, BACKWARD} for by in costs.values())
    assert min(min(by.values()) for by in costs.values()) > 0
    floor = costs[gpu_scan.FLOOR]
    assert floor[BACKWARD] == pytest.approx(1.5 * floor[FORWARD])


def test_a_gpu_without_graphs_is_measured_without_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The table says that there is none, and the other figures are there."""
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _device: None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: "a GPU without memory")
    properties = SimpleNamespace(L2_cache_size=4096)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _device: properties)

    with FakeGpu(), torch.inference_mode():
        bench_step.on_gpu(torch.device("cuda"), 50, 1, None)

    rows = [line.split() for line in capsys.readouterr().out.splitlines()[-len(USERS) :]]
    assert [row[:2] for row in rows] == [[str(users), "none"] for users in USERS]
    assert all(len(row) == 5 for row in rows)
