"""Every setting: one frozen object, built once per process and handed down in parts.

Flags come before environment variables, those before the defaults of the sections.

This module must stay cheap to import (no torch, no Kafka client): every command starts with it.
"""

import io
import os
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass, field
from typing import Annotated, TypeVar

import tyro

from models.config import TrainingConfig
from pipeline.argument_errors import in_one_line, without_passwords
from pipeline.environment import environment_flags, flag_name, settings_fields
from pipeline.errors import SettingsInvalid
from pipeline.setting_kinds import Names, Switch, join_names
from pipeline.setting_sections import (
    BrokerSettings,
    LogSettings,
    MetricsSettings,
    ModelSettings,
    RecommendSettings,
    TrainerSettings,
    WorkerSettings,
)
from pipeline.setting_sections_kafka import FieldSettings, KafkaSettings, TopicSettings
from state.rocks import RocksOptions

__all__ = [
    "BrokerSettings",
    "FieldSettings",
    "KafkaSettings",
    "LogSettings",
    "MetricsSettings",
    "ModelSettings",
    "Names",
    "RecommendSettings",
    "Settings",
    "SettingsFlags",
    "Switch",
    "TopicSettings",
    "TrainerSettings",
    "WorkerSettings",
    "parse_command",
    "settings_flags",
]

CommandT = TypeVar("CommandT")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All settings."""

    kafka: KafkaSettings = field(default_factory=KafkaSettings)
    topics: TopicSettings = field(default_factory=TopicSettings)
    fields: FieldSettings = field(default_factory=FieldSettings)
    worker: WorkerSettings = field(default_factory=WorkerSettings)
    recommend: RecommendSettings = field(default_factory=RecommendSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    trainer: TrainerSettings = field(default_factory=TrainerSettings)
    store: RocksOptions = field(default_factory=RocksOptions)
    metrics: MetricsSettings = field(default_factory=MetricsSettings)
    log: LogSettings = field(default_factory=LogSettings)
    broker: BrokerSettings = field(default_factory=BrokerSettings)

    @property
    def ring(self) -> int:
        """Recent items that a state row remembers."""
        return self.recommend.ring or self.model.max_length


SettingsFlags = Annotated[Settings, tyro.conf.arg(name="")]
"""Type of a command's `settings` field: its sections become flags without a prefix."""


def parse_command(
    command: type[CommandT],
    argv: Sequence[str],
    *,
    prog: str,
    environ: Mapping[str, str] | None = None,
) -> CommandT:
    """Build a command's dataclass from flags, environment and defaults.

    Args:
        command: A frozen dataclass; its field `settings: SettingsFlags` takes every setting.
        argv: The arguments behind the command's name.
        prog: How the command is called, for help and errors.
        environ: The variables; None: this process's own.

    Raises:
        SettingsInvalid: A variable names no setting, a value breaks a rule, or arguments are
            unknown, missing or cannot be read.
        SystemExit: With 0 after `--help`.
    """
    if environ is None:
        environ = os.environ  # noqa: TID251  # the one place that reads it
    flags = environment_flags(environ, Settings())
    try:
        with redirect_stderr(io.StringIO()) as drawn:
            return tyro.cli(
                command,
                prog=prog,
                args=without_passwords([*flags, *argv]),
                config=(tyro.conf.FlagConversionOff,),
            )
    except SystemExit as exit_:
        if not (exit_.code and drawn.getvalue()):  # help was asked for, or a signal ends it
            raise
        line = in_one_line(drawn.getvalue())
        concerned = [flag for flag in flags if _is_named(flag, line)]
        origin = f"; flags from the environment: {' '.join(concerned)}" if concerned else ""
        raise SettingsInvalid(line + origin) from exit_


def _is_named(flag: str, line: str) -> bool:
    """Tell whether a message speaks of a flag, as such or as the setting that it is."""
    name = flag.partition("=")[0]
    return name in line or name.removeprefix("--").replace("-", "_") in line


def settings_flags(settings: Settings, *, complete: bool = False) -> list[str]:
    """Return the flags that rebuild these settings in another process.

    Args:
        settings: The settings.
        complete: Name also what is as by default, so that no variable of the environment, which the
            other process inherits, changes it.
    """
    defaults = dict(settings_fields(Settings()))
    return [
        f"{flag_name(name)}={join_names(value) if isinstance(value, tuple) else value}"
        for name, value in settings_fields(settings)
        if complete or value != defaults[name]
    ]
