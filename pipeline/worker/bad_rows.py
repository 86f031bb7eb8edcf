"""State rows that must not be used: the process ends, and the line says whose they are."""

from typing import NoReturn

from pipeline.engine.stop import ExitCode, end_process
from state.store import StateStore


def end_by_damaged_row(store: StateStore, changelog: str, partition: int, key: bytes) -> NoReturn:
    """End the process because of a row whose bytes are not those that were written."""
    store.destroy(partition)
    end_process(
        ExitCode.DAMAGED_ROW,
        "partition %d: a local state row is damaged (checksum). The partition's local copy was "
        "removed; start the worker again and it is restored from the changelog. Where it says "
        "so again, the changelog's row is damaged too: send a null value with key %a to "
        "partition %d of %s, and the user begins anew.",
        partition,
        key,
        partition,
        changelog,
    )


def end_by_forged_row(changelog: str, partition: int, key: bytes, version: int) -> NoReturn:
    """End the process because of a state that no release can have made; `version` serves."""
    end_process(
        ExitCode.DAMAGED_ROW,
        "partition %d: the state of user %a gives no numbers as scores, which no state does that "
        "a release has made: something else wrote to partition %d of %s. Send a null value with "
        "that key there, start the worker again, and the user begins anew. Where it says so of one "
        "user after another, announce another release than %d.",
        partition,
        key,
        partition,
        changelog,
        version,
    )
