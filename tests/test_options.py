"""What a user can get wrong is one clear error before anything is trained, and what the user wrote is printed as it is."""

import shutil
import tomllib
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from rich.table import Table
from typer.testing import CliRunner

from benchmarks import cli, spec
from benchmarks.record import Record
from benchmarks.run import schedule
from benchmarks.spec import SpecError
from benchmarks.tracking import StoreError

DIGITS = (spec.HERE / "profiles" / "digits.toml").read_text()


def invoke(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(cli.app, list(words))
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, " ".join(result.output.split())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("run", "table1", "--rows", ""), "table1 has no row ''; its rows: 1, 2"),
        (("run", "--rows", ""), "--rows needs exactly one table"),
        (("run", "table1", "--rows", "[/]"), "table1 has no row '[/]'"),
        (("run", "[/red]"), "unknown table '[/red]'"),
        (("list", "[bold]x"), "unknown table '[bold]x'"),
        (("run", "table1", "--device", "[/]"), "unknown device '[/]'"),
        (("run", "table1", "--profile", "[/]"), "unknown profile '[/]'"),
        (("run", "table1", "--profile", "../specs/table1"), "unknown profile '../specs/table1'"),
    ],
)
def test_names_that_do_not_exist_and_brackets_on_the_command_line(words: tuple[str, ...], message: str) -> None:
    code, output = invoke(*words)
    assert code == 1
    assert message in output


@pytest.mark.parametrize("option", ["--seeds", "--jobs"])
def test_none_at_all_is_no_number_of_seeds_or_jobs(option: str) -> None:
    assert invoke("run", "table1", option, "0")[0] == 2


def test_what_libraries_say_is_printed_whole(capsys: pytest.CaptureFixture[str]) -> None:
    cli.say("expected [2, 3], got [/tmp/x] and [bold]", "failed")
    assert capsys.readouterr().out.strip() == "failed expected [2, 3], got [/tmp/x] and [bold]"
    view = Table("label")
    view.add_row("[/] and [bold]")
    cli.console.print(view)
    assert "[/] and [bold]" in capsys.readouterr().out


def test_bars_show_brackets_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    class Named:
        name = "[/] net"

    job: Any = schedule.Job("table1", Named(), 42)
    bars = cli.Bars(1)
    bars.show(job, schedule.Note("[/a] is away"))
    bars.bars.add_task("[/] net", rate="[/b] images/s", total=1)
    cli.console.print(bars.bars.get_renderable(), width=200)
    shown = capsys.readouterr().out
    assert all(text in shown for text in ("[/a] is away", "[/] net", "[/b] images/s"))


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("epochs = 15", "epochs = 15\nlearn_rate = 1", "learn_rate"),
        ("learning_rate = 0.05", "learning_rate = inf", "learning_rate"),
        ("learning_rate = 0.05", "learning_rate = nan", "learning_rate"),
        ("learning_rate = 0.05", "learning_rate = 0", "learning_rate"),
        ("learning_rate = 0.05", "learning_rate = 1e308", "learning_rate"),
        ("epochs = 15", "epochs = 15\naccumulate = 1e24", "accumulate"),
        ("epochs = 15", "epochs = 15\nwarmup_epochs = 16", "warmup_epochs = 16 are more than the 15 epochs"),
        ("epochs = 15", "epochs = " + "9" * 5000, "integer string conversion"),
        ("epochs = 15", "epochs = " + "[" * 3000, "recursion"),
        ("epochs = 15", "epochs = 15\nbatch_size = 1e12", "batch_size"),
        ("epochs = 15", "epochs = 15\nbatch_size = 0", "batch_size"),
        ("epochs = 15", "epochs = 15\nmomentum = 1.5", "momentum"),
        ("epochs = 15", "epochs = 15\nweight_decay = -1", "weight_decay"),
        ("learning_rate = 0.005", "learning_rat = 0.005", "learning_rat"),
        ("[ann.base]", '[ann.dataset."ImageNet-2k"]\nepochs = 3\n[ann.base]', "ImageNet-2k"),
        ("width = 0.0625", "width = 0", "the width of ResNet-19 is a number above 0"),
        ("width = 0.0625", "width = -1", "the width of ResNet-19 is a number above 0"),
        ("width = 0.0625", "width = nan", "the width of ResNet-19 is a number above 0"),
        ("width = 0.0625", 'width = "1"', "the width of ResNet-19 is a number above 0"),
        ("threads = 1", "threads = 0", "threads"),
        ("qcfs_scale = 2.0", "qcfs_scale = inf", "qcfs_scale"),
    ],
)
def test_nonsense_in_a_profile_is_named_when_it_is_read(before: str, after: str, message: str, tmp_path: Path) -> None:
    assert before in DIGITS
    path = tmp_path / "mine.toml"
    path.write_text(DIGITS.replace(before, after, 1))
    with pytest.raises(SpecError, match=r"mine\.toml is not valid: ") as caught:
        spec.read(path, spec.Profile)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("before", ['[ann.architecture."ResNet-34"]', '"ResNet-34" = {'])
def test_a_network_that_no_row_of_a_profile_has_is_an_error(
    before: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert before in DIGITS
    shutil.copytree(spec.HERE / "specs", tmp_path / "specs")
    shutil.copytree(spec.HERE / "published", tmp_path / "published")
    (tmp_path / "profiles").mkdir()
    (tmp_path / "profiles" / "mine.toml").write_text(DIGITS.replace(before, before.replace("34", "43"), 1))
    monkeypatch.setattr(spec, "HERE", tmp_path)
    with pytest.raises(
        SpecError, match=r"mine\.toml: none of its rows has a network 'ResNet-43'; they have ResNet-18, "
    ):
        spec.load_profile("mine")


@pytest.mark.parametrize("change", [{"levels": 0}, {"steps": 0}, {"tq": 0, "start": "exact"}, {"neuron": "if"}])
def test_a_row_that_no_neuron_can_follow_is_an_error(change: dict[str, Any]) -> None:
    fine = {"id": "1", "label": "x", "dataset": "CIFAR-10", "architecture": "ResNet-18", "neuron": "lmht", "levels": 2}
    assert spec.Row(**fine).levels == 2
    with pytest.raises(ValueError, match="validation error"):
        spec.Row(**fine | change)


def test_a_file_that_is_not_utf_8_is_named(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes('title = "Münster"'.encode("latin-1"))
    with pytest.raises(SpecError, match=r"mine\.toml is not valid: .*utf-8"):
        spec.read(path, spec.Profile)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dataset": "digit"}, "unknown data set 'digit'; known: "),
        ({"architecture": "ResNet18"}, "unknown architecture 'ResNet18'; known: "),
        ({"network": {"widht": 1.0}}, "unexpected keyword argument 'widht'"),
        ({"architecture": "Transformer-4-384", "network": {"heads": 0}}, "can't be built with {'heads': 0}"),
        (
            {"recipe": spec.Recipe(learning_rate=1, epochs=1, validation=0.9999999)},
            "validation = 0.9999999 leaves less",
        ),
        (
            {"recipe": spec.Recipe(learning_rate=1, epochs=1, validation=1e-9)},
            "validation = 1e-09 leaves no validation",
        ),
    ],
)
def test_cells_are_checked_before_anything_is_trained(
    change: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = schedule.jobs_of({"table1": spec.load_spec("table1").row[:1]}, spec.load_profile("digits"), 1)
    bad = schedule.Job("table1", jobs[0].cell.model_copy(update=change), 42)
    monkeypatch.setattr(cli, "jobs_of", lambda *_: [*jobs, bad])
    monkeypatch.setattr(cli, "Store", lambda *_: pytest.fail("the store was opened"))
    code, output = invoke("run", "table1", "--rows", "1")
    assert code == 1
    assert message in output


def test_every_profiles_cells_pass_the_check() -> None:
    for name in spec.profiles():
        profile = spec.load_profile(name)
        rows = {
            table: [row for row in spec.load_spec(table).row if row.dataset in profile.datasets]
            for table in spec.tables()
        }
        schedule.check(schedule.jobs_of(rows, profile, 1))


@pytest.mark.parametrize(
    "where", ["nosuchprotocol://me:secret@x", "file/state", "/proc/state", "http://me:secret@127.0.0.1:9/x"]
)
def test_a_place_where_no_state_can_be_kept_is_named_at_the_start(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_database: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{shutil.copy(empty_database, tmp_path / 'm.db')}")
    code, output = invoke("run", "table1", "--rows", "1", "--jobs", "1", "--state-dir", where)
    assert code == 1
    assert "states can't be kept in" in output
    assert "secret" not in output
    assert "name a folder that can be written to" in output


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=9), st.lists(st.integers(), max_size=2)
)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_whatever_stands_in_a_profile_it_is_a_profile_or_an_error_of_ours(data: st.DataObject) -> None:
    tree: Any = tomllib.loads(DIGITS)
    place = tree
    while True:
        key = data.draw(st.sampled_from([*sorted(place), "new key"]))
        if not isinstance(place.get(key), dict) or data.draw(st.booleans()):
            break
        place = place[key]
    place[key] = data.draw(VALUES | st.dictionaries(st.text(max_size=3), VALUES, max_size=2))
    with pytest.MonkeyPatch.context() as patch, suppress(SpecError):
        patch.setattr(spec.tomllib, "loads", lambda text: tree)
        profile = spec.read(spec.HERE / "profiles" / "digits.toml", spec.Profile)
        patch.undo()
        rows = [row for row in spec.load_spec("table4").row if row.dataset in profile.datasets]
        schedule.check(schedule.jobs_of({"table4": rows[:3]}, profile, 1))


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=99))
def test_bytes_are_no_profile(content: bytes) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "read_text", lambda self, encoding: content.decode(encoding))
        with pytest.raises(SpecError):
            spec.read(Path("mine.toml"), spec.Profile)


@settings(max_examples=50, deadline=None)
@given(st.sampled_from(["--rows", "--profile", "--device"]), st.text(min_size=1, max_size=12))
def test_no_text_on_the_command_line_is_a_traceback(option: str, text: str) -> None:
    assume(not text.startswith("-"))

    def never(profile: str) -> None:
        raise StoreError(f"{profile} is not opened here")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli, "Store", never)
        assert invoke("run", "table1", option, text)[0] in (1, 2)


def test_a_place_that_cannot_be_written_to_is_one_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_database: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{shutil.copy(empty_database, tmp_path / 'm.db')}")
    failed = Record(
        table="table1", title="", cell=spec.content_hash({}), seed=1, config={}, provenance={}, status="failed"
    )
    monkeypatch.setattr(cli.Store, "records", lambda self: [failed])
    code, output = invoke("export", str(tmp_path / "file" / "runs.jsonl"))
    assert code == 1
    assert "error: [Errno" in output
    assert f"{tmp_path}/file" in output.replace(" ", "")


def test_what_devices_cannot_share_and_no_machine_has_is_an_error(tmp_path: Path) -> None:
    row = spec.load_spec("table1").row[0]
    with pytest.raises(SpecError, match="row 1: a batch of 64 can't be shared by 3 devices; take a divisor"):
        spec.resolve(row, spec.load_profile("digits").model_copy(update={"devices": 3}))
    text = (spec.HERE / "profiles" / "digits.toml").read_text()
    (tmp_path / "mine.toml").write_text(
        "threads = 100000000\n" + "\n".join(line for line in text.splitlines() if not line.startswith("threads"))
    )
    with pytest.raises(SpecError, match=r"mine.toml is not valid: threads: .*less than or equal to 1024"):
        spec.read(tmp_path / "mine.toml", spec.Profile)
    with pytest.raises(SpecError, match=r"is not valid: .*directory"):
        spec.read(tmp_path, spec.Profile)


@pytest.mark.parametrize("command", ["evaluate", "verify", "report"])
def test_a_profile_that_is_none_is_found_by_every_command(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, output = invoke(command, "--profile", "../x")
    assert code == 1
    assert "unknown profile '../x'; known: " in output
