"""The live view and the steps, drawn from recorded figures without a terminal."""

import dataclasses
import io
import math
import re
from collections.abc import Mapping

import pytest
from rich.console import Console

from pipeline.demo.figures import Figures
from pipeline.demo.screen import Screen
from pipeline.demo.users import UserCard
from pipeline.demo.view import LiveView, latency_text, milliseconds, user_line

RECALL: Mapping[str, float | None] = {"model": 0.281, "popularity": 0.024, "repeat_last": 0.041}
CARD = UserCard(
    user="17850",
    events=1317,
    last=["a", "b"],
    expected=frozenset({1316}),
    recommended=["c", "d", "a"],
    since_s=0.0,
)
TITLES = {"a": "WHITE [HANGING] HEART", "b": "RED WOOLLY HOTTIE", "c": "JUMBO BAG"}


def figures(recall: Mapping[str, float | None] = RECALL, p50_s: float | None = 0.0082) -> Figures:
    """Figures as a worker on two cores has them."""
    return Figures(
        seconds=10.0,
        answered=10_000,
        rate=1000.0,
        p50_s=p50_s,
        p99_s=0.031,
        lag=12,
        batch_events=13.4,
        batch_s=0.0052,
        checkpoint_rows=131.0,
        checkpoint_s=0.021,
        recommendations=9000,
        short=0,
        stale=0,
        judged=39_723,
        recall=recall,
    )


def draw(
    shown: Figures,
    *,
    width: int,
    height: int,
    cards: list[UserCard],
    titles: Mapping[str, str] = TITLES,
) -> list[str]:
    """Draw the live view on a terminal of a size that is none; its lines without colours."""
    output = io.StringIO()
    console = Console(file=output, width=width, height=height, force_terminal=True)
    view = LiveView(
        recent=lambda: shown,
        whole=lambda: shown,
        cards=lambda: cards,
        titles=titles,
        top_k=10,
    )
    console.print(view)
    return re.sub(r"\x1b\[[0-9;]*m", "", output.getvalue()).splitlines()


@pytest.mark.parametrize(("width", "height"), [(120, 40), (80, 24), (60, 30), (40, 10), (200, 60)])
def test_the_live_view_fits_into_the_terminal(width: int, height: int) -> None:
    """With the line of the step above and one for the cursor; users are what makes room."""
    lines = draw(figures(), width=width, height=height, cards=[CARD] * 5)

    assert max(map(len, lines)) <= width
    figure_lines = 9 if width >= 72 else 18
    assert len(lines) <= max(height - 3, figure_lines)


def test_the_live_view_tells_speed_latency_and_hit_rates() -> None:
    """What a worker promises is on the screen, with units."""
    text = "\n".join(draw(figures(), width=120, height=40, cards=[CARD]))

    for shown in ("1,000", "8.2 ms", "31 ms", "131 rows, 21 ms", "28.1%", "2.4%", "4.1%", "39,723"):
        assert shown in text
    assert "waiting events" in text
    lengths = {
        name: text.split(name)[1].split("\n")[0].count("━")
        for name in ("LRURec", "popularity", "repeat last")
    }
    assert lengths["LRURec"] > lengths["repeat last"] > lengths["popularity"] > 0


def test_the_live_view_names_items_and_marks_what_was_told() -> None:
    """Titles are text, whatever brackets they have; an item without one is shown by its id."""
    text = "\n".join(draw(figures(), width=120, height=40, cards=[CARD]))

    assert "17850  1,317 events" in text
    assert "✓ WHITE [HANGING] HEART · RED WOOLLY HOTTIE" in text
    assert "JUMBO BAG · d · WHITE [HANGING] HEART" in text


def test_the_live_view_keeps_its_height_whoever_is_in_view() -> None:
    """Nothing jumps when users come, nor before the first figures are there."""
    nothing = figures({"model": None, "popularity": None, "repeat_last": None}, p50_s=None)

    heights = {
        len(draw(shown, width=100, height=40, cards=[CARD] * n))
        for n in range(6)
        for shown in (figures(), nothing)
    }

    assert len(heights) == 1


def test_a_duration_beyond_the_histogram_is_not_made_up() -> None:
    """None and infinity have words of their own."""
    assert [milliseconds(s) for s in (None, 0.0082, 0.0316, math.inf)] == [
        "-",
        "8.2 ms",
        "32 ms",
        "over 10 s",
    ]
    assert latency_text(figures()) == "p50 8.2 ms, p99 31 ms"


def test_a_user_in_a_plain_line() -> None:
    """For pipes: the last two items and the first three of the list, by name."""
    assert user_line(CARD, TITLES) == (
        "user 17850 after 1,317 events: last WHITE [HANGING] HEART | RED WOOLLY HOTTIE; "
        "next: JUMBO BAG | d | WHITE [HANGING] HEART"
    )


def test_names_cannot_write_on_the_terminal() -> None:
    """Escape sequences, line ends and marks that turn the text round are shown as what they are."""
    card = dataclasses.replace(CARD, user="\x1b[2Ju", last=["a"], recommended=["\u202eid"])
    titles = {"a": "one\r\ntwo"}

    text = "\n".join(draw(figures(), width=120, height=40, cards=[card], titles=titles))

    assert "?[2Ju" in text
    assert "one??two" in text
    assert "?id" in text
    assert user_line(card, titles) == ("user ?[2Ju after 1,317 events: last one??two; next: ?id")


def test_without_a_terminal_steps_are_plain_lines() -> None:
    """One when a step begins, one when it is done; no control character."""
    output = io.StringIO()
    screen = Screen(Console(file=output, width=80))

    with screen.step("training", "reading") as step:
        step.update(3, 10)
        step.result = "4 epochs"

    assert [re.sub(r"^ *\d+\.\d s", "T", line) for line in output.getvalue().splitlines()] == [
        "T  training: reading ...",
        "T  training: 4 epochs",
    ]


def test_on_a_terminal_a_step_that_fails_says_so() -> None:
    """And a step that is drawn while it runs leaves one line."""
    output = io.StringIO()
    screen = Screen(Console(file=output, width=80, force_terminal=True))

    def fail() -> None:
        with screen.step("worker", lambda: "starting") as step:
            step.update(1, 2)
            raise KeyError

    with pytest.raises(KeyError):
        fail()

    last = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", output.getvalue()).splitlines()[-1]
    assert last.startswith("✗ worker")
    assert "not finished" in last
