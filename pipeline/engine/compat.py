"""The faults of Faust that the engine works around, and the versions that it was tested with.

Each fault: what stock does and where (the line of faust-streaming 0.15.3 or aiokafka 0.14.0), in
which versions its test shows it, what answers it here, and the tests of both.
"""

import logging
from dataclasses import dataclass
from importlib.metadata import version

from packaging.version import Version

from pipeline.errors import PipelineError

logger = logging.getLogger(__name__)

# The oldest and the newest version of each that the engine's tests were run with. An override of a
# private name may break silently with any other: a commit that stock makes and we do not see.
TESTED = {
    "faust-streaming": ("0.15.3", "0.15.3"),
    "aiokafka": ("0.13.0", "0.14.0"),
    "mode-streaming": ("0.6.0", "0.7.1"),
}

FAUST = ("faust-streaming 0.15.3",)
FAUST_LONG = ("faust-streaming 0.13.2", *FAUST)  # which runs no whole app beside a tested aiokafka
AIOKAFKA = ("aiokafka 0.13.0", "aiokafka 0.14.0")
_FAUST_TESTS = "tests/integration/test_faust_faults.py::test_"
_ENDING_TESTS = "tests/integration/test_faust_faults_endings.py::test_"
_CLIENT_TESTS = "tests/integration/test_faust_faults_clients.py::test_"


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One fault of stock Faust or aiokafka.

    Attributes:
        what: What goes wrong, and where.
        known_in: The versions in which `shown_by` shows it.
        upstream: Where its developers know of it, as owner/name#number; empty: nothing was found.
        answer: What replaces it.
        shown_by: The tests that show it in stock code.
        absent_by: The tests that show its absence here.
    """

    what: str
    known_in: tuple[str, ...]
    upstream: tuple[str, ...] = ()
    answer: str
    shown_by: tuple[str, ...]
    absent_by: tuple[str, ...]


FAULTS = {
    "holes-after-rebalance": Fault(
        what="tables/recovery.py:649 resumes the source partitions before it seeks them, then "
        "empties every queue: a stale fetch moves the read offset, the re-read records are dropped "
        "silently and the hole is booked as processed. Strikes in some of many joins; the order "
        "and the books are shown.",
        known_in=FAUST,
        upstream=("faust-streaming/faust#596",),
        answer="restore.Restore: seek with nothing in flight, then flow; "
        "transport.Consumer.getmany checks that chunks follow each other.",
        shown_by=(
            _FAUST_TESTS + "stock_resumes_partitions_before_it_seeks_them",
            _FAUST_TESTS + "stock_books_what_a_stale_fetch_jumped_over_as_processed",
        ),
        absent_by=(_FAUST_TESTS + "partitions_flow_only_behind_their_seek",),
    ),
    "live-active-set": Fault(
        what="transport/consumer.py:798 passes a live set of partitions to aiokafka, which reads "
        "an emptied one as 'all' (consumer/fetcher.py:1221) and drains paused partitions; the "
        "records are dropped.",
        known_in=AIOKAFKA,
        upstream=("robinhood/faust#69",),
        answer="chunks.fetch_chunks asks the set itself.",
        shown_by=(
            _CLIENT_TESTS + "stock_drains_every_partition_when_the_set_it_was_given_empties",
        ),
        absent_by=(
            _CLIENT_TESTS + "a_partition_that_is_paused_while_its_fetch_waits_keeps_its_records",
        ),
    ),
    "gap-commit": Fault(
        what="transport/consumer.py:1157 books gaps as acknowledged, whatever their reason.",
        known_in=FAUST_LONG,
        upstream=("faust-streaming/faust#606",),
        answer="transport.Consumer._add_gap does nothing.",
        shown_by=(_FAUST_TESTS + "stock_books_a_gap_as_acknowledged",),
        absent_by=(_FAUST_TESTS + "a_gap_is_never_committed",),
    ),
    "commit-past-unacked": Fault(
        what="transport/consumer.py:1140 commits past a message in flight.",
        known_in=FAUST_LONG,
        upstream=("faust-streaming/faust#606", "faust-streaming/faust#707"),
        answer="transport.Consumer._new_offset commits the acknowledged prefix of chunks only.",
        shown_by=(_FAUST_TESTS + "stock_commits_past_a_message_in_work",),
        absent_by=(_FAUST_TESTS + "a_chunk_in_work_holds_the_commit_back",),
    ),
    "commit-behind-commit": Fault(
        what="transport/consumer.py:947: a commit that finds another one running returns without "
        "having committed anything.",
        known_in=FAUST,
        answer="transport.Consumer.wait_empty commits twice.",
        shown_by=(_FAUST_TESTS + "stock_does_not_commit_behind_a_commit_that_is_under_way",),
        absent_by=(_FAUST_TESTS + "a_last_commit_is_made_whatever_is_under_way",),
    ),
    "zombie-writes": Fault(
        what="tables/base.py: a worker that lost its partitions can still write their changelog.",
        known_in=FAUST,
        answer="partitions.Checkpointer.fence: a transactional id per partition.",
        shown_by=(
            _FAUST_TESTS + "stock_writes_the_changelog_of_a_partition_that_another_worker_owns",
        ),
        absent_by=(_FAUST_TESTS + "a_former_owner_cannot_write_the_changelog",),
    ),
    "stop-in-rebalance": Fault(
        what="app/base.py:1848, transport/consumer.py:1414: a stop during a rebalance closes the "
        "client while its thread still waits for the main loop, for ever. Strikes where a batch is "
        "longer than the rebalance; the wait is shown.",
        known_in=FAUST_LONG,
        upstream=("robinhood/faust#484",),
        answer="app.EngineApp._on_rebalance_when_stopped, transport.Consumer._in_main_loop, and a "
        "deadline.",
        shown_by=(_FAUST_TESTS + "stock_waits_for_ever_in_a_rebalance_that_a_stop_overtook",),
        absent_by=(
            _FAUST_TESTS + "a_stop_ends_the_wait_of_a_rebalance",
            "tests/integration/test_shutdown.py"
            "::test_a_stop_at_any_moment_of_a_rebalance_is_clean_and_leaves_no_member",
        ),
    ),
    "flush-gives-up": Fault(
        what="transport/producer.py:91: ProducerBuffer.flush gives up after 100 ms with records "
        "unsent.",
        known_in=FAUST,
        upstream=("faust-streaming/faust#273",),
        answer="Every output is confirmed before its chunk is acknowledged; transport.Producer."
        "flush does nothing.",
        shown_by=(_FAUST_TESTS + "stock_gives_up_a_flush_with_records_unsent",),
        absent_by=(_FAUST_TESTS + "a_chunk_is_acknowledged_only_when_its_outputs_are_safe",),
    ),
    "take-loses": Fault(
        what="streams.py:434: an exception in the body of take() acknowledges the batch and "
        "everything behind it.",
        known_in=FAUST,
        upstream=("faust-streaming/faust#315", "faust-streaming/faust#527"),
        answer="stream.StreamService: nothing escapes; an unexpected error ends the process.",
        shown_by=(
            _ENDING_TESTS
            + "stock_acknowledges_a_batch_whose_agent_failed_and_reads_nothing_behind_it",
        ),
        absent_by=(_ENDING_TESTS + "an_engine_that_fails_ends_at_once_and_commits_nothing",),
    ),
    "silent-reset": Fault(
        what="aiokafka's fetcher (consumer/fetcher.py:891) answers a position outside of the log "
        "by beginning anew at the log's start.",
        known_in=AIOKAFKA,
        answer="positions.require_readable, at every assignment and wherever chunks "
        "do not follow each other.",
        shown_by=(_CLIENT_TESTS + "stock_begins_anew_at_the_start_of_a_log_that_lost_its_place",),
        absent_by=(
            "tests/integration/test_bad_input_log.py"
            "::test_records_deleted_before_they_were_read_end_the_worker",
            "tests/integration/test_bad_input_log.py"
            "::test_acknowledged_offsets_beyond_the_log_end_the_worker",
        ),
    ),
    "markers-uncommitted": Fault(
        what="Control records and aborted ones are never delivered, so their offsets are not "
        "committed; deleted, they look like records that nobody read.",
        known_in=AIOKAFKA,
        upstream=("aio-libs/aiokafka#911",),
        answer="chunks.take_chunks makes a chunk of them too.",
        shown_by=(_CLIENT_TESTS + "stock_delivers_nothing_by_which_markers_could_be_acknowledged",),
        absent_by=(
            _CLIENT_TESTS + "markers_and_aborted_records_come_as_a_chunk_without_records",
            "tests/integration/test_bad_input_log.py::test_aborted_records_never_happened",
        ),
    ),
    "header-names": Fault(
        what="aiokafka reads no batch with a header name that is no UTF-8.",
        known_in=AIOKAFKA,
        answer="pipeline.cluster.header_names reads it.",
        shown_by=(
            _CLIENT_TESTS + "a_header_name_that_is_no_text_stops_a_stock_consumer_but_not_ours",
        ),
        absent_by=(
            _CLIENT_TESTS + "a_header_name_that_is_no_text_stops_a_stock_consumer_but_not_ours",
        ),
    ),
    "lost-connection": Fault(
        what="On uvloop, what aiokafka sends in the moment after a connection was lost "
        "(conn.py:419) raises RuntimeError; the task that refreshes metadata (client.py:247) ends "
        "by it, and a member that looks for its coordinator waits for ever, silent. Strikes in "
        "some of many kills of a broker; what is raised, and the wait, are shown.",
        known_in=AIOKAFKA,
        answer="pipeline.cluster.lost_connections makes it the error that is expected.",
        shown_by=(
            _CLIENT_TESTS
            + "a_lost_connection_ends_the_refreshing_of_a_stock_client_but_not_of_ours",
        ),
        absent_by=(
            _CLIENT_TESTS
            + "a_lost_connection_ends_the_refreshing_of_a_stock_client_but_not_of_ours",
        ),
    ),
    "neither-key-nor-value": Fault(
        what="AIOKafkaProducer.send refuses a record with neither key nor value.",
        known_in=AIOKAFKA,
        answer="sending.send_dead_letters builds its batches itself.",
        shown_by=(
            _CLIENT_TESTS
            + "stock_sends_no_record_without_key_and_value_but_a_dead_letter_may_be_one",
        ),
        absent_by=(
            _CLIENT_TESTS
            + "stock_sends_no_record_without_key_and_value_but_a_dead_letter_may_be_one",
        ),
    ),
    "one-name-twice": Fault(
        what="aiokafka sends no instance id with heartbeats and commits: two members of one name "
        "replace each other for ever.",
        known_in=AIOKAFKA,
        upstream=("aio-libs/aiokafka#941",),
        answer="restore.Restore ends a worker that is given its own generation again.",
        shown_by=(_CLIENT_TESTS + "stock_members_of_one_name_replace_each_other_again_and_again",),
        absent_by=(
            "tests/integration/test_bad_input_broker.py"
            "::test_two_workers_of_one_name_do_not_fight_for_ever",
        ),
    ),
    "crash-commits": Fault(
        what="A part of Faust that crashes takes the app down over a stop that acknowledges and "
        "commits what is in work.",
        known_in=FAUST,
        upstream=("robinhood/faust#75",),
        answer="app.EngineApp._crash ends the process.",
        shown_by=(
            _ENDING_TESTS + "stock_acknowledges_what_is_in_work_when_any_part_of_it_crashes",
        ),
        absent_by=(_ENDING_TESTS + "an_engine_that_fails_ends_at_once_and_commits_nothing",),
    ),
    "second-of-sleep": Fault(
        what="The consumer sleeps a second when no partition is active "
        "(transport/consumer.py:808), the table manager one at start (tables/manager.py:140).",
        known_in=FAUST,
        answer="transport.Consumer._wait_next_records, restore.TableManager.on_start.",
        shown_by=(
            _ENDING_TESTS + "stock_sleeps_a_second_while_nothing_is_active",
            _ENDING_TESTS + "stock_sleeps_a_second_at_a_start",
        ),
        absent_by=(
            _ENDING_TESTS + "a_partition_that_flows_again_wakes_the_consumer",
            _ENDING_TESTS + "tables_start_at_once",
        ),
    ),
}


class VersionsUntested(PipelineError):
    """Faust or its client has a version that the engine was not tested with: install one it was."""


def untested_versions() -> str:
    """Return what is installed outside of the tested range, and that range; empty: nothing."""
    found = []
    for name, (oldest, newest) in TESTED.items():
        installed = version(name)
        if not Version(oldest) <= Version(installed) <= Version(newest):
            tested = oldest if oldest == newest else f"{oldest} to {newest}"
            found.append(f"{name} {installed} is installed, tested: {tested}")
    return "; ".join(found)


def check_versions(*, allow_untested: bool) -> None:
    """Refuse versions of which nobody knows whether the engine's overrides still meet them.

    Args:
        allow_untested: Only warn of them.

    Raises:
        VersionsUntested: Names what is installed, what is tested, and how to go on anyway.
    """
    untested = untested_versions()
    if untested and not allow_untested:
        msg = (
            f"{untested}. The engine replaces private parts of these packages: install a tested "
            "version, or go on at your own risk with --worker.allow-untested-versions True"
        )
        raise VersionsUntested(msg)
    if untested:
        logger.warning("%s; the engine replaces private parts of these packages", untested)
