"""By which form a worker serves on the CPU, and that it says so."""

import logging
from pathlib import Path
from typing import Literal

import pytest
import torch

from models import native_build
from pipeline.errors import SettingsInvalid
from pipeline.settings import WorkerSettings
from pipeline.worker.served_model import fastest_serving


@pytest.mark.parametrize(("form", "name"), [("auto", "native"), ("torch", "torch (worker.form)")])
def test_the_setting_chooses_the_form_of_serving(
    form: Literal["auto", "torch"], name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The compiled form where there is a compiler, unless it is not wanted; one line names it."""
    worker = WorkerSettings(device="cpu", form=form, cache_dir=tmp_path / "cache")

    with caplog.at_level(logging.INFO):
        native = fastest_serving(worker)

    assert (native is not None) == (form == "auto")
    assert caplog.messages == [f"serving on cpu; form of steps and lists: {name}"]
    assert (tmp_path / "cache").exists() == (form == "auto")


@pytest.mark.parametrize("hindrance", ["no compiler", "no folder", "no home"])
def test_a_worker_without_the_compiled_form_serves_by_torch(
    hindrance: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What keeps it from compiling stands in the line of the log, and nothing fails."""
    cache = tmp_path / "cache"
    if hindrance == "no compiler":
        monkeypatch.setattr(native_build, "COMPILERS", ("no-such-compiler",))
    elif hindrance == "no folder":
        cache.touch()
    else:
        cache = Path("~no-such-user/cache")

    with caplog.at_level(logging.INFO):
        assert fastest_serving(WorkerSettings(device="cpu", cache_dir=cache)) is None

    reason = {
        "no compiler": "no C++ compiler: none of no-such-compiler in the PATH",
        "no folder": f"the library for it cannot be made in {cache}: ",
        "no home": f"the library for it cannot be made in {cache}: ",
    }
    (line,) = caplog.messages
    assert f"form of steps and lists: torch ({reason[hindrance]}" in line


def test_a_gpu_that_is_not_there_is_told_before_anything_is_loaded(tmp_path: Path) -> None:
    """Not as a release that cannot be loaded, and not as a bug."""
    count = torch.cuda.device_count()
    message = f"worker.device must be one of the {count} CUDA devices .*, got 'cuda:{count}'"
    with pytest.raises(SettingsInvalid, match=message):
        fastest_serving(WorkerSettings(device=f"cuda:{count}", cache_dir=tmp_path))
