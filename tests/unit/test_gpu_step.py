"""The benchmark of the step on a GPU, where there is none: it measures, and mixes no devices."""

import pytest
import torch

from models.config import ModelConfig
from models.recommender import Recommender
from tests.benchmarks import bench_step
from tests.benchmarks.gpu_step import FLOOR, GRAPH, LAUNCHES, USERS, measure_steps
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


def test_a_gpu_without_graphs_is_measured_without_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The table says that there is none, and the other figures are there."""
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _device: None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: "a GPU without memory")

    with FakeGpu(), torch.inference_mode():
        bench_step.on_gpu(torch.device("cuda"), 50, 1, None)

    rows = [line.split() for line in capsys.readouterr().out.splitlines()[-len(USERS) :]]
    assert [row[:2] for row in rows] == [[str(users), "none"] for users in USERS]
    assert all(len(row) == 5 for row in rows)
