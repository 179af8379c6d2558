"""A run's record: from store to file to store, packed predictions, damaged files, and comparisons."""

import json
import shutil
import signal
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from mlflow.tracking import MlflowClient
from typer.testing import CliRunner

from benchmarks import data, record, spec
from benchmarks.cli import app
from benchmarks.record import Epoch, Measured, Record, Result
from benchmarks.run.train import describe
from benchmarks.store import Store

LABELS = np.arange(60) % 10


def result(folder: Path, accuracy: float = 50.0) -> Result:
    path = folder / "checkpoint.pt"
    torch.save({"x": torch.full((1,), accuracy)}, path)
    wrong = (LABELS + (np.arange(60) % 2)) % 10  # half of them right
    measured = Measured({}, LABELS, {"test/final": wrong, "reparam/accuracy": LABELS}, {}, 1)
    described = {"name": "digits", "digest": "d" * 64, "source": "scikit-learn"}
    return Result({"test/final": accuracy, "ops/sops_g": 0.1 + 0.2}, path, described, measured)


def test_data_are_named_below_their_root(tmp_path: Path) -> None:
    """A record is published: it doesn't tell where on a machine the data lie."""
    info = data.load("digits", root=tmp_path)
    for source, named in ((str(tmp_path / "cifar100"), "cifar100"), (info.source, "scikit-learn load_digits")):
        assert describe(replace(info, source=source), tmp_path)["source"] == named


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow takes seconds to lay out a new database: once is enough."""
    path = tmp_path_factory.mktemp("mlflow") / "empty.db"
    Store("digits", f"sqlite:///{path}")
    return path


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_database: Path) -> Store:
    """One finished run and one that failed, each of a cell of its own; and a store without any, ``other.db``."""
    for name in ("m.db", "other.db"):
        shutil.copy(empty_database, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/m.db")
    store, profile = Store("digits"), spec.load_profile("digits")
    first, second = (spec.resolve(row, profile) for row in spec.load_spec("table1").row[:2])
    run_id, _ = store.open_seed("table1", first, 42, "cpu")
    store.log_epoch(run_id, Epoch(1, 2, {"test": 1 / 3, "images_per_s": 7.0}))
    store.log_epoch(run_id, Epoch(2, 2, {"test": 2 / 3, "images_per_s": 8.0}))
    store.finish(run_id, result(tmp_path))
    store.fail(store.open_seed("table1", second, 42, "cpu")[0], "the loss is nan")
    return store


def test_store_to_file_to_store_and_back_gives_the_same_bytes(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = tmp_path / "first.jsonl", tmp_path / "second.jsonl"
    done = CliRunner().invoke(app, ["export", str(first)])
    assert done.exit_code == 0, done.output
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/other.db")
    for expected in ("2 of 2", "0 of 2"):  # a second time there is nothing left to take in
        done = CliRunner().invoke(app, ["import", str(first)])
        assert done.exit_code == 0, done.output
        assert f"{expected} runs taken in" in done.output
    assert CliRunner().invoke(app, ["export", str(second)]).exit_code == 0
    assert second.read_bytes() == first.read_bytes()
    assert len(first.read_text().splitlines()) == 2
    mine, theirs = (s.seeds().iloc[0] for s in (store, Store("digits")))
    for name in ("cell", "seed", "test/final", "ops/sops_g", "tag.checkpoint_sha256", "tag.commit", "tag.data_digest"):
        assert mine[name] == theirs[name], name
    assert list(Store("digits").history(theirs["run_id"], "epoch/test")) == [1 / 3, 2 / 3]
    assert list(Store("digits").failures().values()) == ["the loss is nan"]


def test_each_tables_experiment_shows_the_rows_that_it_shares(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Row 1 of Table 1, on digits the IF baseline of Table 3, too, stands in both experiments, after a run and after an import."""
    assert CliRunner().invoke(app, ["export", "runs.jsonl"]).exit_code == 0
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store.uri.replace("m.db", "other.db"))
    for _ in range(2):  # a second time changes nothing
        done = CliRunner().invoke(app, ["import", "runs.jsonl"])
        assert done.exit_code == 0, done.output
        client = Store("digits").client
        experiment = client.get_experiment_by_name("digits/table3")
        assert experiment is not None
        (row,) = client.search_runs([experiment.experiment_id])
        assert (row.data.tags["kind"], row.info.status) == ("row", "FINISHED")
        assert row.data.tags["mlflow.runName"] == "ResNet-18 IF L=1 T=4 on digits"
        assert row.data.metrics["mean/test/final"] == 50.0


def test_an_export_never_loses_a_run(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "runs.jsonl"
    assert CliRunner().invoke(app, ["export", str(path)]).exit_code == 0
    before = path.read_bytes()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/other.db")
    refused = CliRunner().invoke(app, ["export", str(path)])
    assert refused.exit_code == 1
    assert "holds 1 finished runs that the store does not" in refused.output
    assert path.read_bytes() == before
    refused = CliRunner().invoke(app, ["export", str(tmp_path / "new.jsonl")])
    assert "the store holds no run of profile digits" in refused.output


def test_an_export_never_replaces_a_run_by_another_training_of_its_seed(store: Store, tmp_path: Path) -> None:
    (one,) = [r for r in store.records() if r.status == "finished"]
    path = tmp_path / "runs.jsonl"
    path.write_text(record.dumps([one.model_copy(update={"checkpoint_sha256": "0" * 64})]))
    before = path.read_bytes()
    refused = CliRunner().invoke(app, ["export", str(path)])
    assert refused.exit_code == 1
    assert "holds another training of 1 of these runs" in " ".join(refused.output.split())
    assert path.read_bytes() == before
    published = tmp_path / "results" / "digits" / record.FILE
    published.parent.mkdir(parents=True)
    published.write_bytes(before)
    refused = CliRunner().invoke(app, ["report", "--publish"])
    assert "holds another training of 1 of these runs" in " ".join(refused.output.split())
    assert not (published.parent / "report.html").exists()
    path.write_text(record.dumps([one.model_copy(update={"metrics": one.metrics | {"ops/macs_g": 1.0}})]))
    assert CliRunner().invoke(app, ["export", str(path)]).exit_code == 0  # the same training, evaluated anew


def test_a_finished_run_is_taken_in_where_its_seed_has_failed(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (one,) = [r for r in store.records() if r.status == "finished"]
    path = tmp_path / "runs.jsonl"
    path.write_text(record.dumps([one]))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/other.db")
    other = Store("digits")
    other.fail(other.open_seed("table1", spec.Cell(**one.config), 42, "cpu")[0], "the loss is nan")
    for expected in ("1 of 1", "0 of 1"):
        done = CliRunner().invoke(app, ["import", str(path)])
        assert f"{expected} runs taken in" in done.output
    assert [(r.key, r.status) for r in other.records()] == [(one.key, "finished")]
    assert CliRunner().invoke(app, ["export", str(path)]).exit_code == 0


def test_another_profiles_record_is_refused(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    path.write_text(record.dumps(store.records()))
    for words in (["import", str(path)], ["report", "--records", str(path)]):
        refused = CliRunner().invoke(app, [*words, "--profile", "paper"])
        assert refused.exit_code == 1
        said = " ".join(refused.output.split())
        assert f"none of the 2 runs in {path} is one of profile paper; --profile says whose they are" in said
    assert not Path("out").exists()


@pytest.mark.parametrize("classes", [10, 200, 1000])
def test_packed_predictions_come_back(classes: int) -> None:
    random = np.random.default_rng(0)
    labels, one, two = random.integers(0, classes, (3, 500))
    found = record.unpack(json.loads(json.dumps(record.pack(labels, {"a": one, "b": two}))))
    assert list(found) == ["labels", "a", "b"]
    for expected, name in [(labels, "labels"), (one, "a"), (two, "b")]:
        assert np.array_equal(found[name], expected)


def test_a_metric_is_the_mean_over_its_images(store: Store) -> None:
    (one,) = [r for r in store.records() if r.status == "finished"]
    images = one.per_image("test/final")
    assert images is not None
    assert images.mean() == one.metrics["test/final"]
    changed = one.per_image("reparam/changed_pct")
    assert changed is not None
    assert changed.mean() == 50.0
    assert one.per_image("ops/sops_g") is None


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"seed": 42', '"seed": 42, "colour": 1', "line 1 is not a record: colour"),
        ('"tgim": {}', '"tgim": {"a": {"omega": [[1.0]]}}', "tgim a is not omega, .* and the number leak"),
        ('"tgim": {}', '"tgim": {"a": {"omega": [[1, 2], [3]], "leak": 1}}', "tgim a is not omega"),
        ('"tgim": {}', '"tgim": {"a": {"omega": [["x"]], "leak": 1}}', "tgim a is not omega"),
        ('"tgim": {}', '"tgim": {"a": {"omega": 1, "leak": 1}}', "tgim a is not omega"),
        ('"history": {', '"history": {"other": [], ', "history lacks epochs"),
        ('"test": [', '"tset": [', "history lacks epochs: a finished run has test"),
        ('"title": "', '"title": "\\ud800', "line 1 is not a record: 'utf-8' codec can't encode .*ud800"),
        ('"title": "', '"\\ud800": 1, "title": "', "line 1 is not a record: 'utf-8' codec can't encode .*ud800"),
        ('"metrics": {', '"metrics": {"../../x": 1, ', "'../../x' is no name of a metric"),
        ('"metrics": {', '"metrics": {"": 1, ', "'' is no name of a metric"),
        ('"metrics": {', '"metrics": {"a\\nb": 1, ', "b' is no name of a metric"),
        ('"metrics": {', '"metrics": {"' + "a" * 251 + '": 1, ', "aaa' is no name of a metric"),
        ('"seed": 42', '"seed": -1', "line 1 is not a record: seed .* greater than or equal to 0"),
        ('"width": 0.125', '"width": 0.25', "is not the hash of its config"),
        ('"metrics": {', '"metrics": {{', "line 1 is not a record"),
        ("\n", "\nnot json\n", "line 2 is not a record"),
        ('"test/final": 50.0', '"test/final": 99.9', "test/final = 99.9 is not what its predictions give"),
        ('"test/final": 50.0', '"test/other": 50.0', "a finished run has test/final"),
        ('"digest": "d', '"digits": "d', "the digests of its data"),
        ('"bz2": "', '"bz2": "AAAA', "predictions that can't be unpacked"),
        ('"bits": 8', '"bats": 8', "predictions that can't be unpacked"),
    ],
)
def test_a_damaged_file_is_refused(store: Store, tmp_path: Path, old: str, new: str, message: str) -> None:
    (one,) = [r for r in store.records() if r.status == "finished"]
    text = record.dumps([one])
    assert old in text
    with pytest.raises(record.RecordError, match=message):
        record.loads(text.replace(old, new, 1), "runs.jsonl")
    with pytest.raises(record.RecordError, match=r"line 2: seed 42 of cell .* stands twice"):
        record.loads(text + text, "runs.jsonl")
    config = one.config | {"later": 1}  # of another version of this project
    later = one.model_copy(update={"config": config, "cell": spec.content_hash(config)})
    with pytest.raises(record.RecordError, match="line 1 is not a record: later"):
        record.loads(record.dumps([later]), "runs.jsonl")
    with pytest.raises(record.RecordError, match="can't be read"):
        record.load(tmp_path)


def test_runs_are_compared_bit_for_bit(store: Store) -> None:
    (one,) = [r for r in store.records() if r.status == "finished"]

    def like(**changes: object) -> Record:
        return Record(**(one.model_dump() | changes))

    assert (
        record.in_one_line(record.compare([one], [one])) == "1 of 1 runs identical to the committed ones, bit for bit"
    )
    faster = like(history=one.history | {"images_per_s": [1.0, 1.0]}, wall_s=1.0)
    assert record.compare([faster], [one])[0].verdict == "identical"
    elsewhere = like(
        checkpoint_sha256="0" * 64,
        metrics=one.metrics | {"test/final": 49.0},
        provenance=one.provenance | {"cpu": "x86_64 AVX2"},
    )
    (found,) = record.compare([elsewhere], [one])
    assert found.verdict == "differs"
    assert "differs in checkpoint, 1 of 2 metrics; test accuracy -1.00 points; on x86_64 AVX2" in found.text
    line = record.in_one_line([found])
    assert line.startswith("0 of 1 runs identical")
    assert "1 differ, in test accuracy by at most 1.00 points (here x86_64 AVX2, committed" in line
    assert "1 runs have no committed counterpart" in record.in_one_line(record.compare([one], []))
    for other, what in [
        (like(predictions={}), "predictions (missing)"),
        (like(tgim={"layer1": {"omega": [[1.0]], "leak": 1.0}}), "T-GIMs"),
    ]:
        (found,) = record.compare([other], [one])
        assert found.text.startswith(f"differs in {what}; test accuracy +0.00 points; on ")
        (found,) = record.compare([one], [other])
        assert found.verdict == "differs"
    on_gpu = like(checkpoint_sha256="0" * 64, provenance=one.provenance | {"device": "NVIDIA X", "cpu": "x86_64 AVX2"})
    (found,) = record.compare([on_gpu], [one])
    assert "; on NVIDIA X (x86_64 AVX2), the committed one on " in found.text


def test_on_another_kind_of_processor_a_run_is_held_against_its_seeds(store: Store) -> None:
    (one,) = [r for r in store.records() if r.status == "finished"]

    def run(seed: int, accuracy: float, **provenance: str) -> Record:
        changes = {"seed": seed, "metrics": {"test/final": accuracy}, "predictions": {}}
        return Record(**(one.model_dump() | changes | {"provenance": one.provenance | provenance}))

    committed = [run(seed, accuracy) for seed, accuracy in enumerate((48.0, 50.0, 52.0))]
    half = 4.302653 * 2 * (1 + 1 / 3) ** 0.5  # a table's t for 97.5 % at 2 degrees of freedom
    for accuracy, within in ((50 + half - 0.01, True), (50 - half - 0.01, False)):
        other = run(0, accuracy, cpu="x86_64 AVX2")
        (found,) = record.compare([other], committed)
        where = "within" if within else "outside"
        ends = f"{where} the 95 % interval of a seed beside the 3 committed, {50 - half:.2f} to {50 + half:.2f} %"
        assert found.text.endswith(ends)
        assert record.in_one_line([found]).endswith(f"; {within:d} of 1 on another kind within their seeds' interval")
        assert record.compare([other], committed[:1])[0].within is None, "one seed has no interval"
        (same,) = record.compare([run(0, accuracy)], committed)
        assert same.within is None, "on the same kind the bits are the same, or something is wrong"
        assert "interval" not in record.in_one_line([same])


def test_a_newer_evaluation_takes_the_place_of_an_older_one_and_never_the_other_way(
    store: Store, tmp_path: Path
) -> None:
    (one,) = [r for r in store.records() if r.status == "finished"]
    assert one.evaluation
    later = one.evaluation.model_copy(update={"version": one.evaluation.version + 1})
    path = tmp_path / "runs.jsonl"
    path.write_text(record.dumps([one.model_copy(update={"evaluation": later, "metrics": one.metrics | {"new": 1.0}})]))
    before = path.read_bytes()
    refused = CliRunner().invoke(app, ["export", str(path)])
    assert refused.exit_code == 1
    assert "holds newer evaluations of 1 runs than the store" in " ".join(refused.output.split())
    assert path.read_bytes() == before
    for expected in ("1 of 1", "0 of 1"):
        done = CliRunner().invoke(app, ["import", str(path)])
        assert f"{expected} runs taken in" in done.output
    (held,) = [r for r in store.records() if r.status == "finished"]
    assert record.dumps([held]).encode() == before
    assert store.seeds()["new"].tolist() == [1.0]
    older = tmp_path / "older.jsonl"
    older.write_text(record.dumps([one]))
    assert "0 of 1 runs taken in" in CliRunner().invoke(app, ["import", str(older)]).output
    assert CliRunner().invoke(app, ["export", str(older)]).exit_code == 0


@pytest.mark.parametrize("mark", ["\u2028", "\x85"])
def test_a_line_of_a_record_ends_where_json_says(store: Store, mark: str) -> None:
    (one,) = [r for r in store.records() if r.status == "finished"]
    strange = one.model_copy(update={"provenance": one.provenance | {"machine": f"a{mark}b"}})
    (found,) = record.loads(record.dumps([strange]), "runs.jsonl")
    assert found.provenance == strange.provenance


def test_a_report_changes_no_tracked_file_and_says_how_its_runs_compare(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/m.db")
    monkeypatch.chdir(tmp_path)
    Path("README.md").write_text("mine")
    done = CliRunner().invoke(app, ["report"])
    assert done.exit_code == 0, done.output
    assert "not compared: no record of runs is committed for profile digits" in " ".join(done.output.split())
    assert Path("out/digits/report.html").exists()
    assert not Path("results").exists()
    assert Path("README.md").read_text() == "mine"
    assert "profile digits has no finished run: its tables show what the paper says" in " ".join(done.output.split())
    Path("results/digits").mkdir(parents=True)
    Path("results/digits/runs.jsonl").write_text("")
    done = CliRunner().invoke(app, ["report"])
    assert "0 of 0 runs identical to the committed ones, bit for bit" in " ".join(done.output.split())


def test_run_ends_with_the_comparison_of_what_was_trained_here(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["run", "table1", "--rows", "1", "--device", "cpu", "--jobs", "1"]  # finished already: nothing is trained

    def ending() -> list[str]:
        done = CliRunner().invoke(app, words)
        assert done.exit_code == 0, done.output
        return [
            line for line in done.output.splitlines() if "compared" in line or "differs" in line or "committed" in line
        ]

    assert ending() == ["not compared: no record of runs is committed for profile digits (results/digits/runs.jsonl)"]
    assert CliRunner().invoke(app, ["export"]).exit_code == 0
    assert ending() == ["1 of 1 runs identical to the committed ones, bit for bit"]
    path = Path("results/digits/runs.jsonl")
    path.write_text(path.read_text().replace('"ops/sops_g": 0.3', '"ops/sops_g": 0.4'))
    first, last = ending()
    assert first.startswith("ResNet-18 IF L=1 T=4 on digits, seed 42: differs in 1 of 2 metrics; test accuracy +0.00")
    assert last.startswith("0 of 1 runs identical")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store.uri.replace("m.db", "other.db"))
    assert CliRunner().invoke(app, ["import"]).exit_code == 0
    assert ending() == ["0 of 0 runs identical to the committed ones, bit for bit"]  # an import is no reproduction
    assert "1 runs were imported, not trained here" in " ".join(CliRunner().invoke(app, words).output.split())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "has no record.json; restore the file"),
        (b'{"cell": "', "record.json is not a record: Unterminated string"),
        (b"\xff\xfe", "can't decode byte 0xff"),
        (b"[" * 100_000, "record.json is not a record: "),
    ],
)
def test_a_damaged_record_is_named_and_the_other_runs_go_on(store: Store, content: bytes | None, message: str) -> None:
    run_id = str(store.seeds()["run_id"][0])
    path = Path(store.client.get_run(run_id).info.artifact_uri.removeprefix("file://")) / "record.json"
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.warns(UserWarning, match=f"{run_id}.*{message}|{message}.*{run_id}"):
        left = store.records()
    assert [one.status for one in left] == ["failed"]
    done = CliRunner().invoke(app, ["report", "tables", "--out", "out"])
    assert done.exit_code == 0, done.output


def test_reading_records_leaves_nothing_behind(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (scratch := tmp_path / "scratch").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    assert store.records()
    assert not list(scratch.iterdir())


@pytest.mark.parametrize(
    ("tag", "value"),
    [("cell", ""), ("seed", "abc"), ("seed", "9" * 4999), ("seed", "43"), ("seed", "042"), ("cell", "0" * 16)],
)
def test_tags_that_somebody_changed_are_named(store: Store, tag: str, value: str) -> None:
    run_id = str(store.seeds()["run_id"][0])
    store.client.delete_tag(run_id, tag)
    if value:
        store.client.set_tag(run_id, tag, value)
    said = f"{tag} is {value!r}" if value else f"{tag} is missing"
    with pytest.warns(UserWarning, match=f"run {run_id} is left out: of its tags {said}"):
        assert store.seeds().empty
    with pytest.warns(UserWarning, match=said):
        store.renew_cells()


def test_a_record_of_another_seed_than_its_run_is_left_out(store: Store) -> None:
    run_id = str(store.seeds()["run_id"][0])
    path = Path(store.client.get_run(run_id).info.artifact_uri.removeprefix("file://")) / "record.json"
    path.write_text(path.read_text().replace('"seed": 42', '"seed": 43'))
    with pytest.warns(UserWarning, match=f"run {run_id} has the tags of another .* than record.json, seed 43 of cell"):
        assert [one.status for one in store.records()] == ["failed"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_an_import_that_a_signal_ends_leaves_no_run_open_and_no_file(
    number: int, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "runs.jsonl"
    path.write_text(record.dumps(store.records()))
    (scratch := tmp_path / "scratch").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/other.db")

    def in_the_middle(*_: object, **__: object) -> None:
        with tempfile.TemporaryDirectory():
            signal.raise_signal(number)

    before = signal.signal(number, signal.SIG_DFL)  # whoever started this may ignore it
    monkeypatch.setattr(MlflowClient, "log_text", in_the_middle)
    try:
        done = CliRunner().invoke(app, ["import", str(path)])
        assert signal.getsignal(number) == signal.SIG_DFL
    finally:
        signal.signal(number, before)
    said = done.output.splitlines()[-1]  # after what old MLflows log of a new store
    assert (done.exit_code, said) == (128 + number, f"stopped by {signal.Signals(number).name}")
    assert not list(scratch.iterdir())
    other = Store("digits")
    assert [run.info.status for run in other._search("tags.kind = 'seed'")] == ["KILLED"]


def test_a_records_provenance_does_not_reach_the_stores_own_tags(store: Store, tmp_path: Path) -> None:
    (one,) = [one for one in store.records() if one.status == "finished"]
    bad = one.model_copy(update={"provenance": one.provenance | {"kind": "cell", "seed": "7", "owner": "me"}})
    other = Store("digits", f"sqlite:///{tmp_path}/other.db")
    assert other.take_in([bad]) == 1
    assert other.seeds()["seed"].tolist() == [42]
    assert len(other.records()) == 1


def test_devices_of_a_record_are_at_least_one(store: Store) -> None:
    (one,) = [one for one in store.records() if one.status == "finished"]
    config = one.config | {"devices": 0}
    line = json.dumps(json.loads(one.line()) | {"config": config, "cell": spec.content_hash(config)})
    with pytest.raises(record.RecordError, match="is not a record: devices Input should be greater than or equal to 1"):
        record.parse(line, "x")
