"""What needs no Kafka: evaluation on a file, import of a checkpoint, one answer by hand."""

import gzip
import json
from pathlib import Path

import pytest
import torch

from models.authors import import_authors_checkpoint
from models.config import TrainingConfig
from models.errors import ReleaseIncompatible
from models.evaluation import evaluate, leave_one_out
from models.popularity import evaluate_popularity, item_counts
from models.release import load_recommender, read_release, write_release
from models.vocabulary import Vocabulary
from pipeline.__main__ import main
from pipeline.errors import DataFileInvalid
from pipeline.files.items import read_item_ids
from pipeline.settings import ModelSettings, Settings, TrainerSettings
from pipeline.training.file_evaluation import evaluate_file
from pipeline.training.gate import evaluate_release
from pipeline.training.offline_score import score_history
from tests import authors_model
from tests.releases import random_release, release_of

ITEMS = [f"item-{number}" for number in range(12)]
QUICK = (
    *("--model.hidden-size", "16", "--model.n-blocks", "1", "--model.max-length", "8"),
    *("--training.batch-size", "16", "--training.learning-rate", "0.02"),
    *("--training.max-epochs", "4", "--trainer.threads", "1"),
)


@pytest.fixture
def ring_file(tmp_path: Path) -> Path:
    """Histories in which every item is followed by the next of a ring of 30."""
    lines = [
        " ".join([f"user-{start}", *(f"i{(start + step) % 30}" for step in range(4 + start % 9))])
        for start in range(30)
    ]
    path = tmp_path / "ring.seq.txt"
    path.write_text("\n".join([*lines, "short i1 i2", ""]))
    return path


def run_json(tmp_path: Path, *arguments: str) -> dict[str, object]:
    """Run a command that must succeed; its report."""
    report = tmp_path / "report.json"
    assert main([*arguments, "--json", str(report)]) == 0
    found: dict[str, object] = json.loads(report.read_text())
    return found


def test_an_evaluation_trains_and_ranks_both_splits(ring_file: Path, tmp_path: Path) -> None:
    """The last item tests, the one before it validates, and the rule is found from the rest."""
    report = run_json(tmp_path, "evaluate", str(ring_file), "--protocol", "lrurec", *QUICK)

    metrics = report["metrics"]
    for split in ("validation", "test"):
        assert metrics[split]["model"]["recall@10"] > 0.9
        assert metrics[split]["popularity"]["recall@10"] < 0.6
    assert report["epochs"] == 4
    assert report["data"] == {
        "events": sum(4 + start % 9 for start in range(30)) + 2,
        "users": 31,
        "items": 30,
        "ranked_users": 30,
        "items_unknown_to_release": 0,
    }


def test_a_checkpoint_that_cannot_be_written_is_refused_before_any_work(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Not at the first validation: nothing is read yet, not even a data file that is not there."""
    path = tmp_path / "missing" / "run.pt"

    assert main(["evaluate", "no-file.csv", "--checkpoint", str(path)]) == 2

    assert capsys.readouterr().err == (
        f"lrurec evaluate: --checkpoint must name a file that can be written, got {path}: "
        f"there is no folder {path.parent}\n"
    )


def test_a_release_has_no_training_to_go_on_with(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """A checkpoint that would not be written is refused, not passed over."""
    code = main(
        ["evaluate", "no-file.csv", "--release", "1", "--checkpoint", str(tmp_path / "run.pt")]
    )

    assert code == 2
    assert "give one of them" in capsys.readouterr().err


def test_a_release_is_evaluated_without_training(ring_file: Path, tmp_path: Path) -> None:
    """Its own items are ranked; those of the file that it does not know are counted and missed."""
    release = random_release(tmp_path, [f"i{number}" for number in range(25)])

    report = run_json(tmp_path, "evaluate", str(ring_file), "--release", str(release.path))

    assert report["epochs"] is None
    assert report["release"] == 1
    assert report["data"]["items_unknown_to_release"] == 5
    assert 0.5 < report["metrics"]["test"]["model"]["recall@50"] < 1


def test_each_split_is_ranked_by_what_it_holds_out(ring_file: Path, tmp_path: Path) -> None:
    """A trained model, a release and popularity: each is measured on the split that it stands at.

    Popularity counts what trains alone.
    """
    histories = [line.split()[1:] for line in ring_file.read_text().splitlines()]
    vocabulary = Vocabulary(
        list(dict.fromkeys(item for items in histories for item in items)), [1] * 30
    )
    parts = leave_one_out([[vocabulary.index_of(item) for item in items] for items in histories])
    release = random_release(tmp_path, vocabulary.item_ids[:25])
    settings = Settings(
        model=ModelSettings(hidden_size=16, n_blocks=1, max_length=8),
        training=TrainingConfig(batch_size=16, max_epochs=1),
        trainer=TrainerSettings(threads=1, device="cpu"),
    )
    mask, cpu = {"mask_window": True}, torch.device("cpu")

    trained = evaluate_file(settings, ring_file)
    read = evaluate_file(settings, ring_file, release)

    assert trained.result is not None
    counts = item_counts(parts.train, 30)
    for name, holdout in (("validation", parts.validation), ("test", parts.test)):
        assert trained.metrics[name] == {
            "model": pytest.approx(evaluate(trained.result.recommender, holdout)),
            "popularity": pytest.approx(evaluate_popularity(counts, holdout, max_length=8)),
        }
        assert read.metrics[name] == {
            "model": pytest.approx(
                evaluate_release(release, vocabulary, holdout, device=cpu, **mask)
            ),
            "popularity": pytest.approx(evaluate_popularity(counts, holdout, max_length=10)),
        }
    assert trained.metrics["validation"] != trained.metrics["test"]


def test_only_accepted_event_types_are_evaluated(tmp_path: Path) -> None:
    """The setting that rules the stream rules the file."""
    table = tmp_path / "events.csv"
    rows = [
        f"u{u},i{(u + t) % 9},{t},{'view' if t % 2 else 'cart'}" for u in range(9) for t in range(8)
    ]
    table.write_text("\n".join(["user,item,timestamp,event_type", *rows, ""]))

    report = run_json(
        tmp_path, "evaluate", str(table), "--fields.accepted-event-types", "view", *QUICK
    )

    assert report["data"]["events"] == 36


@pytest.mark.parametrize("command", ["evaluate", "replay"])
def test_a_file_without_event_types_is_refused_where_only_some_count(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """None of its events would count; `replay` says so before it asks for Kafka."""
    table = tmp_path / "clicks.csv"
    table.write_text("user,item,timestamp\nu1,a,1\nu1,b,2\nu1,a,3\n")

    code = main([command, str(table), "--fields.accepted-event-types", "view,cart"])

    assert code == 1
    assert capsys.readouterr().err == (
        f"lrurec {command}: {table}: expected a column event_type, as "
        "fields.accepted_event_types is view,cart, got none\n"
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("u1 a b\nu2 b c\n", "expected 2 items and a user with at least 3 events, got 3 items"),
        ("u1 a a a a\n", "expected 2 items and a user with at least 3 events, got 1 items"),
    ],
)
def test_a_file_with_too_little_is_one_clear_line(
    content: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What cannot be split or ranked ends the command with exit code 1."""
    path = tmp_path / "small.seq.txt"
    path.write_text(content)

    assert main(["evaluate", str(path)]) == 1
    assert message in capsys.readouterr().err


def save_checkpoint(tmp_path: Path) -> Path:
    weights = authors_model.random_weights(
        5, n_items=len(ITEMS), hidden_size=6, state_size=5, n_blocks=2
    )
    torch.save({"model_state_dict": weights}, tmp_path / "best_acc_model.pth")
    return tmp_path / "best_acc_model.pth"


def test_an_imported_checkpoint_is_a_release(tmp_path: Path) -> None:
    """Weights, item ids and length arrive; a second import takes the next number."""
    checkpoint, items = save_checkpoint(tmp_path), tmp_path / "items.txt"
    items.write_text("\n".join(ITEMS) + "\n")
    output = tmp_path / "releases"
    arguments = ["import-checkpoint", str(checkpoint), "--items", str(items)]
    arguments += ["--output", str(output), "--model.max-length", "200"]

    report = run_json(tmp_path, *arguments)
    again = run_json(tmp_path, *arguments)

    release = read_release(output / "1")
    ours, theirs = load_recommender(release), import_authors_checkpoint(checkpoint)
    assert release.vocabulary.item_ids == tuple(ITEMS)
    assert release.config.max_length == 200
    assert all(
        torch.equal(tensor, theirs.state_dict()[name]) for name, tensor in ours.state_dict().items()
    )
    assert (report["version"], again["version"]) == (1, 2)
    assert report["weights_id"] == again["weights_id"] == release.weights_id
    assert report["digests"]["manifest.json"] == release.manifest_sha256


def test_an_imported_checkpoint_may_be_given_its_number(tmp_path: Path) -> None:
    """For a folder that does not hold what was announced."""
    items, output = tmp_path / "items.txt", tmp_path / "releases"
    items.write_text("\n".join(ITEMS))
    what = ["import-checkpoint", str(save_checkpoint(tmp_path)), "--items", str(items)]

    codes = [main([*what, "--output", str(output), "--version", n]) for n in ("7", "0", "7")]
    following = main([*what, "--output", str(output)])

    assert (codes, following) == ([0, 2, 1], 0)
    assert sorted(path.name for path in output.iterdir()) == ["7", "8"]


def test_a_release_without_finite_scores_has_no_answer(tmp_path: Path) -> None:
    """Scores that are no numbers are not called equal."""
    recommender = import_authors_checkpoint(save_checkpoint(tmp_path))
    recommender.blocks[0].lru.gamma_log.data.fill_(200)
    release = release_of(tmp_path, recommender, ITEMS)

    with pytest.raises(ReleaseIncompatible, match="finite scores"):
        score_history(release, ITEMS[:2], top=3)


def test_items_that_do_not_fit_the_checkpoint_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The message has both numbers; nothing is written."""
    items, output = tmp_path / "items.txt", tmp_path / "releases"
    items.write_text("a\nb\n")

    checkpoint = save_checkpoint(tmp_path)
    code = main(
        ["import-checkpoint", str(checkpoint), "--items", str(items), "--output", str(output)]
    )

    assert code == 1
    assert "expected 12 items" in capsys.readouterr().err
    assert not output.exists()


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("ids.txt", "b\na b\n", ["b", "a b"]),
        ("ids.txt", " b\r\na\t\r\n", [" b", "a\t"]),
        ("ids.csv", "item\nb\na\n", ["b", "a"]),
        ("ids.csv.gz", 'row,item\n1,b\n2,"a,c"\n', ["b", "a,c"]),
        ("ids.tsv", "row\tname\titem\n1\tx\tb\n", ["b"]),
    ],
)
def test_item_ids_come_as_lines_or_as_a_table(
    name: str, content: str, expected: list[str], tmp_path: Path
) -> None:
    """The order of the rows is the order of the items."""
    path = tmp_path / name
    path.write_bytes(gzip.compress(content.encode()) if name.endswith(".gz") else content.encode())

    assert read_item_ids(path) == expected


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("ids.txt", "a\n\nb\n", "line 2: expected an item that has no line before, got ''"),
        ("ids.txt", "a\nb\na\n", "line 3: expected an item that has no line before, got 'a'"),
        ("ids.txt", "", "expected at least one item, got none"),
        ("ids.csv", "row,item\n1,a\n3,b\n", "line 3: expected row number 2 as row, got '3'"),
        ("ids.csv", "row,item\n1,a\n2\n", "line 3: expected 2 fields as in line 1, got 1"),
    ],
)
def test_item_ids_out_of_place_are_refused(
    name: str, content: str, message: str, tmp_path: Path
) -> None:
    """Row i must be item i: a gap, a repeat or a broken line would shift all that follow."""
    path = tmp_path / name
    path.write_text(content)

    with pytest.raises(DataFileInvalid) as caught:
        read_item_ids(path)

    assert message in str(caught.value)


def test_a_score_by_scan_and_by_steps_agrees(tmp_path: Path) -> None:
    """Every item, best first, with the model's own scores; both ways agree but for rounding."""
    release = write_release(
        tmp_path / "releases",
        version=1,
        recommender=import_authors_checkpoint(save_checkpoint(tmp_path)),
        vocabulary=Vocabulary(ITEMS, [1] * 12),
        metrics={},
        training={},
    )
    history = [ITEMS[number % 12] for number in range(30)]

    answer = score_history(release, history, top=None)

    recommender = load_recommender(release)
    indices = torch.tensor([number % 12 + 1 for number in range(30)])
    with torch.inference_mode():
        scores = recommender.scores(recommender(indices, torch.tensor([30])))[-1, 1:].tolist()
    expected = sorted(zip(ITEMS, scores, strict=True), key=lambda pair: -pair[1])
    assert [item_id for item_id, _ in answer.items] == [item_id for item_id, _ in expected]
    assert [score for _, score in answer.items] == pytest.approx(
        [score for _, score in expected], abs=1e-6
    )
    assert 0 < answer.max_difference < 1e-5 * max(map(abs, scores))
    assert (answer.source, answer.used, answer.unknown) == ("model", 30, ())


def test_unknown_items_are_named_and_passed_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The answer is that of the known items; --top limits it."""
    release = random_release(tmp_path, ITEMS)
    path = str(release.path)

    full = run_json(tmp_path, "score", "--release", path, "--history", "item-3,item-5", "--all")
    capsys.readouterr()
    part = run_json(
        tmp_path, "score", "--release", path, "--history", "item-3,nope,item-5", "--top", "3"
    )

    assert len(full["items"]) == 12
    assert part["items"] == full["items"][:3]
    assert (part["unknown"], part["history_used"]) == (["nope"], 2)
    assert "passed over: nope" in capsys.readouterr().out


def test_ids_of_items_move_no_cursor(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A release has them as producers wrote them; brackets are no markup either."""
    odd = "[red]a\x1b]0;title\x07b"
    release = random_release(tmp_path, [odd, "plain"])
    argv = ["score", "--release", str(release.path), "--history", "c\x1b[2J"]

    assert main(argv) == 0

    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "passed over: c?[2J" in out
    assert "[red]a?]0;title?b" in out


def test_an_empty_history_gets_the_cold_start_list(tmp_path: Path) -> None:
    """So does one of unknown items only: what the model expects of a new user."""
    release = random_release(tmp_path, ITEMS)

    empty = score_history(release, [], top=4)
    unknown = score_history(release, ["nope"], top=4)

    recommender = load_recommender(release)
    with torch.inference_mode():
        scores = recommender.scores(recommender(torch.tensor([0]), torch.tensor([1])))[0, 1:]
    best = [ITEMS[place] for place in scores.argsort(descending=True)[:4].tolist()]
    assert [item_id for item_id, _ in empty.items] == best
    assert empty.items == unknown.items
    assert (empty.source, unknown.unknown) == ("cold_start", ("nope",))
    assert empty.max_difference < 1e-5


def test_seen_items_are_left_out_as_workers_do(tmp_path: Path) -> None:
    """With exclude-seen the last items that a row would hold are no answer; older ones are."""
    release = str(random_release(tmp_path, ITEMS).path)

    report = run_json(
        tmp_path,
        *("score", "--release", release, "--history", "item-1,item-2,item-3,item-3", "--all"),
        *("--recommend.exclude-seen", "True", "--recommend.ring", "3"),
    )

    answered = {entry["item_id"] for entry in report["items"]}
    assert answered == set(ITEMS) - {"item-2", "item-3"}
