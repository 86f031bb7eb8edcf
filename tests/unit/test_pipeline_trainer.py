"""When a training is due, what a release is held to, and the folder that trainings share."""

import errno
import fcntl
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from models.evaluation import Holdout, evaluate
from models.release import Release, load_recommender
from models.training.checkpoint import CheckpointUnwritable, ResumeMismatch
from models.vocabulary import Vocabulary
from pipeline.__main__ import main
from pipeline.cluster.topics import NO_ID
from pipeline.errors import SettingsInvalid, TrainingLocked
from pipeline.settings import TrainerSettings
from pipeline.training.folder import TrainingFolder, TrainingPlan, manifests, release_versions
from pipeline.training.gate import evaluate_release, serving_release, why_refused
from pipeline.training.trainer import LastTraining, is_due, next_due
from pipeline.worker.releases import Announcement
from tests.releases import random_release

PLAN = TrainingPlan(topic="clicks", ranges={0: (3, 7), 1: (0, 0)})


@pytest.mark.parametrize(
    ("period_s", "enough_events", "ends", "now_s", "due"),
    [
        (None, 10, {0: 109}, 9e9, False),
        (None, 10, {0: 110}, 0.0, True),
        (None, 10, {0: 105, 1: 5}, 0.0, True),
        (60.0, None, {0: 101}, 1059.9, False),
        (60.0, None, {0: 101}, 1060.0, True),
        (60.0, None, {0: 101}, 900.0, True),
        (60.0, 10, {0: 100}, 9e9, False),
        (None, None, {0: 10**9}, 9e9, False),
        (None, 10, {0: 12}, 0.0, True),
        (60.0, 10, {0: 100, 1: 0}, 9e9, False),
    ],
    ids=[
        "too few events",
        "enough events",
        "enough in all partitions together",
        "too early",
        "late enough",
        "the clock was ahead at the last one",
        "late, but nothing new",
        "never",
        "a topic made anew",
        "an empty new partition",
    ],
)
def test_a_training_is_due_by_time_or_by_number(
    period_s: float | None, enough_events: int | None, ends: dict[int, int], now_s: float, due: bool
) -> None:
    """Either rule makes it due, but never without a new event."""
    last = LastTraining(started_s=1000.0, ends={0: 100}, enough_events=enough_events)

    assert is_due(TrainerSettings(period_s=period_s), last, ends, now_s) is due


@pytest.mark.parametrize(
    ("period_s", "started_s", "enough_events", "said"),
    [
        (3600.0, 0.0, 1, "any event"),
        (3600.0, 1e9, 500, "500 new events or any event 3600 s after the last training began"),
        (None, 1e9, 500, "500 new events"),
        (1e300, 1e9, None, "any event 1e+300 s after the last training began"),
    ],
)
def test_the_log_says_what_the_trainer_waits_for(
    period_s: float | None, started_s: float, enough_events: int | None, said: str
) -> None:
    """Without a training, after one, and with a period beyond every calendar."""
    last = LastTraining(started_s=started_s, ends={}, enough_events=enough_events)

    assert next_due(TrainerSettings(period_s=period_s), last) == said


@pytest.mark.parametrize(
    ("model", "popularity", "serving", "refused"),
    [
        (0.2, 0.1, None, False),
        (0.1, 0.1, None, False),
        (0.09, 0.1, None, True),
        (0.19, 0.1, 0.2, False),
        (0.17, 0.1, 0.2, True),
        (0.05, 0.1, 0.05, False),
        (0.0, 0.0, 0.0, False),
    ],
    ids=[
        "better than popularity",
        "as good as popularity",
        "worse than popularity",
        "a little worse than the serving release",
        "much worse than the serving release",
        "popularity does not matter beside a serving release",
        "nobody hits",
    ],
)
def test_a_release_is_held_to_what_serves(
    model: float, popularity: float, serving: float | None, refused: bool
) -> None:
    """Popularity where nothing serves, else the serving release less a tenth."""
    reason = why_refused(
        {"recall@10": model},
        {"recall@10": popularity},
        None if serving is None else {"recall@10": serving},
        max_drop=0.1,
    )

    assert (reason is not None) is refused


def test_a_refusal_says_what_was_expected_and_got() -> None:
    """The reason has both numbers and where the bar comes from."""
    reason = why_refused({"recall@10": 0.1}, {"recall@10": 0.0}, {"recall@10": 0.2}, max_drop=0.25)

    assert reason == (
        "Recall@10 on held-out items: expected at least 0.1500, 75% of the serving release's "
        "0.2000; got 0.1000"
    )


def test_a_release_is_measured_through_its_own_vocabulary(tmp_path: Path) -> None:
    """Items in another order measure the same; unknown ones are passed over, as targets misses."""
    release = random_release(tmp_path, ["a", "b", "c", "d"])
    ours = Vocabulary(["new", "d", "c", "b", "a"], [1] * 5)
    holdout = Holdout([np.array([5, 1, 4]), np.array([2]), np.array([3])], np.array([3, 5, 1]))
    cpu = torch.device("cpu")

    metrics = evaluate_release(release, ours, holdout, mask_window=False, device=cpu)

    theirs = Holdout([np.array([1, 2]), np.array([4])], np.array([3, 1]))
    known = evaluate(load_recommender(release), theirs, mask_window=False)
    assert metrics["recall@50"] == pytest.approx(2 / 3)
    assert metrics["mrr"] == pytest.approx(known["mrr"] * 2 / 3)


def test_a_release_that_knows_no_item_hits_nothing(tmp_path: Path) -> None:
    """Nothing to rank is a miss, not an error."""
    release = random_release(tmp_path, ["a", "b"])
    ours = Vocabulary(["x", "y"], [1, 1])
    holdout = Holdout([np.array([1])], np.array([2]))

    metrics = evaluate_release(release, ours, holdout, mask_window=True, device=torch.device("cpu"))

    assert max(metrics.values()) == pytest.approx(0)


def announcement_of(release: Release) -> Announcement:
    """Return what the models topic says of a release."""
    return Announcement(
        version=release.version,
        location=str(release.path),
        manifest_sha256=release.manifest_sha256,
        created=release.created,
    )


def test_what_serves_is_what_was_announced_last_and_can_be_opened(tmp_path: Path) -> None:
    """An older release announced again serves; one that is gone is passed over, for the next."""
    old, new = (
        announcement_of(random_release(tmp_path, ["a", "b"], version=version)) for version in (1, 2)
    )
    gone = Announcement(version=3, location=f"{tmp_path}/3", manifest_sha256="0", created="")

    served = [
        serving_release(announcements)
        for announcements in ([old, new], [new, old], [old, new, gone], [gone], [])
    ]

    assert [one and one.version for one in served] == [2, 1, 2, None, None]


def test_one_training_at_a_time(tmp_path: Path) -> None:
    """The lock is held inside alone, and whoever comes second learns who has it."""
    folder = TrainingFolder(tmp_path / "releases")
    with folder.locked():
        pass
    (tmp_path / "releases" / ".training" / "lock").write_text("1234567890\n")  # of one before

    with folder.locked():
        second = TrainingFolder(tmp_path / "releases")
        with pytest.raises(TrainingLocked, match=rf"process {os.getpid()}\)$"), second.locked():
            pass
    with second.locked():
        pass


def test_a_folder_that_cannot_be_made_is_a_wrong_setting(tmp_path: Path) -> None:
    """The message names the setting."""
    (tmp_path / "file").touch()

    folder = TrainingFolder(tmp_path / "file")
    with pytest.raises(SettingsInvalid, match=r"trainer\.releases_dir must be"), folder.locked():
        pass


def test_a_file_system_without_locks_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As some network mounts are; two trainings there would not know of each other."""

    def without_locks(_descriptor: int, _operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", without_locks)

    folder = TrainingFolder(tmp_path)
    wanted = r"on a file system with locks: .* No locks available"
    with pytest.raises(SettingsInvalid, match=wanted), folder.locked():
        pass


def test_a_plan_is_found_again_until_the_training_is_done(tmp_path: Path) -> None:
    """It belongs to its topic; a new training forgets the old one's checkpoint."""
    folder = TrainingFolder(tmp_path)
    with folder.locked():
        nothing = folder.read_plan("clicks")
        folder.checkpoint.touch()
        folder.begin(PLAN)
        found = folder.read_plan("clicks")
        checkpoint_left = folder.checkpoint.exists()
        folder.checkpoint.with_suffix(".pt.1234.tmp").touch()  # of a process that was killed
        folder.clear()
        done = folder.read_plan("clicks")

    assert (nothing, found, done) == (None, PLAN, None)
    assert not checkpoint_left
    assert [path.name for path in (tmp_path / ".training").iterdir()] == ["lock"]


def test_a_plan_of_another_topic_is_said_to_be(tmp_path: Path) -> None:
    """The id decides where both are known: an older file has none, nor has an older broker."""
    folder = TrainingFolder(tmp_path)
    plan = TrainingPlan(topic="clicks", topic_id="one", ranges={0: (3, 7)})
    with folder.locked():
        folder.begin(plan)

    assert folder.read_plan("clicks", "one") == plan
    with pytest.raises(ResumeMismatch, match="expected topic other, got clicks"):
        folder.read_plan("other", "one")
    with pytest.raises(ResumeMismatch, match="another topic named clicks"):
        folder.read_plan("clicks", "two")
    assert folder.read_plan("clicks", NO_ID) == plan


def test_what_the_system_refuses_is_one_clear_error(tmp_path: Path) -> None:
    """A trainer counts it and lives; the plan before stays."""
    folder = TrainingFolder(tmp_path)
    (tmp_path / ".training" / "checkpoint.pt").mkdir(parents=True)

    with folder.locked(), pytest.raises(CheckpointUnwritable, match=r"\.training: what a training"):
        folder.begin(PLAN)


@pytest.mark.parametrize("content", [b'{"topic": "cli', b'{"topic": "caf\xe9"}', b""])
def test_a_damaged_plan_is_told(tmp_path: Path, content: bytes) -> None:
    """What a crash may leave of it: the checkpoint beside it is not thrown away unasked."""
    folder = TrainingFolder(tmp_path)
    with folder.locked():
        folder.begin(PLAN)
    (tmp_path / ".training" / "plan.json").write_bytes(content)

    with pytest.raises(ResumeMismatch, match=r"plan\.json is not as it was written"):
        folder.read_plan("clicks")


def test_releases_are_found_newest_first(tmp_path: Path) -> None:
    """By number, not by name; what is no release, or a damaged one, is passed over."""
    for version in (9, 10, 11):
        random_release(tmp_path, ["a"], version=version)
    (tmp_path / "11" / "manifest.json").write_bytes(b"{}")
    (tmp_path / ".12-abc").mkdir()
    for no_version in ("notes", "20261128094512", "007", "0", "\uff11"):
        (tmp_path / no_version).mkdir()

    assert release_versions(tmp_path) == [9, 10, 11]
    assert [manifest.version for manifest in manifests(tmp_path)] == [10, 9]
    assert release_versions(tmp_path / "nowhere") == []


def test_nothing_to_resume_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """A misspelt folder would else train anew in silence; where a plan is, nothing is said."""
    away = ("--kafka.bootstrap-servers", "127.0.0.1:1", "--kafka.connect-timeout-s", "0.01")
    arguments = ["train", "--resume", "--trainer.releases-dir", str(tmp_path), *away]

    codes = [main(arguments)]
    said = "no interrupted training" in capsys.readouterr().err + caplog.text
    caplog.clear()
    folder = TrainingFolder(tmp_path)
    with folder.locked():
        folder.begin(PLAN)
    codes.append(main(arguments))

    assert (codes, said) == ([1, 1], True)
    assert "no interrupted training" not in capsys.readouterr().err + caplog.text
