"""Interrupted = uninterrupted, bit for bit: states of trainings, and what is refused as one."""

import hashlib
import io
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from getpass import getuser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mlflow.tracking import MlflowClient

from benchmarks import spec
from benchmarks.record import Epoch, Result
from benchmarks.run import schedule, train, workers
from benchmarks.run.state import KEPT, States, Stop, generators, restore_generators
from benchmarks.store import Store

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def cell() -> spec.Cell:
    """LM-HT on digits, three epochs of six updates, each of two batches."""
    whole = spec.resolve(spec.load_spec("table1").row[2], spec.load_profile("digits"))
    recipe = whole.recipe.model_copy(update={"epochs": 3, "epoch_images": 12 * 64, "batch_size": 64, "accumulate": 2})
    return whole.model_copy(update={"recipe": recipe, "network": {"width": 1 / 16}, "float64_checks": False})


def events(cell: spec.Cell, folder: Path, **options: Any) -> Iterator[Epoch | Result]:
    folder.mkdir(exist_ok=True)
    return train.run_cell(cell, 7, root=folder, device="cpu", out=folder / "c.pt", **options)


def told(happened: list[Epoch | Result]) -> tuple[list[Any], dict[str, float], str]:
    """All that is reported and must be equal: history and final metrics without speeds, and the checkpoint's SHA-256."""
    *epochs, result = happened
    assert isinstance(result, Result)
    history = [
        (e.epoch, {k: v for k, v in e.metrics.items() if k != "images_per_s"}) for e in epochs if isinstance(e, Epoch)
    ]
    return history, result.metrics, hashlib.sha256(result.checkpoint.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def undisturbed(cell: spec.Cell, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Any], dict[str, float], str]:
    return told(list(events(cell, tmp_path_factory.mktemp("undisturbed"))))


@pytest.mark.parametrize("every", [1, 4, 7])
def test_a_training_stopped_again_and_again_ends_bit_for_bit_like_one_that_was_not(
    every: int, cell: spec.Cell, undisturbed: tuple[Any, ...], tmp_path: Path
) -> None:
    for _ in range(18 // every):  # 18 updates in all
        asked = iter(range(1, 1000))
        with pytest.raises(train.StoppedError, match=r"stopped in epoch \d of 3, after"):
            list(events(cell, tmp_path, state_dir=str(tmp_path / "state"), stopping=lambda n=asked: next(n) >= every))
    happened = list(events(cell, tmp_path, state_dir=str(tmp_path / "state")))
    assert told(happened) == undisturbed
    assert len(list((tmp_path / "state").glob("*/*"))) == KEPT


def test_a_hybrid_training_goes_on_with_what_was_measured_before_it(cell: spec.Cell, tmp_path: Path) -> None:
    profile = spec.load_profile("digits")
    row = spec.select_rows("table4", spec.load_spec("table4"), ["resnet20-tq4-l2t2-exact"])[0]
    tuned = spec.resolve(row, profile)
    short = {"recipe": cell.recipe, "network": {"width": 0.125}, "float64_checks": False}
    assert tuned.ann is not None
    tuned = tuned.model_copy(update=short | {"ann": tuned.ann.model_copy(update=short)})
    list(events(tuned.ann, tmp_path / "ann"))
    options = {"ann": tmp_path / "ann" / "c.pt"}
    whole = told(list(events(tuned, tmp_path / "whole", **options)))
    options["state_dir"] = str(tmp_path / "state")
    answers = iter([False, True])
    with pytest.raises(train.StoppedError):
        list(events(tuned, tmp_path / "cut", stopping=lambda: next(answers), **options))
    happened = list(events(tuned, tmp_path / "cut", **options))
    assert told(happened) == whole
    measured = happened[-1].measured
    right = measured.predictions["before/accuracy"] == measured.labels
    assert 100 * right.mean() == pytest.approx(whole[1]["before/accuracy"], abs=1e-9)


def stopped_twice(cell: spec.Cell, folder: Path) -> States:
    """A folder with two states, after one and two updates."""
    for _ in range(2):
        with pytest.raises(train.StoppedError):
            list(events(cell, folder, state_dir=str(folder), stopping=lambda: True))
    return States(str(folder), cell, 7)


def altered(header: dict[str, Any], body: bytes, **changes: Any) -> bytes:
    header |= {"sha256": hashlib.sha256(body).hexdigest()} | changes
    return json.dumps(header).encode() + b"\n" + body


class Code:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch /tmp/code-of-a-state-ran",)


def kept(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def reshaped(body: bytes) -> bytes:
    content = torch.load(io.BytesIO(body), weights_only=True)
    name = next(iter(content["network"]))
    return kept(content | {"network": content["network"] | {name: torch.zeros(3)}})


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda header, body: b"", "is not a state of a training"),
        (lambda header, body: altered(header, body)[:-1], "is damaged"),
        (
            lambda header, body: altered(
                header, body[:99] + bytes([body[99] ^ 1]) + body[100:], sha256=header["sha256"]
            ),
            "is damaged",
        ),
        (lambda header, body: altered(header, body, format=99), "has format 99, this training 4"),
        (lambda header, body: altered(header, body, cell="0" * 16), "has cell '0000000000000000', this training"),
        (
            lambda header, body: altered(header, kept({"progress": Code()})),
            "holds more than tensors and numbers, and is not read",
        ),
        (lambda header, body: altered(header, reshaped(body)), r"does not fit this training: .* torch.Size\(\[3\]\)"),
    ],
    ids=["empty", "truncated", "one bit", "future format", "other config", "pickled code", "shape"],
)
def test_a_state_that_is_not_right_is_refused_by_name_and_the_one_before_is_used(
    damage: Any, words: str, cell: spec.Cell, undisturbed: tuple[Any, ...], tmp_path: Path
) -> None:
    Path("/tmp/code-of-a-state-ran").unlink(missing_ok=True)  # of a run without the guard
    states = stopped_twice(cell, tmp_path)
    newest = sorted(Path(states.folder).iterdir())[-1]
    line, _, body = newest.read_bytes().partition(b"\n")
    newest.write_bytes(damage(json.loads(line), body))
    with pytest.warns(UserWarning, match=f"{newest.name} {words}.*going on from the state before it"):
        happened = list(events(cell, tmp_path, state_dir=str(tmp_path)))
    assert told(happened) == undisturbed
    assert not Path("/tmp/code-of-a-state-ran").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([1], ""),
        ({"progress": {"epochs": 1}}, "epochs"),
        ({"progress": {}, "data": ""}, "it lacks generators, network"),
    ],
)
def test_a_state_of_something_else_is_refused(content: Any, words: str, cell: spec.Cell) -> None:
    states = States("memory://else", cell, 7)
    states.save(content, None)
    usable, (reason,) = states.load(partial(train.fits, torch.nn.Linear(1, 1)))
    assert usable is None
    assert re.search(f"does not fit this training: .*{words}", reason)
    states.discard()


@pytest.mark.parametrize(
    ("put", "words"),
    [
        (
            lambda path, header, body: path.write_bytes(altered(header, body, run_id=[1])),
            "is not a state of a training",
        ),
        (lambda path, header, body: path.write_bytes(b'{"sha256": ""}\n'), "is not a state of a training"),
        (lambda path, header, body: path.write_bytes(b"[" * 100_000), "is not a state of a training"),
        (lambda path, header, body: path.mkdir(), "can't be read: .*Is a directory"),
        (lambda path, header, body: path.symlink_to("nowhere"), "can't be read: .*No such file"),
        (lambda path, header, body: path.symlink_to("/proc/self/mem"), "can't be read: "),
        (
            lambda path, header, body: path.with_name("state-abc.pt").write_bytes(altered(header, body)),
            "is not a state",
        ),
    ],
    ids=["run_id", "no run_id", "deep", "folder", "link to nothing", "disk", "name"],
)
def test_a_state_that_cannot_be_read_is_no_obstacle(put: Any, words: str, cell: spec.Cell, tmp_path: Path) -> None:
    states = States(str(tmp_path), cell, 7)
    for number in range(2):
        states.save({"number": number}, f"run {number}")
    newest = Path(states.folder) / "state-00000001.pt"
    line, _, body = newest.read_bytes().partition(b"\n")
    newest.unlink()
    put(newest, json.loads(line), body)
    content, (reason,) = states.load()
    assert content == {"number": 0}
    assert re.search(rf"state-(00000001|abc)\.pt {words}", reason)
    assert states.run_id() == "run 0"
    for number in range(2, 5):
        states.save({"number": number}, "run 0")
    assert states.load()[0] == {"number": 4} or "abc" in reason
    assert len([path for path in Path(states.folder).iterdir() if path.name != "state-abc.pt"]) == KEPT


def test_two_that_write_one_seeds_states_do_not_meet_and_what_a_kill_left_goes(
    cell: spec.Cell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = [States(str(tmp_path), cell, 7) for _ in range(2)]
    folder = Path(both[0].folder)
    (folder / "unfinished").mkdir(parents=True)
    for name, age in (("unfinished-old", 4000), ("unfinished-new", 0)):
        (folder / name).touch()
        os.utime(folder / name, times=(time.time() - age,) * 2)
    open_ = both[0].files.open

    def meanwhile(*arguments: Any) -> Any:
        monkeypatch.undo()
        file = open_(*arguments)
        both[1].save({"whose": 1}, None)
        return file

    monkeypatch.setattr(both[0].files, "open", meanwhile)
    both[0].save({"whose": 0}, None)
    assert both[1].load() == ({"whose": 0}, [])
    assert sorted(path.name for path in folder.iterdir()) == ["state-00000000.pt", "unfinished", "unfinished-new"]


def test_other_data_than_at_the_start_are_refused(cell: spec.Cell, tmp_path: Path) -> None:
    states = stopped_twice(cell, tmp_path)
    content, _ = states.load()
    assert content is not None
    states.save(content | {"data": "other"}, None)
    with pytest.raises(train.TrainingError, match=f"not those that its training began with; .* remove {states.folder}"):
        list(events(cell, tmp_path, state_dir=str(tmp_path)))


def test_a_loss_that_is_not_finite_leaves_the_last_good_state(
    cell: spec.Cell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = stopped_twice(cell, tmp_path)
    before = sorted(Path(states.folder).iterdir())
    monkeypatch.setattr(train, "STATE_SECONDS", 0.0)
    monkeypatch.setattr(train.F, "cross_entropy", lambda x, y, label_smoothing: x.sum() * float("nan"))
    with pytest.raises(train.TrainingError, match="the loss is nan in epoch 1"):
        list(events(cell, tmp_path, state_dir=str(tmp_path)))
    assert sorted(Path(states.folder).iterdir()) == before


def test_states_can_lie_at_any_address(cell: spec.Cell) -> None:
    states = States("memory://somewhere", cell, 7)
    for number in range(4):
        states.save({"number": number}, f"run {number}")
    assert states.load() == ({"number": 3}, [])
    assert states.run_id() == "run 3"
    assert len(states.files.ls(states.folder)) == KEPT
    states.discard()
    assert states.load() == (None, [])
    states.discard()


def test_every_generator_is_put_back() -> None:
    before = generators()
    drawn = [torch.rand(2).tolist(), np.random.random(2).tolist(), random.random()]
    restore_generators(before)
    assert [torch.rand(2).tolist(), np.random.random(2).tolist(), random.random()] == drawn


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_the_first_signal_is_noted(number: int) -> None:
    before = signal.signal(number, signal.SIG_DFL)  # whoever started this may ignore it
    with Stop() as stop:
        assert not stop()
        signal.raise_signal(number)
        assert stop()
        assert stop.signal == number
    assert signal.signal(number, before) == signal.SIG_DFL


def test_a_second_signal_ends_the_process_at_once_and_leaves_no_temporary_file(tmp_path: Path) -> None:
    script = (
        "import signal, tempfile; from benchmarks.run.state import Stop\n"
        "folder = tempfile.TemporaryDirectory()\n"
        "with Stop() as stop:\n"
        "    stop.last = folder.cleanup\n"
        "    signal.raise_signal(signal.SIGTERM)\n"
        "    signal.raise_signal(signal.SIGTERM)\n"
        "    print('it goes on')"
    )
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (-signal.SIGTERM, b"")
    assert not list(tmp_path.iterdir())


def test_under_nohup_a_closed_terminal_stops_nothing() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Stop() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert not stop()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_signal_while_one_job_ends_and_another_waits_ends_the_command(
    cell: spec.Cell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = Stop()

    def last_evaluation(*args: Any, **options: Any) -> Iterator[str]:
        stop.signal = signal.SIGTERM
        yield "its end, without another look at the signal"

    monkeypatch.setattr(workers, "run_cell", last_evaluation)
    jobs = [schedule.Job("table4", cell, seed) for seed in (7, 8)]
    store = Store("digits", f"sqlite:///{tmp_path}/m.db")
    with pytest.raises(train.StoppedError, match="between two trainings"):
        schedule.run(
            jobs, store, parallel=1, device="cpu", progress=lambda *_: None, state_dir=str(tmp_path), stop=stop
        )


def run(folder: Path, jobs: int = 1) -> subprocess.Popen[str]:
    words = [sys.executable, str(ROOT / "tests" / "small.py"), "run", "table4", "--rows", "resnet20-tq4-l2t2-exact"]
    words += ["--jobs", str(jobs), "--device", "cpu", "--state-dir", str(folder / "state")]
    environment = os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/m.db", "OMP_NUM_THREADS": "1"}
    environment |= {"PYTHONPATH": str(ROOT), "SMALL_EPOCHS": "8"}  # some seconds: the signal comes in the first one
    return subprocess.Popen(
        words, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def left(folder: Path) -> list[str]:
    """Processes that the command on this folder's store began, or Ray for it, and that outlive it: Ray's take some time to go."""
    for _ in range(1200):
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # it has ended meanwhile
                if f"{folder}/m.db".encode() in (process / "environ").read_bytes():
                    found.append((process / "cmdline").read_text().replace("\0", " "))
        if not found:
            break
        time.sleep(0.1)
    return found


def await_state(folder: Path, process: subprocess.Popen[str], fresh: float) -> None:
    """Until a state newer than ``fresh`` lies there."""
    for _ in range(12_000):
        ages = [file.stat().st_mtime for file in folder.glob("state/*/state-*.pt")]
        if any(age > fresh for age in ages) or process.poll() is not None:
            return
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("number", "code", "jobs"),
    [(signal.SIGTERM, 143, 1), (signal.SIGINT, 130, 1), (signal.SIGKILL, -9, 1), (signal.SIGTERM, 143, 2)],
)
def test_a_killed_command_goes_on_in_its_own_run(
    number: int, code: int, jobs: int, tmp_path: Path, empty_database: Path
) -> None:
    shutil.copy(empty_database, tmp_path / "m.db")
    process = run(tmp_path, jobs)
    await_state(tmp_path, process, 0)
    process.send_signal(number)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == code, output
    if number != signal.SIGKILL:
        assert "the same command goes on from there" in " ".join(output.split())
    assert "Traceback" not in output
    assert not left(tmp_path)
    client = MlflowClient(f"sqlite:///{tmp_path}/m.db")
    experiment = client.get_experiment_by_name("digits/table4")
    assert experiment is not None
    cut = client.search_runs([experiment.experiment_id], "tags.kind = 'seed'")
    assert [r.info.status for r in cut] == (["RUNNING"] if number == signal.SIGKILL else ["KILLED"])
    process = run(tmp_path)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    ended = client.search_runs([experiment.experiment_id], "tags.kind = 'seed'")
    assert [r.info.status for r in ended] == ["FINISHED"] * 2
    assert cut[0].info.run_id in {r.info.run_id for r in ended}
    for one in ended:
        steps = [point.step for point in client.get_metric_history(one.info.run_id, "epoch/loss")]
        assert steps == list(range(1, len(steps) + 1)), "an epoch is missing or stands twice"
    assert not list((tmp_path / "state").glob("*"))


@pytest.mark.skipif("LMHT_SOAK" not in os.environ, reason="the first signal's tests, with another: tox run -e soak")
@pytest.mark.parametrize("jobs", [1, 2])
def test_two_signals_end_the_command_at_once_and_leave_a_state_and_no_process(
    jobs: int, tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (temporary := tmp_path / "temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")  # its sockets' paths are short ones
    shutil.copy(empty_database, tmp_path / "m.db")
    process = run(tmp_path, jobs)
    await_state(tmp_path, process, 0)
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        time.sleep(0.05)
    output, _ = process.communicate(timeout=60)
    assert process.returncode in (-signal.SIGINT, 130), output
    assert "Traceback" not in output
    assert not left(tmp_path)
    assert list(tmp_path.glob("state/*/state-*.pt"))
    assert {path.name for path in temporary.iterdir()} <= {f"torchinductor_{getuser()}"}
    client = MlflowClient(f"sqlite:///{tmp_path}/m.db")
    experiment = client.get_experiment_by_name("digits/table4")
    assert experiment is not None
    cut = client.search_runs([experiment.experiment_id], "tags.kind = 'seed'")
    assert [one.info.status for one in cut] == ["KILLED"]


def test_five_kills_at_random_moments_change_nothing(empty_database: Path) -> None:
    words = [sys.executable, str(ROOT / "tests" / "soak.py"), "--kills", "5", "--short", str(empty_database)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("5 kills, ")
