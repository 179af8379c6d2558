"""The harness: strict specs, cells, the store, resuming, and errors that a newcomer can act on."""

import dataclasses
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from benchmarks import data, record, spec
from benchmarks.cli import app
from benchmarks.run import evaluate, plan, schedule, train, workers
from benchmarks.run.network import network_of
from benchmarks.store import Store, StoreError
from lmht import kernels

ROOT = Path(__file__).parents[1]


@pytest.fixture
def profile(monkeypatch: pytest.MonkeyPatch) -> spec.Profile:
    """The digits profile, cut to seconds."""
    real = spec.load_profile("digits")
    networks = {name: options | {"width": 1 / 16} for name, options in real.networks.items()} | {
        "ResNet-20": {"width": 0.25}
    }

    def shorter(book: spec.RecipeBook) -> spec.RecipeBook:
        return spec.RecipeBook(base=book.base.model_copy(update={"epochs": 1, "epoch_images": 128}))

    quick = real.model_copy(
        update={
            "networks": networks,
            "direct": shorter(real.direct),
            "ann": shorter(real.ann),
            "finetune": shorter(real.finetune),
            "float64_checks": False,
        }
    )
    monkeypatch.setattr(spec, "load_profile", lambda name: quick)
    return quick


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_database: Path) -> Store:
    for name in ("m.db", "again.db"):
        shutil.copy(empty_database, tmp_path / name)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/m.db")
    monkeypatch.chdir(tmp_path)
    return Store("digits")


def invoke(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(words))
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, " ".join((result.output).split())


def test_every_row_resolves_in_every_profile_that_has_its_data() -> None:
    for name in spec.profiles():
        profile = spec.load_profile(name)
        for table in spec.tables():
            for row in spec.load_spec(table).row:
                if row.dataset not in profile.datasets:
                    with pytest.raises(spec.SpecError, match=f"the profile names no data set for '{row.dataset}'"):
                        spec.resolve(row, profile)
                    continue
                assert re.fullmatch("[0-9a-f]{16}", spec.resolve(row, profile).hash)


def test_every_lm_ht_row_of_the_paper_is_a_row_of_the_harness() -> None:
    for table in spec.tables():
        frame = spec.published(table)
        ours = [i + 1 for i, line in frame.iterrows() if line.get("method") in ("LM-HT", "M-HT") or table == "table2"]
        named = {line for row in spec.load_spec(table).row for line in row.published}
        assert set(ours) <= named, table


def test_a_cells_hash_follows_its_content_and_not_its_row() -> None:
    profile = spec.load_profile("digits")
    one, two = (spec.load_spec("table1").row[2], spec.load_spec("table2").row[1])
    assert spec.resolve(one, profile).hash == spec.resolve(two, profile).hash  # both stand-ins are digits
    longer = profile.model_copy(
        update={"direct": spec.RecipeBook(base=profile.direct.base.model_copy(update={"epochs": 99}))}
    )
    assert spec.resolve(one, longer).hash != spec.resolve(one, profile).hash
    cell = spec.resolve(one, profile)
    assert cell.model_copy(update={"backend": f"not {cell.hash}"}).hash != cell.hash


def test_jobs_are_unique_and_upstream_comes_first() -> None:
    rows = {table: spec.load_spec(table).row for table in spec.tables()}
    jobs = schedule.jobs_of(rows, spec.load_profile("digits"), 2)
    seen: set[tuple[str, int]] = set()
    for job in jobs:
        assert job.key not in seen
        assert job.needs is None or job.needs in seen
        seen.add(job.key)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("title = 'x'\npublished_columns = []\nrows = []", "rows"),
        ("title = 'x'\npublished_columns = []\n[[row]]\nid = '1'\ncolour = 'red'", "colour"),
        ("title = ", "Invalid value"),
    ],
)
def test_unknown_keys_in_a_spec_are_an_error(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "table9.toml"
    path.write_text(text)
    with pytest.raises(spec.SpecError, match=f"(?s)table9.toml is not valid: .*{message}"):
        spec.read(path, spec.Spec)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("run", "table9"), "unknown table 'table9'; known: table1, table2"),
        (("run", "table1", "--rows", "1,99"), "table1 has no row '99'; its rows: 1, 2, 3, 4, 5, 6"),
        (("run", "--rows", "1"), "--rows needs exactly one table"),
        (
            ("run", "--profile", "mnist"),
            "unknown profile 'mnist'; known: ",
        ),
        (("run", "--device", "tpu"), "unknown device 'tpu'; known: cpu, cuda, auto"),
        (("plan", "table1", "--measure", "--device", "tpu"), "unknown device 'tpu'; known: cpu, cuda, auto"),
        (("run", "latency", "table1"), "latency is measured alone: `python -m benchmarks run latency`"),
    ],
)
def test_unknown_names_on_the_command_line(words: tuple[str, ...], message: str, store: Store) -> None:
    code, output = invoke(*words)
    assert code == 1
    assert message in output


def test_rows_without_data_in_the_profile_are_named_and_left_out(
    profile: spec.Profile, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    some = profile.model_copy(update={"datasets": {"CIFAR-10": "digits"}})
    monkeypatch.setattr(spec, "load_profile", lambda name: some)
    code, output = invoke("run", "table_s1", "--rows", "cifar100-msresnet18-if-t4")
    assert code == 1
    assert "not run (1 rows): data: the profile names no data set for 'CIFAR-100'" in output
    assert "profile digits has the data of none of these rows" in output
    rows = spec.load_spec("table_s1").row
    jobs = schedule.jobs_of({"table_s1": rows}, some, 1)
    assert {job.cell.hash for job in jobs} == {spec.resolve(r, some).hash for r in rows if r.dataset == "CIFAR-10"}


def test_a_missing_data_set_says_where_to_get_it(store: Store, tmp_path: Path) -> None:
    code, output = invoke("run", "table3", "--rows", "cifar10-resnet18-relu", "--profile", "paper", "--jobs", "1")
    assert code == 1
    assert "not run (1 cells): data set cifar10 not found at" in output
    assert "get it from" in output


def test_an_unreachable_store_is_one_clear_error() -> None:
    uri = "http://127.0.0.1:9"
    environment = os.environ | {"MLFLOW_TRACKING_URI": uri}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "run", "table1", "--rows", "1"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1
    assert f"error: tracking store {uri}: " in done.stderr
    assert "check MLFLOW_TRACKING_URI" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_full_disk_keeps_what_was_finished(
    profile: spec.Profile, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = {"table1": spec.load_spec("table1").row[:2]}
    jobs = schedule.jobs_of(rows, profile, 1)
    finish, calls = Store.finish, []

    def full_on_the_second(self: Store, *arguments: object) -> None:
        calls.append(arguments)
        if len(calls) == 2:
            from benchmarks.tracking import explained

            with explained(self.uri):
                raise OSError(28, "No space left on device")
        finish(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Store, "finish", full_on_the_second)
    options = {"parallel": 1, "device": "cpu", "root": Path(), "progress": lambda job, event: None}
    with pytest.raises(StoreError, match=r"No space left on device; free some space, then run the same command again"):
        schedule.run(jobs, store, **options)
    monkeypatch.setattr(Store, "finish", finish)
    assert list(store.seeds()["cell"]) == [jobs[0].cell.hash]
    trained = []
    options["progress"] = lambda job, event: trained.append(job.key)
    assert schedule.run(jobs, store, **options) == {}
    assert set(trained) == {jobs[1].key}


def test_hybrid_rows_run_end_to_end_once_and_alike(
    profile: spec.Profile, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two fresh stores hold the same numbers; a second run of one store trains nothing; an evaluation finds them again."""
    words = (
        "run",
        "table4",
        "--rows",
        "resnet20-tq4-l2t2-exact,resnet20-tq4-l2t2-algorithm1,resnet20-tq4-if-t2",
        "--jobs",
        "1",
    )
    code, output = invoke(*words, "--device", "cpu")
    assert code == 0, output
    frame = store.seeds().set_index("tag.title").sort_index()
    assert len(frame) == 3
    exact = frame.loc[[title for title in frame.index if title.endswith("exact on digits")]].iloc[0]
    assert exact["before/agree_pct"] >= 99
    assert exact["ann/accuracy"] == frame.loc["ResNet-20 QCFS Tq=4 on digits", "test/final"]
    assert {"if/T2/accuracy", "if/T8/accuracy"} <= set(frame.columns)
    assert exact["tag.data_digest"] == frame["tag.data_digest"].iloc[0]

    _, output = invoke(*words)
    assert "seed 42" not in output

    before = record.dumps(store.records())
    for run_id, one in store.held().values():
        store.renew(run_id, one.model_copy(update={"metrics": one.metrics | {"ops/of_the_past": 1.0}}))
    newer = evaluate.VERSION + 1
    monkeypatch.setattr(evaluate, "VERSION", newer)
    code, output = invoke("evaluate", "--device", "cpu")
    assert code == 0, output
    assert f"3 of 3 runs evaluated by version {newer}, 0 were before" in output
    after = record.dumps(store.records())
    assert after != before
    assert re.sub(r'"evaluation": {[^}]*}', "", after) == re.sub(
        r'"evaluation": {[^}]*}', "", before
    )  # the same numbers

    again = Store("digits", store.uri.replace("m.db", "again.db"))
    schedule.run(
        schedule.jobs_of(
            {"table4": spec.select_rows("table4", spec.load_spec("table4"), words[3].split(","))}, profile, 1
        ),
        again,
        parallel=1,
        device="cpu",
        root=Path(),
        progress=lambda job, event: None,
    )
    numbers = [c for c in frame.columns if "/" in c and "images_per_s" not in c]
    second = again.seeds().set_index("tag.title").sort_index()
    assert frame[numbers].equals(second[numbers])


def test_seeds_spread_by_ray_give_the_numbers_of_one_process(profile: spec.Profile, store: Store) -> None:
    pytest.importorskip("ray", reason="ray is not installed")
    jobs = schedule.jobs_of({"table1": spec.load_spec("table1").row[:2]}, profile, 1)
    quiet = {"device": "cpu", "root": Path(), "progress": lambda job, event: None}
    assert schedule.run(jobs, store, parallel=2, **quiet) == {}
    alone = Store("digits", store.uri.replace("m.db", "again.db"))
    assert schedule.run(jobs, alone, parallel=1, **quiet) == {}
    together, apart = (s.seeds().set_index("cell")["test/final"].sort_index() for s in (store, alone))
    assert together.equals(apart)


def test_a_diverging_loss_fails_the_seed_and_says_so(profile: spec.Profile, store: Store) -> None:
    row = spec.load_spec("table3").row[0]
    cell = spec.resolve(row, profile)
    cell = cell.model_copy(
        update={
            "neuron": spec.NeuronSpec(kind="relu"),
            "recipe": cell.recipe.model_copy(update={"learning_rate": 1e20}),
        }
    )
    failed = schedule.run(
        [schedule.Job("table3", cell, 42)],
        store,
        parallel=1,
        device="cpu",
        root=Path(),
        progress=lambda job, event: None,
    )
    assert re.search(r"the loss is (nan|inf) in epoch 1; lower the learning rate", failed[cell.hash])
    assert store.seeds().empty


def test_cosine_warms_up_and_ends_at_zero() -> None:
    recipe = spec.Recipe(learning_rate=1.0, epochs=4, warmup_epochs=1)
    rate = train.cosine(recipe, 10)
    assert [rate(0), rate(9), rate(10)] == pytest.approx([0.1, 1.0, 1.0])
    assert rate(25) == pytest.approx(0.5)
    assert 0 < rate(39) < 0.01


def test_gradient_accumulation_updates_once_a_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    profile = spec.load_profile("digits")
    cell = spec.resolve(spec.load_spec("table3").row[0], profile)
    recipe = cell.recipe.model_copy(update={"epochs": 1, "accumulate": 4, "epoch_images": 256, "batch_size": 32})
    cell = cell.model_copy(update={"recipe": recipe, "neuron": spec.NeuronSpec(kind="relu")})
    steps: list[int] = []
    monkeypatch.setattr(torch.optim.SGD, "step", lambda self, closure=None: steps.append(1))
    list(train.run_cell(cell, 0, root=tmp_path, device="cpu", out=tmp_path / "c.pt"))
    assert len(steps) == 2


def test_without_validation_all_training_images_train(profile: spec.Profile, tmp_path: Path) -> None:
    cell = spec.resolve(spec.load_spec("table1").row[2], profile)
    cell = cell.model_copy(update={"recipe": cell.recipe.model_copy(update={"validation": 0.0})})
    epoch, result = train.run_cell(cell, 42, root=tmp_path, device="cpu", out=tmp_path / "c.pt")
    assert isinstance(result, train.Result)
    assert "val" not in epoch.metrics
    assert {"test/final", "test/best"} <= set(result.metrics)
    assert not {"val/final", "test/best_val"} & set(result.metrics)


def test_operations_that_are_not_counted_are_logged(profile: spec.Profile, store: Store, tmp_path: Path) -> None:
    """Spiking self-attention multiplies two activations, twice a block."""
    rows = [row for row in spec.load_spec("table_s1").row if row.architecture == "Transformer-4-384"][:1]
    (job,) = schedule.jobs_of({"table_s1": rows}, profile, 1)
    options = {"parallel": 1, "device": "cpu", "root": tmp_path, "progress": lambda job, event: None}
    assert schedule.run([job], store, **options) == {}
    (line,) = store.seeds().to_dict("records")
    assert line["ops/uncounted"] == 8
    assert len(line["tag.uncounted"].split(", ")) == 8


def crash(*_: object) -> None:
    os._exit(1)


def test_a_process_that_crashes_while_a_plan_is_measured_is_one_error(
    profile: spec.Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    fork = multiprocessing.get_context("fork")  # in which the replacement lives on
    monkeypatch.setattr(plan.multiprocessing, "get_context", lambda kind: fork)
    monkeypatch.setattr(plan, "_seconds", crash)
    done = CliRunner().invoke(app, ["plan", "table1", "--profile", "digits", "--measure", "--device", "cpu"])
    assert done.exit_code == 1
    assert "a process that timed a cell crashed or was killed" in " ".join(done.output.split())


def test_no_profile_trains_what_onednn_may_crash_on(tmp_path: Path) -> None:
    """Strided 1x1 convolutions of few channels in channels_last: torch 2.15 would crash on the last cell."""
    small = spec.load_profile("paper-small")
    with torch.device("meta"):
        for table in spec.tables():
            rows = [row for row in spec.load_spec(table).row if row.dataset in small.datasets]
            for job in schedule.jobs_of({table: rows}, small, 1):
                if job.cell.recipe.channels_last:
                    shape = data.SIZES[job.cell.dataset]
                    train.check_channels_last(network_of(job.cell, shape), job.cell.recipe, torch.device("cpu"))
    (job,) = schedule.jobs_of({"table2": spec.select_rows("table2", spec.load_spec("table2"), ["4"])}, small, 1)
    recipe = job.cell.recipe.model_copy(update={"channels_last": True})
    refused = "ResNet-18.* 8 channels, .*set channels_last = false, or a width"
    with pytest.raises(train.TrainingError, match=refused):
        plan.hours([dataclasses.replace(job, cell=job.cell.model_copy(update={"recipe": recipe}))], 1, "cpu")
    cell = spec.resolve(spec.load_spec("table1").row[2], spec.load_profile("digits"))
    cell = cell.model_copy(update={"recipe": cell.recipe.model_copy(update={"channels_last": True})})
    with pytest.raises(train.TrainingError, match="strided 1x1 convolution of 8 channels"):
        next(train.run_cell(cell, 42, root=tmp_path, device="cpu", out=tmp_path / "c.pt"))


def test_a_step_too_far_leaves_qcfs_scales_positive() -> None:
    scales = [torch.nn.Parameter(torch.tensor(value)) for value in (-0.5, 0.7)]
    train.keep_scales_positive(scales)
    assert [s.item() for s in scales] == pytest.approx([train.LEAST_SCALE, 0.7])


def test_a_failed_ann_takes_along_only_what_needs_that_seed(
    profile: spec.Profile, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = train.run_cell

    def first_seed_diverges(cell: spec.Cell, seed: int, **options):
        if cell.ann is None and seed == schedule.FIRST_SEED:
            raise train.TrainingError("diverged")
        yield from real(cell, seed, **options)

    monkeypatch.setattr(workers, "run_cell", first_seed_diverges)
    rows = spec.select_rows("table4", spec.load_spec("table4"), ["resnet20-tq4-l2t2-exact"])
    jobs = schedule.jobs_of({"table4": rows}, profile, 2)
    failed = schedule.run(jobs, store, parallel=1, device="cpu", root=Path(), progress=lambda job, event: None)
    assert failed[jobs[0].cell.hash] == "diverged"
    assert failed[jobs[1].cell.hash] == "its quantised ANN was not run: diverged"
    assert sorted(zip(store.seeds()["cell"], store.seeds()["seed"], strict=True)) == sorted(job.key for job in jobs[2:])


def test_a_training_left_half_way_leaves_the_callers_backend_alone(profile: spec.Profile, tmp_path: Path) -> None:
    large = torch.zeros(2, kernels.WORTH_COMPILING)
    before = kernels.backend_for(large)
    cell = spec.resolve(spec.load_spec("table1").row[2], profile).model_copy(update={"backend": "eager"})
    with kernels.use_backend("auto"):
        events = train.run_cell(cell, 42, root=tmp_path, device="cpu", out=tmp_path / "c.pt")
        next(events)
        assert kernels.backend_for(large) == before
    assert kernels.backend_for(large) == before
    events.close()


@pytest.mark.parametrize("fault", ["damaged", "missing"])
def test_a_bad_checkpoint_stops_only_what_starts_from_it(fault: str, profile: spec.Profile, store: Store) -> None:
    rows = spec.select_rows("table4", spec.load_spec("table4"), ["resnet20-tq4-l2t2-exact"])
    ann, tuned = schedule.jobs_of({"table4": rows}, profile, 1)
    other = schedule.jobs_of({"table1": spec.load_spec("table1").row[:1]}, profile, 1)
    options = {"parallel": 1, "device": "cpu", "root": Path(), "progress": lambda job, event: None}
    assert schedule.run([ann], store, **options) == {}
    run_id = store.seeds()["run_id"].iloc[0]
    path = Path(store.client.get_run(run_id).info.artifact_uri.removeprefix("file://")) / "checkpoint.pt"
    content = bytearray(path.read_bytes())
    path.unlink()
    if fault == "damaged":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    failed = schedule.run([ann, tuned, *other], store, **options)
    assert set(failed) == {tuned.cell.hash}
    assert {"damaged": "is damaged", "missing": "can't be read"}[fault] in failed[tuned.cell.hash]
    assert f"mlflow runs delete --run-id {run_id}" in failed[tuned.cell.hash]
    assert other[0].cell.hash in set(store.seeds()["cell"])


def test_deterministic_changes_no_bit_on_a_cpu_and_names_what_cannot_be(
    profile: spec.Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (row,) = spec.select_rows("table4", spec.load_spec("table4"), ["resnet20-tq4-l2t2-exact"])
    cell = spec.resolve(row, profile).ann
    assert cell is not None
    backends = torch.backends.cudnn
    before = backends.deterministic, backends.benchmark
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    ends = []
    try:
        for deterministic in (False, True):
            folder = tmp_path / str(deterministic)
            folder.mkdir()
            work = {"root": tmp_path, "device": "cpu", "out": folder / "checkpoint.pt"}
            *_, last = train.run_cell(cell, 42, **work, deterministic=deterministic)
            assert isinstance(last, record.Result)
            ends.append((last.checkpoint.read_bytes(), last.metrics, last.device))
        assert ends[0] == ends[1]
        assert backends.deterministic
        with pytest.raises(RuntimeError, match="put_ does not have a deterministic implementation") as named:
            torch.zeros(2).put_(torch.tensor([0, 0]), torch.ones(2))
        assert "without --deterministic it is trained" in workers.reason(named.value)
    finally:
        torch.use_deterministic_algorithms(False)
        backends.deterministic, backends.benchmark = before


def test_a_plan_can_be_measured(profile: spec.Profile) -> None:
    rows = spec.select_rows("table4", spec.load_spec("table4"), ["resnet20-tq4-if-t2", "resnet20-tq4-l2t2-exact"])
    jobs = schedule.jobs_of({"table4": rows}, profile, 2)
    hours = plan.hours(jobs, 1, "cpu")
    assert len(hours) == 4
    assert hours[:2] == hours[2:]  # two seeds of a cell cost the same
    assert all(0 < one < 1 for one in hours)
