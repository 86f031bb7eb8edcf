"""Which device a process that torchrun started trains on."""

from pathlib import Path

import pytest
import torch

from pipeline.__main__ import main
from pipeline.commands import trainer
from pipeline.errors import SettingsInvalid
from pipeline.settings import TrainerSettings
from pipeline.training.processes import joined_processes, training_device


def begin_as(local_rank: int, gpus: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this be a process that torchrun starts, on a machine with so many GPUs."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "test")
    monkeypatch.setenv("LOCAL_RANK", str(local_rank))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_each_process_has_the_gpu_of_its_number(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second process on a machine trains on the second GPU."""
    begin_as(1, 2, monkeypatch)

    assert training_device(TrainerSettings(device=device)) == torch.device("cuda", 1)


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("auto", "--nproc-per-node of torchrun must be at most 2, the number of GPUs"),
        ("cuda:0", "trainer.device must be cuda, cpu or auto under torchrun, got cuda:0"),
    ],
)
def test_two_processes_never_share_a_gpu(
    device: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More processes than GPUs, or one GPU named for all, is an error that says so."""
    begin_as(2, 2, monkeypatch)

    with pytest.raises(SettingsInvalid, match=message):
        training_device(TrainerSettings(device=device))


@pytest.mark.parametrize("device", ["auto", "cpu"])
def test_processes_share_a_cpu(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU the number of a process does not matter."""
    begin_as(3, 0, monkeypatch)

    assert training_device(TrainerSettings(device=device)) == torch.device("cpu")


@pytest.mark.parametrize(
    "argv",
    [["train"], ["trainer"], ["evaluate", "no-file.csv"], ["demo", "--data", "{}/clicks.csv"]],
    ids=lambda argv: argv[0],
)
def test_a_device_that_is_not_there_is_refused_before_any_work(
    argv: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Neither Kafka nor the file to evaluate on, which are not there, is asked for."""
    rows = [f"u{n % 3},i{n},{1_700_000_000_000 + n}" for n in range(30)]
    (tmp_path / "clicks.csv").write_text("\n".join(["user,item,timestamp", *rows, ""]))
    count = torch.cuda.device_count()
    command = [word.format(tmp_path) for word in argv]
    command += ["--kafka.bootstrap-servers", "127.0.0.1:9", "--metrics.port", "0"]

    assert main([*command, "--trainer.device", f"cuda:{count}"]) == 2

    assert capsys.readouterr().err == (
        f"lrurec {argv[0]}: trainer.device must be one of the {count} CUDA devices that PyTorch "
        f"finds here, got 'cuda:{count}'\n"
    )


def test_without_torchrun_a_process_is_alone() -> None:
    """Nothing is joined, and the device is the one of the settings."""
    with joined_processes(TrainerSettings(device="cpu")) as processes:
        assert (processes.rank, processes.count, processes.first) == (0, 1, True)
        assert not torch.distributed.is_initialized()
    assert training_device(TrainerSettings(device="cpu")) == torch.device("cpu")


def test_the_trainer_is_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under torchrun each would train and announce: it is refused before anything is done."""
    begin_as(0, 0, monkeypatch)

    with pytest.raises(SettingsInvalid, match="run it without torchrun"):
        trainer.run(trainer.Command())
