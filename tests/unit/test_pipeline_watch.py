"""Recommendations for people, whatever ids and titles hold."""

import io

import pytest
from rich.console import Console

from pipeline.printable import printable
from pipeline.watch import Withdrawal, show
from pipeline.worker.wire import EventPosition, Recommendation, RecommendedItem

HOSTILE = "a\x1b]0;b\x07c\x1b[2Jd\x9b2Je\nf"
SHOWN = "a?]0;b?c?[2Jd?2Je?f"


@pytest.mark.parametrize("is_terminal", [True, False])
@pytest.mark.parametrize("titles", [{}, {"item": HOSTILE}], ids=["id", "title"])
def test_no_text_of_others_commands_the_terminal(titles: dict[str, str], is_terminal: bool) -> None:
    """Control characters, C1 ones too, show as question marks."""
    item_id = "item" if titles else HOSTILE
    recommendation = Recommendation(
        user_id=HOSTILE,
        items=[RecommendedItem(item_id, 1.0)],
        model_version=1,
        source="model",
        event=EventPosition(0, 0, 0),
        emitted_at_ms=0,
        history_length=1,
    )
    output = io.StringIO()
    console = Console(file=output, force_terminal=is_terminal, width=120)

    show([recommendation], titles, console=console, count=1)

    shown = output.getvalue()
    assert "\x1b]0;" not in shown
    assert "\x1b[2J" not in shown
    assert not {"\x07", "\x9b"} & set(shown)
    assert shown.count(SHOWN) >= 2


def test_a_title_in_any_language_stays_as_it_is() -> None:
    """Blanks and joiners that are no plain letters move no cursor either."""
    title = "café\u00a0noir, 白\u3000灯, \u0645\u06cc\u200c\u0634\u0648\u062f"

    assert printable(title) == title


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_list_that_is_withdrawn_is_shown_and_is_no_list(is_terminal: bool) -> None:
    """The user may be of any text; it does not count as one of so many recommendations."""
    output = io.StringIO()
    console = Console(file=output, force_terminal=is_terminal, width=120)

    show([Withdrawal(HOSTILE), Withdrawal("u2")], {}, console=console, count=1)

    shown = output.getvalue()
    assert "\x1b]0;" not in shown
    assert SHOWN in shown
    assert "u2" in shown
    assert "list withdrawn" in shown
