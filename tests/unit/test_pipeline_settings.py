import ast
import inspect
import io
from dataclasses import FrozenInstanceError, dataclass, field, fields
from pathlib import Path
from typing import Any

import pytest
import tyro

from pipeline import settings as settings_module
from pipeline.environment import environment_flags, settings_fields, variable_name
from pipeline.errors import SettingsInvalid
from pipeline.settings import (
    BrokerSettings,
    FieldSettings,
    KafkaSettings,
    LogSettings,
    MetricsSettings,
    ModelSettings,
    RecommendSettings,
    Settings,
    SettingsFlags,
    Switch,
    TopicSettings,
    TrainerSettings,
    WorkerSettings,
    parse_command,
    settings_flags,
)


@dataclass(frozen=True, kw_only=True)
class Command:
    """Do something with a file."""

    file: tyro.conf.Positional[Path]
    """The file."""
    json: Path | None = None
    """Where the result goes."""
    settings: SettingsFlags = field(default_factory=Settings)


def parse(*argv: str, **environ: str) -> Command:
    return parse_command(Command, argv, prog="lrurec something", environ=environ)


def test_flags_come_before_the_environment_and_that_before_defaults() -> None:
    """The same setting given in both ways takes the flag's value; one given nowhere its default."""
    command = parse(
        "FILE",
        "--metrics.port",
        "1",
        LRUREC_METRICS__PORT="2",
        LRUREC_METRICS__HOST="0.0.0.0",
        PATH="/bin",
    )

    assert command.settings.metrics == MetricsSettings(port=1, host="0.0.0.0")
    assert command.settings.kafka == KafkaSettings()
    assert (command.file, command.json) == (Path("FILE"), None)


@pytest.mark.parametrize("value", ["a:1,b:2", " a:1, b:2", "a-b:1"])
def test_a_variable_arrives_as_it_is(value: str) -> None:
    """Commas and blanks in a variable of a plain text setting are part of the text."""
    assert parse("F", LRUREC_KAFKA__BOOTSTRAP_SERVERS=value).settings.kafka == KafkaSettings(
        bootstrap_servers=value
    )


@pytest.mark.parametrize("value", ["--json", "-1", "a=b", "", "None of them", "x\ny"])
def test_a_variable_is_never_taken_for_another_flag(value: str) -> None:
    """Dashes, equal signs, line ends and the empty text reach the setting."""
    password = {
        "LRUREC_KAFKA__SECURITY_PROTOCOL": "SASL_SSL",
        "LRUREC_KAFKA__PASSWORD_FILE": "password",
    }

    command = parse("F", LRUREC_KAFKA__USERNAME=value, **password)

    assert command.settings.kafka.username == value


@pytest.mark.parametrize(
    ("value", "names"),
    [
        ("view", ("view",)),
        ("view,add to cart", ("view", "add to cart")),
        (" view , cart ", ("view", "cart")),
        ('"a,b",c', ("a,b", "c")),
        ("-x,--y", ("-x", "--y")),
        ("", ()),
    ],
)
def test_names_are_separated_by_commas(value: str, names: tuple[str, ...]) -> None:
    """A list is one argument, in flag and variable alike: it leaves the file behind it alone."""
    by_variable = parse("FILE", LRUREC_FIELDS__ACCEPTED_EVENT_TYPES=value)
    by_flag = parse(f"--fields.accepted-event-types={value}", "FILE")

    assert by_variable.settings.fields.accepted_event_types == names
    assert by_flag == by_variable
    assert by_variable.file == Path("FILE")


def test_true_and_false_are_values_of_a_flag() -> None:
    """A yes-or-no setting takes True or False, in a flag and in a variable alike."""
    assert parse("F", "--recommend.exclude-seen", "True").settings.recommend.exclude_seen is True
    assert parse("F", LRUREC_RECOMMEND__EXCLUDE_SEEN="True").settings.recommend.exclude_seen is True


def test_none_switches_an_optional_setting_off() -> None:
    """The word None stands for no value."""
    assert parse("F", LRUREC_TRAINER__PERIOD_S="None").settings.trainer.period_s is None
    assert parse("F", "--fields.timestamp", "None").settings.fields.timestamp is None


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("LRUREC_KAFKA__BOOTSTRAP_SERVER", "LRUREC_KAFKA__BOOTSTRAP_SERVERS"),
        ("LRUREC_KAFKA_BOOTSTRAP_SERVERS", "LRUREC_KAFKA__BOOTSTRAP_SERVERS"),
        ("LRUREC_LOGLEVEL", "LRUREC_LOG__LEVEL"),
        ("LRUREC_FAUST_BROKER_URL", "LRUREC_"),
        ("LRUREC_", "LRUREC_"),
    ],
)
def test_an_unknown_variable_is_refused_with_the_nearest_name(name: str, nearest: str) -> None:
    """A mistyped variable is an error that names it and the one that was probably meant."""
    with pytest.raises(SettingsInvalid, match=rf"{name}: no such setting; nearest is {nearest}"):
        parse("F", **{name: "x"})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("LRUREC_PORT", "tcp://10.0.0.1:80"),
        ("LRUREC_WORKER_PORT_9108_TCP_ADDR", "10.0.0.1"),
        ("LRUREC_WORKER_SERVICE_HOST", "10.0.0.1"),
        ("LRUREC_SERVICE_PORT_METRICS", "9108"),
    ],
)
def test_the_variables_of_kubernetes_are_none_of_ours(name: str, value: str) -> None:
    """It sets them in every container of a namespace with a service named lrurec."""
    assert parse("F", **{name: value}).settings == Settings()
    with pytest.raises(SettingsInvalid, match="nearest is LRUREC_METRICS__PORT"):
        parse("F", LRUREC_METRICS_PORT="9108")


def test_a_signal_while_arguments_are_read_is_no_wrong_argument(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A supervisor does not restart what ends with 2."""

    def interrupted(*_: object, **__: object) -> None:
        raise SystemExit(143)

    monkeypatch.setattr(tyro, "cli", interrupted)

    with pytest.raises(SystemExit) as ended:
        parse("F")
    assert ended.value.code == 143


def test_every_setting_has_a_variable() -> None:
    """Every setting can be given by its variable; no two share one."""
    names = [variable_name(name) for name, _ in settings_fields(Settings())]

    flags = environment_flags(dict.fromkeys(names, "x"), Settings())

    assert len(set(names)) == len(names) == len(flags)


def test_a_value_that_cannot_be_read_is_told_with_its_origin() -> None:
    """A wrong value from the environment is explained, and where it came from is said."""
    with pytest.raises(
        SettingsInvalid,
        match=r"--metrics\.port: .*'many'.*; flags from the environment: --metrics\.port=many$",
    ):
        parse("F", LRUREC_METRICS__PORT="many", LRUREC_LOG__LEVEL="INFO")


def test_the_environment_is_not_told_of_where_it_is_not_to_blame() -> None:
    """A missing file of the command line is no matter of the variables."""
    with pytest.raises(SettingsInvalid) as refused:
        parse(LRUREC_LOG__LEVEL="INFO")

    assert "FILE" in str(refused.value) or "PATH" in str(refused.value)
    assert "environment" not in str(refused.value)


def test_a_broken_rule_is_told_with_its_origin() -> None:
    """Also where the message has the setting's name, not the flag's."""
    with pytest.raises(
        SettingsInvalid, match=r"training\.batch_size must .*--training.batch-size=0$"
    ):
        parse("F", LRUREC_TRAINING__BATCH_SIZE="0", LRUREC_LOG__LEVEL="INFO")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--training.batch-size", "0"], "training.batch_size must be at least 1, got 0"),
        (["--store.max-open-files=1"], "store.max_open_files must be 16 to 2147483647, got 1"),
        (
            ["--training.batch-size", "x"],
            "Error parsing --training.batch-size: invalid literal for int() with base 10: 'x'",
        ),
        (
            ["--log.level", "LOUD"],
            "invalid choice 'LOUD' for argument '--log.level'. "
            "Expected one of ('DEBUG', 'INFO', 'WARNING', 'ERROR')",
        ),
        (
            ["--metrics.prot=1"],
            "Unrecognized options: --metrics.prot=1; perhaps you meant --metrics.port",
        ),
        (
            ["--metrics.prot", "1", "--log.levle", "INFO"],
            "Unrecognized options: --metrics.prot, 1, --log.levle, INFO; "
            "perhaps you meant --log.level, --metrics.port",
        ),
        (
            ["--kafka.password", "S3cr3t", "--kafka.PASSWD=S3=cr3t", "--pass", "-S3cr3t"],
            "Unrecognized options: --kafka.password, ***, --kafka.PASSWD=***, --pass, ***; "
            "perhaps you meant --kafka.password-file",
        ),
        (
            ["--kafka.password-file", "a", "--kafka.password_file=b", "--metrics.prot=1"],
            "Unrecognized options: --metrics.prot=1; perhaps you meant --metrics.port",
        ),
        (
            ["--training.seed", str(2**63)],
            f"training.seed must be at least 0 and below 2^63, got {2**63}",
        ),
        (["--json"], "Missing value for argument '--json'. Expected 1 values"),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_wrong_arguments_are_told_in_one_line(
    monkeypatch: pytest.MonkeyPatch, encoding: str, argv: list[str], message: str
) -> None:
    """The parser's drawing is not passed on, whatever it draws with."""
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(io.BytesIO(), encoding))

    with pytest.raises(SettingsInvalid) as refused:
        parse("F", *argv)

    assert str(refused.value) == message


@pytest.mark.parametrize(
    ("section", "wrong", "message"),
    [
        (KafkaSettings, {"bootstrap_servers": "localhost"}, "bootstrap_servers must be host:port"),
        (KafkaSettings, {"bootstrap_servers": "a:1,"}, "bootstrap_servers must be host:port"),
        (KafkaSettings, {"fetch_min_bytes": 0}, "fetch_min_bytes must be over 0 and at most"),
        (KafkaSettings, {"session_timeout_s": float("nan")}, "session_timeout_s must be over 0"),
        (KafkaSettings, {"bootstrap_servers": "a:65536"}, "bootstrap_servers must be host:port"),
        (KafkaSettings, {"heartbeat_interval_s": 4.0}, "heartbeat_interval_s must be at most"),
        (KafkaSettings, {"security_protocol": "SASL_SSL"}, "username must be given for SASL"),
        (
            KafkaSettings,
            {"security_protocol": "SASL_SSL", "username": "u"},
            "password_file must be given for SASL",
        ),
        (
            KafkaSettings,
            {"security_protocol": "SSL", "ssl_key_file": Path("k")},
            "must be given both or neither",
        ),
        (KafkaSettings, {"username": "u"}, "username must be given only with .*SASL_SSL"),
        (
            KafkaSettings,
            {"security_protocol": "SSL", "password_file": Path("p")},
            r"password_file must be given only with .*it is SSL\), got 'p'$",
        ),
        (
            KafkaSettings,
            {"ssl_ca_file": Path("c")},
            "ssl_ca_file must be given only with .* SSL or",
        ),
        (
            KafkaSettings,
            {"ssl_cert_file": Path("c"), "ssl_key_file": Path("k")},
            "ssl_cert_file must be given only with",
        ),
        (
            KafkaSettings,
            {"group_instance_id": ""},
            "kafka.group_instance_id must be 1 to 249 letters",
        ),
        (KafkaSettings, {"group_instance_id": "a b"}, "kafka.group_instance_id must be 1 to 249"),
        (TopicSettings, {"interactions": "a b"}, "topics.interactions must be 1 to 249 letters"),
        (TopicSettings, {"models": ""}, "topics.models must be 1 to 249 letters"),
        (TopicSettings, {"users": ".."}, "topics.users must be 1 to 249 letters"),
        (
            TopicSettings,
            {"dead_letters": "lrurec.interactions.v1"},
            "dead_letters must be another topic than topics.interactions",
        ),
        (TopicSettings, {"partitions": 0}, "topics.partitions must be over 0 and at most"),
        (TopicSettings, {"replication_factor": 0}, "topics.replication_factor must be 1 to"),
        (FieldSettings, {"user_id": ""}, "fields.user_id must be names joined by single dots"),
        (FieldSettings, {"user_id": "None"}, "fields.user_id must be a path"),
        (FieldSettings, {"item_id": "a..b"}, "fields.item_id must be names joined by single dots"),
        (FieldSettings, {"user_id": 'a"'}, "fields.user_id must be free of quotes"),
        (FieldSettings, {"event_id": "a\\u0041"}, "fields.event_id must be free of quotes"),
        (FieldSettings, {"item_id": "a\n"}, "fields.item_id must be free of quotes"),
        (FieldSettings, {"timestamp": "\udcff"}, "fields.timestamp must be free of quotes"),
        (FieldSettings, {"user_id": "a", "item_id": "a.b"}, "fields.user_id must be no part of"),
        (FieldSettings, {"accepted_event_types": ("a", "")}, "must be without empty names"),
        (
            FieldSettings,
            {"accepted_event_types": ("a",), "event_type": None},
            "fields.event_type must be a path",
        ),
        (FieldSettings, {"max_id_bytes": 0}, "fields.max_id_bytes must be over 0, got 0"),
        (
            FieldSettings,
            {"max_future_s": -1.0},
            "fields.max_future_s must be finite and at least 0, got -1",
        ),
        (FieldSettings, {"max_future_s": float("inf")}, "fields.max_future_s must be"),
        (WorkerSettings, {"app_id": "a b"}, "worker.app_id must be 1 to 200 letters"),
        (WorkerSettings, {"batch_events": 0}, "worker.batch_events must be over 0, got 0"),
        (WorkerSettings, {"hot_rows": -1}, "worker.hot_rows must be at least"),
        (WorkerSettings, {"threads": 0}, "worker.threads must be over 0 and at most"),
        (WorkerSettings, {"device": "gpu"}, "worker.device must be auto, cpu, cuda or cuda:N"),
        (WorkerSettings, {"device": "cuda:300"}, "worker.device must be auto, cpu, cuda or cuda:N"),
        (
            WorkerSettings,
            {"restore_deadline_s": 1e10},
            "worker.restore_deadline_s must be over 0 and at most 1000000, got 1",
        ),
        (RecommendSettings, {"top_k": 0}, "recommend.top_k must be over 0, got 0"),
        (
            RecommendSettings,
            {"ring": 100_001},
            "recommend.ring must be over 0 and at most 100000, got 100001",
        ),
        (
            ModelSettings,
            {"max_length": 100_001},
            "model.max_length must be at most 100000, got 100001",
        ),
        (ModelSettings, {"dropout": 1.0}, "model.dropout must be in"),
        (ModelSettings, {"max_length": 1}, "model.max_length must be at least 2"),
        (TrainerSettings, {"period_s": 0.0}, "trainer.period_s must be over 0, got 0.0"),
        (MetricsSettings, {"port": 65536}, "metrics.port must be a port, 0 to 65535, got 65536"),
        (MetricsSettings, {"port": -1}, "metrics.port must be a port, 0 to 65535, got -1"),
        (MetricsSettings, {"host": ""}, "metrics.host must be an address, got ''"),
        (MetricsSettings, {"host": " \t"}, "metrics.host must be an address, got "),
        (MetricsSettings, {"host": "a..b"}, "metrics.host must be an address, got 'a..b'"),
        (BrokerSettings, {"host": ""}, "broker.host must be an address, got ''"),
        (BrokerSettings, {"port": -1}, "broker.port must be a port"),
        (BrokerSettings, {"heap_mib": 1}, "broker.heap_mib must be at least 128, got 1"),
    ],
)
def test_a_value_that_breaks_its_rule_is_refused(
    section: type, wrong: dict[str, Any], message: str
) -> None:
    """The error has the field, the rule and the value."""
    with pytest.raises(SettingsInvalid, match=message):
        section(**wrong)


def test_settings_become_flags_that_rebuild_them() -> None:
    """A process started with the flags of these settings has these settings."""
    settings = Settings(
        kafka=KafkaSettings(
            bootstrap_servers="a:1,b:2",
            security_protocol="SASL_SSL",
            username="--me",
            password_file=Path("a file"),
            heartbeat_interval_s=0.1,
        ),
        fields=FieldSettings(timestamp=None, accepted_event_types=("a,b", 'c"', "-d")),
        recommend=RecommendSettings(exclude_seen=True, ring=7),
        trainer=TrainerSettings(period_s=None, window_events=5),
        log=LogSettings(format="json"),
    )

    flags = settings_flags(settings)

    assert parse("F", *flags).settings == settings
    assert settings_flags(Settings()) == []


def test_settings_cannot_be_changed() -> None:
    """No code can change a setting under another's feet."""
    with pytest.raises(FrozenInstanceError):
        Settings().log.level = "DEBUG"  # type: ignore[misc]


def test_the_model_takes_its_configuration_from_the_settings() -> None:
    """State size follows the hidden size, the ring follows the window unless it is set."""
    settings = Settings(model=ModelSettings(hidden_size=8, max_length=20))

    assert settings.model.config(n_items=5).state_size == 16
    assert settings.model.config(n_items=5).n_items == 5
    assert settings.ring == 20
    assert Settings(recommend=RecommendSettings(ring=3)).ring == 3


def test_every_setting_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    """Every field of every section has a text under it, and --help shows every flag."""
    sections = {type(getattr(Settings(), section.name)) for section in fields(Settings)}
    undocumented = [
        f"{section.__name__}.{name}"
        for section in sections
        for name in _fields_without_text(section)
    ]

    with pytest.raises(SystemExit) as stop:
        parse("--help")

    assert undocumented == []
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    flags = [f"--{name.replace('_', '-')}" for name, _ in settings_fields(Settings())]
    assert [flag for flag in flags if flag not in shown] == []


def _fields_without_text(section: type) -> list[str]:
    body = ast.parse(inspect.getsource(section)).body[0].body  # type: ignore[attr-defined]
    return [
        line.target.id
        for line, below in zip(body, [*body[1:], None], strict=True)
        if isinstance(line, ast.AnnAssign)
        and isinstance(line.target, ast.Name)
        and not (isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant))
    ]


def test_the_settings_need_no_secret() -> None:
    """No setting holds a password itself: what names one is the path of a file."""
    secret = [name for name, _ in settings_fields(Settings()) if "password" in name]

    assert secret == ["kafka.password_file"]
    assert "Path" in str(settings_module.KafkaSettings.__annotations__["password_file"])


@dataclass(frozen=True, kw_only=True)
class Switched:
    """Do something."""

    all: Switch = False
    """All of it."""
    settings: SettingsFlags = field(default_factory=Settings)


@pytest.mark.parametrize(
    ("argv", "on"),
    [
        ([], False),
        (["--all"], True),
        (["--all", "True"], True),
        (["--all=False"], False),
        (["--all", "--metrics.port", "1"], True),
    ],
)
def test_a_switch_is_on_by_its_name_alone(argv: list[str], on: bool) -> None:
    """`--all` is enough; True and False are understood as everywhere."""
    assert parse_command(Switched, argv, prog="lrurec something", environ={}).all is on


def test_a_switch_takes_no_other_value() -> None:
    """A value that is none ends the command and is named."""
    with pytest.raises(SettingsInvalid, match="expected nothing, True or False, got yes"):
        parse_command(Switched, ["--all", "yes"], prog="lrurec something", environ={})


@pytest.mark.parametrize(("port", "expected"), [(None, (9108, 9109)), (17, (17, 17)), (0, (0, 0))])
def test_worker_and_trainer_do_not_meet_on_one_port(
    port: int | None, expected: tuple[int, int]
) -> None:
    """Both run on one machine as they are; a port that is given holds for either."""
    metrics = MetricsSettings(port=port)

    assert (metrics.worker_port, metrics.trainer_port) == expected
