"""Users in view: who comes, who stays, what is marked as told before."""

from dataclasses import dataclass

import msgspec
import numpy as np

from pipeline.demo.users import PLACES, VIEW_S, UserCards, items_of
from pipeline.files.rows import Interactions
from pipeline.worker.wire import EventPosition, Recommendation, RecommendedItem

ITEMS = [f"i{n}" for n in range(30)]


@dataclass
class Made:
    """As much of a record as is looked at."""

    key: bytes | None
    value: bytes | None
    topic: str = "t"
    partition: int = 0
    offset: int = 0
    timestamp: int = 0
    headers: tuple[tuple[str, bytes], ...] = ()


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def made(user: str, events: int, items: list[str]) -> Made:
    recommendation = Recommendation(
        user_id=user,
        items=[RecommendedItem(item, 1.0) for item in items],
        model_version=1,
        source="model",
        event=EventPosition(0, 0, 0),
        emitted_at_ms=0,
        history_length=events,
    )
    return Made(user.encode(), msgspec.json.encode(recommendation))


def test_a_card_shows_the_last_items_and_marks_those_that_were_told() -> None:
    """Only the item that came next was told; one that comes again is not marked with it."""
    cards = UserCards(lambda user: [*ITEMS[:4], "i9", "i8", "i9"], Clock())
    cards.take(made("u", 4, ["i9", "i8"]))
    cards.take(made("u", 7, ["i1"]))

    (card,) = cards.cards()

    assert card.last == ["i9", "i8", "i9", "i3", "i2", "i1", "i0"]
    assert card.expected == {4}, "i8 and the second i9 came before the list could follow"
    assert card.recommended == ["i1"]
    assert card.events == 7


def test_an_older_recommendation_changes_nothing() -> None:
    """Kafka delivers at least once: a repeat must not move a card back."""
    cards = UserCards(lambda user: ITEMS, Clock())
    cards.take(made("u", 9, ["i1"]))

    cards.take(made("u", 8, ["i2"]))

    assert [card.events for card in cards.cards()] == [9]


def test_users_come_one_after_the_other_and_the_oldest_makes_room() -> None:
    """The view changes one place at a time, however many users are active."""
    clock = Clock()
    cards = UserCards(lambda user: ITEMS, clock)
    seen = []
    for n in range(PLACES + 2):
        for other in range(20):
            cards.take(made(f"user-{n}-{other}", 5, ["i1"]))
        seen.append([card.user for card in cards.cards()])
        clock.now_s += VIEW_S / PLACES + 0.001

    assert [len(users) for users in seen] == [*range(1, PLACES + 1), PLACES, PLACES]
    assert seen[-1] == ["user-5-0", "user-6-0", "user-2-0", "user-3-0", "user-4-0"]
    newest = cards.newest()
    assert newest is not None
    assert newest.user == "user-6-0"


def test_what_is_no_recommendation_is_passed_over() -> None:
    """Tombstones, foreign bytes, users without a history and empty lists make no card."""
    cards = UserCards(lambda user: ITEMS, Clock())

    for record in (
        Made(b"u", None),
        Made(None, b"{}"),
        Made(b"u", b"nonsense"),
        Made(b"u", b'{"user_id":"\xff"}'),
        Made(b"u", b'{"more":' + b"[" * 5000),
        made("u", 1, ["i1"]),
        made("u", 9, []),
    ):
        cards.take(record)

    assert cards.cards() == []
    assert cards.newest() is None


def test_histories_hold_what_counts_in_the_order_of_the_file() -> None:
    """Events of other kinds are left out, as the worker leaves them out."""
    rows = Interactions(
        user_ids=["a", "b"],
        item_ids=["x", "y", "z"],
        event_types=["buy", "look"],
        users=np.array([0, 1, 0, 0], np.int32),
        items=np.array([2, 0, 1, 2], np.int32),
        types=np.array([0, 0, 1, 0], np.int32),
        timestamps_ms=np.array([1, 2, 3, 4], np.int64),
    )

    assert items_of(rows, (), "a") == ["z", "y", "z"]
    assert items_of(rows, ["buy"], "a") == ["z", "z"]
    assert items_of(rows, ["buy"], "stranger") == []
