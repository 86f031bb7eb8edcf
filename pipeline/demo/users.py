"""A few users to look at: what they took last and what is recommended to them now.

Recommendations are read off their topic as they leave; a user stays in view for some seconds, then
another one who has just been active takes the place.
"""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import msgspec
import numpy as np
import numpy.typing as npt

from pipeline.cluster.records import Record, follow_topic
from pipeline.errors import PipelineError
from pipeline.files.rows import Interactions
from pipeline.settings import Settings
from pipeline.worker.wire import Recommendation

SHOWN_ITEMS = 8
VIEW_S = 12.0  # how long a user stays
PLACES = 5
LEAST_EVENTS = 3
STOP_DEADLINE_S = 3.0


@dataclass(frozen=True, kw_only=True)
class UserCard:
    """One user in view.

    Attributes:
        user: The id.
        events: How many events of the user were applied.
        last: Item ids, newest first.
        expected: Which of the user's events, counted from 0, were in the list in view before.
        recommended: Item ids, best first.
        since_s: When the user came into view, on the clock.
    """

    user: str
    events: int
    last: Sequence[str]
    expected: frozenset[int]
    recommended: Sequence[str]
    since_s: float


def items_of(rows: Interactions, accepted: Sequence[str], user: str) -> list[str]:
    """Return a user's item ids as a data file has them, oldest first; none for a stranger.

    Args:
        rows: The file.
        accepted: Kinds of events that count; empty: all.
        user: The user's id.
    """
    if user not in rows.user_ids:
        return []
    counts: npt.NDArray[np.bool_] = rows.users == rows.user_ids.index(user)
    if accepted and rows.types is not None:
        kinds = [n for n, kind in enumerate(rows.event_types) if kind in accepted]
        counts &= np.isin(rows.types, kinds)
    return [rows.item_ids[item] for item in rows.items[counts].tolist()]


class UserCards:
    """The users in view, brought up to date by every recommendation.

    Args:
        items_of: Returns a user's item ids, oldest first, also those still to come.
        clock_s: Seconds on a clock that only rises.
    """

    def __init__(
        self,
        items_of: Callable[[str], list[str]],
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._items_of = items_of
        self._clock_s = clock_s
        self._cards: list[UserCard] = []
        self._histories: dict[str, list[str]] = {}
        self._newest_s = -VIEW_S

    def cards(self) -> list[UserCard]:
        """Return the users in view; each keeps its place while it stays."""
        return list(self._cards)

    def newest(self) -> UserCard | None:
        """Return the user who came into view last, if any."""
        return max(self.cards(), key=lambda card: card.since_s, default=None)

    def take(self, record: Record) -> None:
        """Take one record of the recommendations topic; most are of no interest."""
        if record.key is None or record.value is None:
            return
        user = record.key.decode(errors="replace")
        if user not in self._histories and not self._has_room():
            return
        try:
            made = msgspec.json.decode(record.value, type=Recommendation)
        except (ValueError, RecursionError):  # of msgspec, of no UTF-8, of deep nesting
            return
        if user in self._histories:
            self._update(made)
        elif made.history_length >= LEAST_EVENTS and made.items:
            self._admit(made)

    def _has_room(self) -> bool:
        """Tell whether it is time for another user: one after the other, not all at once."""
        now_s = self._clock_s()
        return now_s - self._newest_s >= VIEW_S / PLACES

    def _admit(self, made: Recommendation) -> None:
        self._newest_s = self._clock_s()
        self._histories[made.user_id] = self._items_of(made.user_id)
        card = self._card(made, expected=frozenset(), since_s=self._newest_s)
        if len(self._cards) < PLACES:
            self._cards.append(card)
            return
        place = min(range(PLACES), key=lambda n: self._cards[n].since_s)
        del self._histories[self._cards[place].user]
        self._cards[place] = card

    def _update(self, made: Recommendation) -> None:
        place = next(n for n, card in enumerate(self._cards) if card.user == made.user_id)
        before = self._cards[place]
        if made.history_length <= before.events:
            return
        # Only the next item was to be told; those after it came before the list could follow.
        following = self._histories[made.user_id][before.events : before.events + 1]
        hit = {before.events} if {*following} & {*before.recommended} else set()
        expected = before.expected | hit
        self._cards[place] = self._card(made, expected=expected, since_s=before.since_s)

    def _card(self, made: Recommendation, *, expected: frozenset[int], since_s: float) -> UserCard:
        history = self._histories[made.user_id][: made.history_length]
        return UserCard(
            user=made.user_id,
            events=made.history_length,
            last=history[::-1][:SHOWN_ITEMS],
            expected=expected,
            recommended=[item.item_id for item in made.items[:SHOWN_ITEMS]],
            since_s=since_s,
        )


class UserFollower:
    """Hands the recommendations that leave during a `with` block to cards, in a thread.

    Args:
        settings: Cluster and topic.
        cards: Take the records.
    """

    def __init__(self, settings: Settings, cards: UserCards) -> None:
        self._settings = settings
        self._cards = cards
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="follow users", daemon=True)

    def _run(self) -> None:
        kafka, topic = self._settings.kafka, self._settings.topics.recommendations
        try:
            for record in follow_topic(kafka, topic, is_over=self._stopping.is_set):
                self._cards.take(record)
        except PipelineError:
            return  # nothing depends on it; a Kafka that is away is noticed by everyone else

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join(STOP_DEADLINE_S)
