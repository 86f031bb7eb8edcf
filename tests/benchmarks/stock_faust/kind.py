"""The stock app as a kind of worker for `tests.chaos`: judged from its changelog alone."""

from pipeline.cluster.records import read_partitions
from pipeline.cluster.topics import changelog_name, create_topics
from pipeline.settings import Settings
from tests.benchmarks.stock_faust.row import UserRow
from tests.chaos.kinds import Judgement


class Stock:
    """A baseline: what is wrong is reported, never asserted."""

    name = "stock"
    module = "tests.benchmarks.stock_faust.app"
    exits_frozen: frozenset[int] = frozenset()
    exits_broker: frozenset[int] = frozenset()
    keeps_promises = False

    def prepare(self, settings: Settings) -> None:
        create_topics(settings)

    def swap(self, settings: Settings, version: int) -> None:
        """It knows no releases."""

    def judge(self, settings: Settings) -> Judgement:
        expected: dict[tuple[int, bytes | None], UserRow] = {}
        for record in read_partitions(settings.kafka, settings.topics.interactions):
            user = record.partition, record.key
            expected[user] = expected.get(user, UserRow()).after(record.offset)
        got: dict[tuple[int, bytes | None], UserRow] = {}
        for record in read_partitions(settings.kafka, changelog_name(settings.worker.app_id)):
            got[record.partition, record.key] = UserRow.decode(record.value)
        counts = [(row.count, got.get(user, UserRow()).count) for user, row in expected.items()]
        strange = len(got.keys() - expected.keys())
        return Judgement(
            events=sum(row.count for row in expected.values()),
            lost=sum(max(0, due - count) for due, count in counts),
            double=sum(max(0, count - due) for due, count in counts),
            different=sum(got.get(user) != row for user, row in expected.items()),
            wrong=[f"{strange} rows of users without events"] if strange else [],
        )
