"""A tracking server that goes away, hangs or loses its answers in mid-run: nothing is lost, nothing stands twice."""

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlflow.server
import pytest
from mlflow.server import handlers
from werkzeug.serving import BaseWSGIServer, make_server

from benchmarks import spec
from benchmarks.record import Epoch, Result
from benchmarks.run import outbox, schedule, workers
from benchmarks.run.state import States, Stop
from benchmarks.run.train import StoppedError
from benchmarks.store import Store
from benchmarks.tracking import StoreError, ask
from tests.small import small

ROOT = Path(__file__).parents[1]


class Server:
    """MLflow's own server on a SQLite file, over real HTTP, in a thread; ``mode`` says how it behaves."""

    mode = "up"
    http: BaseWSGIServer | None = None
    port = 0

    def start(self) -> None:
        self.http = make_server("127.0.0.1", self.port, self, threaded=True)
        self.port = self.http.port
        threading.Thread(target=self.http.serve_forever, args=(0.05,), daemon=True).start()

    def be(self, mode: str) -> None:
        if mode == "refuse":
            assert self.http
            self.http.shutdown()
            self.http.server_close()
        elif self.mode == "refuse":
            self.start()
        self.mode = mode

    def __call__(self, environ: Any, start_response: Any) -> Any:
        if self.mode == "hang":
            while self.mode == "hang":
                time.sleep(0.05)
        if self.mode == "fail":
            start_response("503 Service Unavailable", [])
            return [b""]
        answer = b"".join(mlflow.server.app(environ, start_response))
        if self.mode == "lose answers" and environ["PATH_INFO"].endswith(
            "log-batch"
        ):  # what was asked is done all the same
            raise ConnectionError
        return [answer]


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_database: Path) -> Iterator[Server]:
    monkeypatch.setenv("_MLFLOW_SERVER_FILE_STORE", f"sqlite:///{shutil.copy(empty_database, tmp_path / 'm.db')}")
    monkeypatch.setenv("_MLFLOW_SERVER_SERVE_ARTIFACTS", "true")
    monkeypatch.setenv("_MLFLOW_SERVER_ARTIFACT_ROOT", "mlflow-artifacts:/")
    monkeypatch.setenv("_MLFLOW_SERVER_ARTIFACT_DESTINATION", str(tmp_path / "artifacts"))
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")  # a busy machine's server answers late
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(handlers, "_tracking_store", None)
    monkeypatch.setattr(handlers, "_artifact_repo", None)
    monkeypatch.setattr(outbox, "RETRY_EVERY", 0.1)
    one = Server()
    one.start()
    yield one
    one.be("refuse")


SEEDS = (42, 43)


def jobs() -> list[schedule.Job]:
    cell = spec.resolve(spec.load_spec("table1").row[0], spec.load_profile("digits"))
    return [schedule.Job("table1", cell, seed) for seed in SEEDS]


def training(at: Callable[[int, Any], None], tmp_path: Path, epochs: int = 4) -> Callable[..., Any]:
    """Trainings of invented numbers; ``at`` is told of each event before it is sent."""

    def run_cell(cell: spec.Cell, seed: int, *, out: Path, stopping: Callable[[], bool], **options: Any) -> Any:
        states = States(options["state_dir"], cell, seed)
        for epoch in range(1, epochs + 1):
            at(seed, epoch)
            states.save({}, options["run_id"])
            yield Epoch(epoch, epochs, {"loss": 1 / epoch, "test": seed + epoch / 7, "images_per_s": 1.0})
            if stopping():
                raise StoppedError("stopped")
        out.write_bytes(f"weights of {seed}".encode())
        at(seed, "result")
        yield Result({"test/final": seed + 0.5}, out, {"name": "digits", "digest": "d" * 64, "source": "scikit-learn"})

    return run_cell


def run(store: Store, tmp_path: Path, stop: Stop | None = None) -> list[Any]:
    told: list[Any] = []
    options = {"parallel": 1, "device": "cpu", "root": tmp_path, "state_dir": str(tmp_path / "state"), "stop": stop}
    assert schedule.run(jobs(), store, progress=lambda job, event: told.append(event), **options) == {}
    return told


def held(store: Store, scratch: Path) -> dict[int, Any]:
    """All that the store holds of each seed, and how often each point was logged."""
    found = {}
    for row in store.seeds().itertuples():
        history = store.client.get_metric_history
        points = {name: [(p.step, p.value) for p in history(row.run_id, name)] for name in ("epoch/loss", "epoch/test")}
        final = [(p.step, p.value) for p in history(row.run_id, "test/final")]
        weights = store.checkpoint(row.run_id, scratch).read_bytes()
        found[row.seed] = (points, final, weights)
    return found


def whole() -> dict[int, Any]:
    """What a store holds of each seed that nothing has disturbed."""
    found = {}
    for seed in SEEDS:
        epochs = range(1, 5)
        points = {"epoch/loss": [(e, 1 / e) for e in epochs], "epoch/test": [(e, seed + e / 7) for e in epochs]}
        found[seed] = (points, [(0, seed + 0.5)], f"weights of {seed}".encode())
    return found


@pytest.mark.parametrize(
    ("mode", "away", "back"),
    [
        ("refuse", (42, 2), (42, 4)),
        ("hang", (42, 2), (42, 4)),
        ("lose answers", (42, 2), (42, 4)),
        ("fail", (42, "result"), None),
        ("lose answers", (42, "result"), None),
    ],
)
def test_what_a_server_misses_is_made_up_for(
    mode: str,
    away: Any,
    back: Any,
    server: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if mode == "hang":
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")

    def at(seed: int, epoch: Any) -> None:
        if (seed, epoch) == away:
            server.be(mode)
            if not back:
                threading.Timer(0.5, server.be, ["up"]).start()
        if (seed, epoch) == back:
            server.be("up")

    monkeypatch.setattr(workers, "run_cell", training(at, tmp_path))
    store = Store("digits", f"http://127.0.0.1:{server.port}")
    told = run(store, tmp_path)
    assert held(store, tmp_path) == whole()
    notes = [event for event in told if isinstance(event, schedule.Note)]
    assert notes
    assert all("trainings go on" in note for note in notes)
    assert [type(e) for e in told if not isinstance(e, schedule.Note)] == 2 * ([Epoch] * 4 + [Result])
    ended = [run.info.status for run in store._search("tags.kind = 'seed'") if run.data.metrics]
    assert ended == ["FINISHED"] * 2  # an empty one, whose making was cut off, is closed as killed
    assert not list((tmp_path / "state").iterdir())


def test_stopped_while_the_server_is_away_it_tells_the_rest_from_its_state(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = Stop()

    def at(seed: int, epoch: Any) -> None:
        if epoch == 2:
            server.be("refuse")
        if epoch == 3:
            stop.signal = 15

    monkeypatch.setattr(workers, "run_cell", training(at, tmp_path))
    store = Store("digits", f"http://127.0.0.1:{server.port}")
    with pytest.raises(StoppedError):
        run(store, tmp_path, stop)
    server.be("up")
    monkeypatch.setattr(workers, "run_cell", training(lambda seed, epoch: None, tmp_path))
    run(store, tmp_path)
    assert held(store, tmp_path) == whole()


def test_a_finish_cut_short_is_made_up_for_once(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(workers, "run_cell", training(lambda seed, epoch: None, tmp_path))
    store = Store("digits", f"http://127.0.0.1:{server.port}")
    with monkeypatch.context() as patch:
        patch.setattr(Store, "_keep_record", killed)  # its metrics are in the store by then
        with pytest.raises(KeyboardInterrupt):
            run(store, tmp_path)
    run(store, tmp_path)
    assert held(store, tmp_path) == whole()


def test_a_command_killed_while_the_server_is_away_leaves_all_that_it_would_have_logged(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed for good with epochs and a result that wait for the store: the next start logs them, in order and once."""
    monkeypatch.setenv("SMALL_EPOCHS", "5")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    environment |= {"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{server.port}", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}
    cell = spec.resolve(spec.load_spec("table1").row[2], small(spec.load_profile("digits")))
    *epochs, result = workers.run_cell(cell, 42, root=tmp_path, device="cpu", out=tmp_path / "checkpoint.pt")
    words = [sys.executable, str(ROOT / "tests" / "small.py"), "run", "table1", "--rows", "3", "--jobs", "1"]
    words += ["--device", "cpu", "--state-dir", str(tmp_path / "state")]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(words, env=environment, cwd=tmp_path, stdout=log, stderr=log)
        told = "SELECT value FROM metrics WHERE key = 'epoch/loss'"
        while not ask(tmp_path / "m.db", told) and process.poll() is None:
            time.sleep(0.02)
        server.be("refuse")
        states = States(str(tmp_path / "state"), cell, 42)
        while (states.load()[0] or {"progress": {"epoch": 0}})["progress"]["epoch"] < 5 and process.poll() is None:
            time.sleep(0.1)
        assert len(ask(tmp_path / "m.db", told)) < 5
        process.kill()
        process.wait()
    server.be("up")
    done = subprocess.run(words, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    store = Store("digits", f"http://127.0.0.1:{server.port}")
    (run,) = store._search("tags.kind = 'seed'")
    assert run.info.status == "FINISHED"
    for name in ("loss", "test", "val"):
        points = store.client.get_metric_history(run.info.run_id, f"epoch/{name}")
        assert [(p.step, p.value) for p in points] == [(e.epoch, e.metrics[name]) for e in epochs]
    assert {name: run.data.metrics[name] for name in result.metrics} == result.metrics
    assert len(store.client.get_metric_history(run.info.run_id, "test/final")) == 1


def test_patience_ends(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "PATIENCE", 0.5)
    monkeypatch.setattr(workers, "run_cell", training(lambda seed, epoch: server.be("fail"), tmp_path))
    with pytest.raises(
        StoreError, match=r"check MLFLOW_TRACKING_URI and that the server is up.*run the same command again"
    ):
        run(Store("digits", f"http://127.0.0.1:{server.port}"), tmp_path)


def test_calls_wait_in_order_and_an_error_that_stays_is_raised() -> None:
    made: list[int] = []
    box = outbox.Outbox()
    passing, lasting = StoreError("away"), StoreError("gone")
    passing.passing = True
    up = False

    def call(number: int) -> None:
        if not up:
            raise passing
        made.append(number)

    def broken() -> None:
        raise lasting

    box.put(lambda: call(1))
    up = True
    box.put(lambda: call(2))  # not tried again so soon
    assert made == []
    box.again = 0.0
    box.put(lambda: call(3))
    assert made == [1, 2, 3]
    with pytest.raises(StoreError, match="gone"):
        box.put(broken)
