"""`lrurec <command> ...`, also `python -m pipeline <command> ...`: the outermost frame.

Exit codes: 0 done; 1 an error that one line on stderr explains; 2 wrong arguments or settings; 70 a
bug, with its traceback; 130 Ctrl-C; 141 nobody reads stdout any more; 143 SIGTERM. A worker that
had to end itself has codes of its own, see `pipeline.engine.stop`.
"""

import atexit
import difflib
import errno
import importlib
import logging
import os
import select
import signal
import sys
import traceback
from collections.abc import Mapping, Sequence
from typing import NamedTuple, NoReturn

from models.errors import ModelError
from pipeline.errors import PipelineError, SettingsInvalid
from pipeline.log import configure_logging, is_json
from pipeline.printable import escaped
from pipeline.setting_checks import check_output_file
from pipeline.settings import parse_command
from state.errors import StateError

logger = logging.getLogger(__name__)

FULL_OR_BROKEN = {errno.ENOSPC, errno.EDQUOT, errno.EIO}
"""What a disk may answer that is no bug of ours."""


class Entry(NamedTuple):
    """A command: its module, with `Command` (a dataclass) and `run(command) -> int`, and its help.

    Modules are imported when their command is called: most need torch or a Kafka client, some not.
    """

    module: str
    help: str


COMMANDS: Mapping[str, Entry] = {
    "demo": Entry("pipeline.commands.demo", "the whole loop on bundled or given data"),
    "broker": Entry("pipeline.commands.broker", "start, stop or look at the local Kafka"),
    "topics": Entry("pipeline.commands.topics", "create or check the topics"),
    "worker": Entry("pipeline.commands.worker", "the stream: events in, recommendations out"),
    "replay": Entry("pipeline.commands.replay", "send a file of interactions into the topic"),
    "train": Entry("pipeline.commands.train", "train on the topic, release and announce"),
    "trainer": Entry("pipeline.commands.trainer", "train again and again, as events come in"),
    "evaluate": Entry("pipeline.commands.evaluate", "rank by the published protocol on a file"),
    "import-checkpoint": Entry(
        "pipeline.commands.import_checkpoint", "make a release of the authors' checkpoint"
    ),
    "users": Entry("pipeline.commands.users", "forget a user, or block items for one"),
    "announce": Entry("pipeline.commands.announce", "make workers serve a release"),
    "score": Entry("pipeline.commands.score", "one answer offline, by scan and by steps"),
    "verify": Entry("pipeline.commands.verify", "hold every state against the log"),
    "watch": Entry("pipeline.commands.watch", "follow recommendations with titles"),
    "bench": Entry("pipeline.commands.bench", "measure this machine"),
}


def main(argv: Sequence[str] | None = None, commands: Mapping[str, Entry] = COMMANDS) -> int:
    """Run one command and return its exit code.

    Args:
        argv: The arguments; None: those of this process, which then also answers SIGTERM by
            unwinding, so that what a command started is stopped with it.
        commands: The commands there are.
    """
    if argv is None:
        argv = sys.argv[1:]
        signal.signal(signal.SIGTERM, _unwind)
        atexit.register(say_no_more)  # the first to be registered is the last to be called
    if not argv or argv[0] in {"-h", "--help"}:
        print(_usage(commands))
        return 0
    name, *arguments = argv
    if name not in commands:
        near = difflib.get_close_matches(name, commands, n=1)
        hint = f"did you mean {near[0]}?" if near else "see lrurec --help"
        print(f"lrurec: no command {name!r}; {hint}", file=sys.stderr)
        return 2
    prog = f"lrurec {name}"
    try:
        return _run(commands[name], arguments, prog)
    except SettingsInvalid as error:
        return _fail(prog, error, 2)
    except (PipelineError, ModelError, StateError) as error:
        return _fail(prog, error, 1)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError as error:
        if _stdout_is_open():
            return _fail_by_bug(prog, error)
        return 128 + signal.SIGPIPE
    except OSError as error:
        refused = _refusal_of_stdout() if error.errno in FULL_OR_BROKEN else None
        return _fail_by_bug(prog, error) if refused is None else _fail(prog, refused, 1)
    except Exception as error:
        return _fail_by_bug(prog, error)


def _run(entry: Entry, arguments: Sequence[str], prog: str) -> int:
    module = importlib.import_module(entry.module)
    try:
        command = parse_command(module.Command, arguments, prog=prog)
    except SystemExit as exit_:  # help was asked for
        return int(exit_.code or 0)
    configure_logging(command.settings.log)
    check_output_file("--json", getattr(command, "json", None))  # some have no report
    code: int = module.run(command)
    sys.stdout.flush()  # while a reader that is gone can still be told from a bug
    return code


def _usage(commands: Mapping[str, Entry]) -> str:
    width = max(map(len, commands))
    lines = [f"  {name:{width}}  {entry.help}" for name, entry in commands.items()]
    return "\n".join(
        [
            "usage: lrurec COMMAND [OPTIONS]",
            "",
            *lines,
            "",
            "lrurec COMMAND --help lists a command's options and every setting.",
            "A setting may also come from the environment: --log.level is LRUREC_LOG__LEVEL.",
        ]
    )


def _fail(prog: str, error: Exception, code: int) -> int:
    logger.debug("where it came from", exc_info=error)
    line = f"{prog}: {' '.join(str(error).split())}"
    if is_json():
        logger.error(line)
    else:
        print(escaped(line), file=sys.stderr)
    return code


def _fail_by_bug(prog: str, error: Exception) -> int:
    line = f"{prog}: this is a bug in the program, please report it"
    if is_json():
        logger.critical(line, exc_info=error)
    else:
        traceback.print_exception(error)
        print(line, file=sys.stderr)
    return 70


def _stdout_is_open() -> bool:
    """Tell whether stdout still has a reader; if not, let nothing more be written to it."""
    try:
        descriptor = sys.stdout.fileno()
    except OSError:  # a text in memory
        return True
    poll = select.poll()
    poll.register(descriptor, 0)
    if not poll.poll(0):  # else an error or a hang-up, the only events that need no asking
        return True
    os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
    return False


def _refusal_of_stdout() -> OSError | None:
    """Return why stdout cannot be written, and let nothing more be; None: it can."""
    try:
        print(flush=True)  # an error does not tell which file it is of, but it comes again
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OSError(f"stdout cannot be written: {error.strerror}")
    return None


def say_no_more() -> None:
    """Close stderr for what comes after Python: libraries in C++ that list what they leaked."""
    sys.stderr.flush()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def _unwind(_signal: int, _frame: object) -> NoReturn:
    sys.exit(128 + signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
