"""From a store of invented runs to tables, verdicts, figures and the page."""

import html
import math
import re
import shutil
import struct
import subprocess
import zlib
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch
from matplotlib.figure import Figure
from typer.testing import CliRunner

from benchmarks import cli, spec
from benchmarks.cli import app
from benchmarks.record import FILE, Epoch, Evaluation, Measured, Record, Result, dumps, load, pack
from benchmarks.report import claims, figures, page, tables, verify
from benchmarks.store import Store

ROOT = Path(__file__).parents[1]
SEEDS = range(42, 47)
RELU = "cifar10-resnet18-relu"  # on digits every data set is the same
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
ACCURACY = {"1": 90.0, "2": 92.0, "3": 93.0, "4": 80.0, "5": 90.0, "6": 91.0}  # Table 1, before each seed's own offset
OFFSETS = dict(zip(SEEDS, (-0.5, 0.25, 0.0, 0.5, -0.25), strict=True))
TABLE4 = ("resnet20-tq4-if-t4", "resnet20-tq4-l2t2-exact", "resnet20-tq4-l2t2-algorithm1")


def invented(table: str, row: spec.Row, seed: int) -> dict[str, float]:
    """Metrics under the names of ``train.py``."""
    offset = OFFSETS[seed]
    if table == "table1":
        accuracy = ACCURACY[row.id] + offset
        found = {"test/final": accuracy, "test/best_val": accuracy - 1, "test/best": accuracy + 1}
        found |= {"ops/uncounted": 8.0} if row.id == "3" else {}
        found |= {"ops/sops_g": 1e-3 * (0.65 if row.neuron == "lmht" else 1.0) * (1 + offset / 100)}
        return found | {"ops/energy_mj": 0.9 * found["ops/sops_g"], "prefix/t1": 50.0}
    if row.start is None:
        return {"test/final": 95.0 + offset, "if/T4/accuracy": 80.0, "if/T4/sops_g": 0.002, "if/T4/energy_mj": 0.0018}
    exact = row.start == "exact"
    return {
        "test/final": 95.5 + offset if exact else 85.0 + offset,
        "ann/accuracy": 95.0 + offset,
        "before/accuracy": 95.0 + offset if exact else 40.0,
        "before/agree_pct": 99.5 if exact else 40.0,
        "before/agree_float64_pct": 100.0 if exact else 40.0,
        "ops/sops_g": 0.002,
    }


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A store with five seeds of Table 1 and of three rows of Table 4, one seed that failed, and one cell that failed."""
    folder = tmp_path_factory.mktemp("store")
    where, profile = f"sqlite:///{folder}/m.db", spec.load_profile("digits")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)  # artifacts land in ./mlruns
        store = Store("digits", where)
        for table, wanted in (("table1", list(ACCURACY)), ("table4", list(TABLE4))):
            for row in spec.select_rows(table, spec.load_spec(table), wanted):
                cell = spec.resolve(row, profile)
                for seed in SEEDS:
                    run_id, _ = store.open_seed(table, cell, seed, "cpu")
                    for epoch in (1, 2):
                        store.log_epoch(run_id, Epoch(epoch, 2, {"test": 40.0 * epoch + OFFSETS[seed]}))
                    path = folder / "checkpoint.pt"
                    torch.save({}, path)
                    layer = {"omega": [[0.5, 0.5], [0.5, 0.5]], "leak": 1.125}
                    tgim = {"body.0": layer, "body.1.residual.2": layer} if row.neuron == "lmht" else {}
                    measured = Measured({}, np.zeros(0, np.int64), {}, tgim, 1)
                    data = {"name": "digits", "digest": "d" * 64, "source": "scikit-learn"}
                    store.finish(run_id, Result(invented(table, row, seed), path, data, measured))
        rows = {row.id: row for row in spec.load_spec("table1").row}
        store.fail(store.open_seed("table1", spec.resolve(rows["6"], profile), 47, "cpu")[0], "the loss is nan")
        (vgg,) = spec.select_rows("table4", spec.load_spec("table4"), ["vgg16-tq4-if-t2"])
        store.fail(store.open_seed("table4", spec.resolve(vgg, profile), 42, "cpu")[0], "data set X not found at /x")
    return where


@pytest.fixture(scope="module")
def written(uri: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out")
    page.write(tables.Results.of("digits", Store("digits", uri).records()), out)
    return out


def table(written: Path, name: str) -> pd.DataFrame:
    return pd.read_csv(written / "digits" / f"{name}.csv", dtype=str, keep_default_na=False).set_index("row")


def test_store_file_and_a_store_that_took_it_in_give_the_same_bytes(
    uri: str, written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert CliRunner().invoke(app, ["export", "runs.jsonl"]).exit_code == 0
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/fresh.db")
    for words in (
        ["import", "runs.jsonl"],
        ["report", "--out", "b"],
        ["report", "--out", "a", "--records", "runs.jsonl"],
    ):
        done = CliRunner().invoke(app, words)
        assert done.exit_code == 0, done.output
    for out in (tmp_path / "a", tmp_path / "b"):
        files = {path.relative_to(written) for path in written.rglob("*") if path.is_file()}
        assert files == {path.relative_to(out) for path in out.rglob("*") if path.is_file()}
        assert len(files) > 20
        different = [str(path) for path in files if (written / path).read_bytes() != (out / path).read_bytes()]
        assert different == []


def test_a_row_carries_its_statistics_and_provenance(written: Path) -> None:
    line = table(written, "table1").loc["3"]
    values = [93.0 + offset for offset in OFFSETS.values()]
    assert line["accuracy_pct_per_seed"] == "92.5; 93.25; 93; 93.5; 92.75"
    assert float(line["accuracy_pct_mean"]) == pytest.approx(np.mean(values))
    assert float(line["accuracy_pct_sd"]) == pytest.approx(np.std(values, ddof=1), rel=1e-5)
    # t quantile 0.975 with 4 degrees of freedom, from a printed table
    assert float(line["accuracy_pct_ci95"]) == pytest.approx(2.776 * np.std(values, ddof=1) / 5**0.5, rel=1e-3)
    assert float(line["accuracy_best_test_epoch_pct_mean"]) == pytest.approx(94.0)
    assert float(line["accuracy_at_best_validation_pct_mean"]) == pytest.approx(92.0)
    assert (line["n"], line["seeds"], line["status"]) == ("5", "42; 43; 44; 45; 46", "run")
    assert (line["published_accuracy_pct"], line["published_sops_g"]) == ("80.56", "0.73")
    assert (line["paper_dataset"], line["dataset_used"]) == ("ImageNet-100", "digits")
    for column in (
        "config_hash",
        "config",
        "commit",
        "dirty",
        "torch",
        "checkpoint_sha256_per_seed",
        "wall_s_per_seed",
    ):
        assert line[column], column
    assert (line["data_digest"], line["device"], line["dtype"]) == ("d" * 64, "cpu", "32-true")


def test_what_sops_leave_out_stands_below_the_table(written: Path) -> None:
    lines = table(written, "table1")
    assert dict(lines["operations_not_counted"][lines["operations_not_counted"] != ""]) == {"3": "8"}
    page = (written / "digits" / "table1.md").read_text()
    assert "SOPs and energy leave out operations" in page
    assert "by network: LM-HT L=2 T=2, ResNet-18 (8)." in page
    assert "operations_not_counted" not in table(written, "table4").columns


def test_no_difference_from_the_paper_on_other_data(written: Path) -> None:
    assert "ours_minus_published_points" not in table(written, "table1")
    row = spec.load_spec("table3").row[0]
    cell = spec.resolve(row, spec.load_profile("paper"))
    assert tables.own_data(row, cell)
    assert not tables.own_data(row, spec.resolve(row, spec.load_profile("digits")))


def test_what_was_not_run_says_so_and_why(written: Path) -> None:
    table4 = table(written, "table4")
    assert table4.loc["vgg16-tq4-if-t2", "status"] == "not run: data set X not found at /x"
    tuned = table4.loc["vgg16-tq4-l2t2-exact", "status"]
    assert tuned == "not run: its quantised ANN was not run: data set X not found at /x"
    assert table4.loc["resnet20-tq8-if-t2", "status"] == "not run: no finished seed"
    assert not table4.loc["resnet20-tq8-if-t2", "accuracy_pct_mean"]
    assert table(written, "table1").loc["6", "status"] == "run; seed 47 failed: the loss is nan"
    assert "5, 1 failed" in (written / "digits" / "table1.md").read_text()


def test_rows_whose_data_the_profile_lacks_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    digits = spec.load_profile("digits")
    some = digits.model_copy(
        update={"datasets": {"CIFAR-10": "digits", "CIFAR-100": "digits", "ImageNet-200": "digits"}}
    )
    monkeypatch.setattr(tables, "load_profile", lambda name: some)
    results = tables.Results.of("digits", [])
    lines = tables.table_frame("table3", results).set_index("row")
    reason = "data: the profile names no data set for 'ImageNet-1k'"
    assert lines.loc["imagenet1k-resnet34-lmht-l2t2", "status"] == f"not run: {reason}"
    (one_run,) = [
        row for row in lines.index if row.startswith("cifar10-resnet18-lmht-l2t2; cifar100-resnet18-lmht-l2t2")
    ]
    assert lines.loc[one_run, "status"] == "not run: no finished seed"
    (part,) = [p for one in claims.judge(claims.load(), results) for p in one.parts if "imagenet1k" in p.part.of]
    assert (part.verdict, part.reason) == ("not run", f"row imagenet1k-resnet34-lmht-l2t2: {reason}")


@pytest.mark.parametrize("name", [name for name in spec.tables() if spec.load_spec(name).published_columns])
def test_every_line_of_the_paper_is_there_as_printed(written: Path, name: str) -> None:
    paper, lines = spec.published(name), table(written, name)
    columns = spec.load_spec(name).published_columns
    column = f"published_{columns[-1] if name == 'table4' else columns[0]}"
    others = lines[lines["status"] == tables.NOT_OURS]
    rows = spec.load_spec(name).row
    beside = len({row.dataset for row in rows}) == 1  # else the paper's numbers do not stand beside a stand-in's
    named = {i for row in rows for i in row.published if beside}
    assert len(others) == len(paper) - len(named)
    assert set(lines[column]) - {""} == set(paper[column.removeprefix("published_")]) - {""}
    runs = {(spec.resolve(row, DIGITS).hash, row.stage, row.steps) for row in rows}
    assert len(lines) == (len(rows) if beside else len(runs)) + len(others)


@pytest.mark.parametrize("name", ["table3", "table_s1"])
def test_a_stand_in_stands_once_under_its_own_name(written: Path, name: str) -> None:
    lines = table(written, name)
    mine, theirs = lines[lines["status"] != tables.NOT_OURS], lines[lines["status"] == tables.NOT_OURS]
    assert set(mine["paper_dataset"]) == set(mine["published_accuracy_pct"]) == {""}
    assert set(mine["dataset_used"]) == {"digits"}
    assert not mine.duplicated(["config_hash", "label"]).any()
    assert "" not in set(theirs["paper_dataset"])
    shown = tables.view(
        name, tables.table_frame(name, tables.Results.of("digits", [])), tables.Results.of("digits", [])
    )
    names = {
        line[shown.columns.index("data set")].text
        for line, kind in zip(shown.lines, shown.kinds, strict=True)
        if kind != "published"
    }
    assert names == {"digits"}
    parts = [p for one in claims.judge(claims.load(), tables.Results.of("digits", [])) for p in one.parts]
    of_table = [p for p in parts if p.part.table == name]
    assert {p.says.split(",")[0] for p in of_table} == {"digits"}
    assert len({p.runs for p in parts}) == len(parts)


def test_the_papers_data_stand_under_the_papers_names() -> None:
    results = tables.Results.of("paper", [])
    lines = tables.table_frame("table3", results)
    assert len(lines) == len(spec.published("table3")) + sum(not row.published for row in spec.load_spec("table3").row)
    (line,) = lines[lines["row"] == "cifar10-resnet18-lmht-l2t2"].to_dict("records")
    assert (line["paper_dataset"], line["dataset_used"], line["published_accuracy_pct"]) == (
        "CIFAR-10",
        "cifar10",
        "96.25",
    )
    (part,) = [p for c in claims.judge(claims.load(), results) for p in c.parts if "cifar10-resnet18" in p.part.of]
    assert part.says == "CIFAR-10, ResNet-18: LM-HT l2t2 minus IF at T=4 is above 0"


def test_every_claim_is_judged_by_its_rule(uri: str, written: Path) -> None:
    found = pd.read_csv(written / "digits" / "claims.csv", dtype=str, keep_default_na=False)
    whole = found[found["part"] == ""].set_index("claim")["verdict"].to_dict()
    assert whole["C1"] == whole["C3"] == "not run"  # no ANN tells whether C1's baselines have learnt
    records = Store("digits", uri).records()
    records += [recorded("table3", row, seed, 95.0) for row in (RELU, "imagenet1k-resnet34-relu") for seed in SEEDS]
    judged = {one.claim.id: one.verdict for one in claims.judge(claims.load(), tables.Results.of("digits", records))}
    assert (judged["C1"], judged["C3"]) == ("reproduced", "not run")
    parts = found[found["claim"] == "C1"].set_index("part")
    assert (parts.loc["1", "mean"], parts.loc["1", "published"]) == ("2", "4.3")
    assert (parts.loc["3", "mean"], parts.loc["3", "published"]) == ("8", "12.26")
    assert (parts.loc["6", "mean"], parts.loc["6", "unit"]) == ("-35", "%")
    tuned = found[found["rows"].str.startswith("resnet20-tq4-l2t2-algorithm1 - resnet20-tq4-l2t2-algorithm1")]
    assert list(tuned["verdict"]) == ["not reproduced"]
    assert whole["C4 (Algorithm 1)"] == "not reproduced"  # a part that is false makes the claim false, run or not
    assert whole["C4"] == "not run"


DIGITS = spec.load_profile("digits")


def recorded(table: str, row_id: str, seed: int, accuracy: float, **more: Any) -> Record:
    """The record of an invented run of a row on digits."""
    (row,) = spec.select_rows(table, spec.load_spec(table), [row_id])
    cell = spec.resolve(row, DIGITS)
    return Record(
        table=table,
        title=cell.name,
        cell=cell.hash,
        seed=seed,
        config=cell.model_dump(mode="json"),
        provenance={},
        data={"digest": "d" * 64},
        status="finished",
        evaluation=Evaluation(version=1, commit="", dirty="", cpu=""),
        **(
            {"metrics": {"test/final": accuracy}, "history": {"test": [accuracy]}, "checkpoint_sha256": "c" * 64} | more
        ),
    )


def of_profile(name: str, row: spec.Row) -> dict[str, Any]:
    """What makes a record one of another profile."""
    cell = spec.resolve(row, spec.load_profile(name))
    return {"cell": cell.hash, "config": cell.model_dump(mode="json")}


def judged_part(records: list[Record], claim: str, says: str) -> claims.Judged:
    """The one part of a claim whose statement holds these words, judged."""
    found = claims.judge(claims.load(), tables.Results.of("digits", records))
    (one,) = [p for c in found if c.claim.id == claim for p in c.parts if says in p.part.says]
    return one


def test_a_difference_of_two_rows_beside_one_published_number_has_no_published_value() -> None:
    (found,) = [
        p
        for c in claims.judge(claims.load(), tables.Results.of("digits", []))
        for p in c.parts
        if c.claim.id == "C6"
        and p.part.of == "resnet20-tq8-l2t2-exact"
        and p.part.minus == "resnet20-tq8-l2t2-algorithm1"
    ]
    assert np.isnan(found.published)


@pytest.mark.parametrize(
    ("baseline", "relu", "verdict"),
    [
        (70.0, 90.0, "not testable"),
        (74.0, 90.0, "not testable"),
        (75.5, 90.0, "reproduced"),
        (70.0, None, "not run"),
    ],
)
def test_a_baseline_that_has_not_learnt_tests_nothing(baseline: float, relu: float | None, verdict: str) -> None:
    noise = dict(zip(SEEDS, (0.0, 0.2, -0.2, 0.1, -0.1), strict=True))
    records = [recorded("table1", "1", seed, baseline + noise[seed]) for seed in SEEDS]
    records += [recorded("table1", "2", seed, 92.0) for seed in SEEDS]
    records += [recorded("table3", RELU, seed, relu) for seed in SEEDS if relu]
    found = judged_part(records, "C1", "ResNet-18: accuracy of M-HT L=2 T=2 minus L=1")
    assert found.verdict == verdict
    assert (
        found.reason
        == {
            "not testable": f"its baseline 1 has not learnt: {baseline:.2f} %, the ReLU ANN 90.00 %",
            "reproduced": "",
            "not run": "no ANN was run to tell whether the baseline 1 has learnt",
        }[verdict]
    )


@pytest.mark.parametrize("profile", spec.profiles())
def test_of_every_baseline_it_can_be_told_whether_it_has_learnt(profile: str) -> None:
    results = tables.Results.of(profile, [])
    anns = {(ann.architecture, str(ann.network), ann.dataset) for ann in results.anns}
    for part in (part for claim in claims.load().claim for part in claim.part):
        rows = {row.id: row for row in spec.load_spec(part.table).row}
        for row in (part.minus, part.less.minus if part.less else None):
            cell = results.cell(rows[row]) if row else None
            assert cell is None or (cell.architecture, str(cell.network), cell.dataset) in anns, (part.table, row)


def test_parts_that_read_other_numbers_of_the_same_runs_all_stand() -> None:
    """Conversions at two latencies are two numbers of one run."""
    rules = claims.load()
    part = claims.Part(says="", table="table4", metric="accuracy_pct", of="resnet20-tq4-if-t2", above=0)
    changes: list[dict[str, Any]] = [{}, {"of": "resnet20-tq4-if-t8"}, {"minus": "resnet20-tq4-if-t4"}]
    changes += [{"minus": "resnet20-tq4-if-t8"}, {"minus": "resnet20-tq4-if-t8", "relative": True}, {"above": 1}]
    parts = [part.model_copy(update=change) for change in changes]
    claim = rules.claim[0].model_copy(update={"part": [*parts, part]})
    (judged,) = claims.judge(rules.model_copy(update={"claim": [claim]}), tables.Results.of("digits", []))
    assert [one.part for one in judged.parts] == parts


@pytest.mark.parametrize(
    ("value", "text"),
    [("0.0009996", "1 M"), ("0.0009994", "999 k"), ("0.9996", "1 G"), ("123.456", "123 G"), ("0", "0"), ("", "")],
)
def test_a_number_of_operations_has_the_unit_of_what_it_is_rounded_to(value: str, text: str) -> None:
    assert tables.operations({"neuron": "if", "sops_g_mean": value}).text == text


def test_whether_a_baseline_has_learnt_is_asked_of_the_seeds_compared() -> None:
    records = [recorded("table1", "1", seed, 70.0 + seed % 2) for seed in SEEDS[:2]]
    records += [recorded("table1", "1", seed, 92.0) for seed in SEEDS[2:]]  # without their counterparts
    records += [recorded("table1", "2", seed, 92.0) for seed in SEEDS[:2]]
    records += [recorded("table3", RELU, seed, 90.0) for seed in SEEDS]
    found = judged_part(records, "C1", "ResNet-18: accuracy of M-HT L=2 T=2 minus L=1")
    assert found.verdict == "not testable"
    assert found.reason == "its baseline 1 has not learnt: 70.50 %, the ReLU ANN 90.00 %"


def test_a_conversions_baseline_is_its_ann_as_trained() -> None:
    """IF at few steps is meant to be poor: what has to have learnt is the network that was converted."""
    rows = ("resnet20-tq4-if-t4", "resnet20-tq4-l2t2-exact")
    for trained, verdict in [(95.0, "reproduced"), (60.0, "not testable")]:
        metrics = [{"test/final": trained, "if/T4/accuracy": 20.0}, {"test/final": 94.0, "ann/accuracy": trained}]
        records = [recorded("table4", r, s, 0, metrics=m) for r, m in zip(rows, metrics, strict=True) for s in SEEDS]
        records += [
            recorded("table4", "resnet20-tq8-if-t4", s, 96.0) for s in SEEDS
        ]  # the best ANN: no ReLU one was run
        assert judged_part(records, "C4", "resnet20 Tq=4: LM-HT l2t2 minus").verdict == verdict


def hybrid(wrong_before: int, wrong_after: int, images: int = 1000) -> list[Record]:
    """One seed of a QCFS network as IF and of its fine-tuned LM-HT, which err on so many images, the first ones, of a thousand."""
    labels = np.arange(images) % 10
    one, two = ((labels + (np.arange(images) < wrong)) % 10 for wrong in (wrong_before, wrong_after))
    before, after = (100 * (1 - wrong / images) for wrong in (wrong_before, wrong_after))
    found = {"if/T4/accuracy": one, "test/final": labels}
    metrics = {"if/T4/accuracy": before, "test/final": 100.0}
    tuned = {"test/final": two, "ann/accuracy": labels, "before/accuracy": labels}
    return [
        recorded("table4", "resnet20-tq4-if-t4", 42, 0, metrics=metrics, predictions=pack(labels, found)),
        recorded(
            "table4",
            "resnet20-tq4-l2t2-exact",
            42,
            0,
            metrics={"test/final": after, "ann/accuracy": 100.0, "before/agree_float64_pct": 100.0},
            predictions=pack(labels, tuned),
        ),
    ]


@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [(200, 150, "reproduced"), (155, 150, "reproduced"), (151, 150, "inconclusive"), (150, 150, "not reproduced")],
)
def test_one_seed_is_judged_over_the_test_images_in_pairs(before: int, after: int, verdict: str) -> None:
    """Errors are nested, so the difference is a binomial share: 5 of 1000 images are told from 0, 1 of 1000 is not."""
    found = judged_part(hybrid(before, after), "C4", "resnet20 Tq=4: LM-HT l2t2 minus")
    assert (found.verdict, found.said, found.seeds) == (verdict, f"{verdict} (1 seed)", (42,))
    share = (before - after) / 1000
    assert found.mean == pytest.approx(100 * share)
    exact = scipy.stats.binom.ppf([0.025, 0.975], 1000, share) / 10
    assert [found.low, found.high] == pytest.approx(exact, abs=0.1)


def test_a_baseline_that_was_not_run_itself_may_not_have_learnt() -> None:
    """A fine-tuned network's own record tells its ANN's accuracy, but not whether the ANN was compared with another."""
    tuned = {"test/final": 94.0, "ann/accuracy": 95.0, "before/accuracy": 95.0}
    records = [recorded("table4", "resnet20-tq4-l2t2-exact", seed, 0, metrics=tuned) for seed in SEEDS]
    says = "resnet20 Tq=4: LM-HT l2t2 is at most"
    found = judged_part(records, "C4", says)
    assert found.verdict == "not run"
    assert "as trained, was not run with all of these seeds" in found.reason
    trained = [recorded("table4", "resnet20-tq4-if-t4", seed, 95.0) for seed in SEEDS]
    assert judged_part(records + trained, "C4", says).verdict == "reproduced"
    assert judged_part(records + trained[1:], "C4", says).verdict == "not run"


def test_a_certificate_that_promised_nothing_kept_nothing() -> None:
    for promised, verdict in ((0.0, "not testable"), (10.0, "reproduced")):
        metrics = {"test/final": 90.0, "certificate/promised_pct": promised, "certificate/broken_pct": 0.0}
        records = [recorded("table1", "2", seed, 0, metrics=metrics) for seed in SEEDS]
        found = judged_part(records, "C7", "ResNet-18 without T-GIM (part added after the first runs): no prediction")
        assert found.verdict == verdict


def test_other_test_data_are_not_compared() -> None:
    one, two = hybrid(200, 150)
    moved = two.model_copy(update={"data": {"digest": "e" * 64}})
    found = judged_part([one, moved], "C4", "resnet20 Tq=4: LM-HT l2t2 minus")
    assert found.verdict == "not run"
    assert found.reason == "its rows were tested on different data (seed 42)"


def test_one_seed_without_predictions_decides_nothing() -> None:
    records = [recorded("table1", row, 42, 90.0, metrics={"test/final": 90.0, "ops/sops_g": 0.1}) for row in ("2", "3")]
    records.append(recorded("table3", RELU, 42, 93.0))
    found = judged_part(records, "C1", "ResNet-18: LM-HT needs at least 20 % fewer SOPs")
    assert (found.said, found.reason) == ("inconclusive (1 seed)", "no predictions to pair")
    all_alike = judged_part(hybrid(200, 150), "C6", "resnet20 Tq=4: in float64 LM-HT l2t2")
    assert all_alike.said == "reproduced (1 seed)"


def test_a_metric_that_only_some_seeds_have_says_its_own_n() -> None:
    records = [recorded("table1", "1", seed, 80.0) for seed in SEEDS]
    more = {"test/final": 80.0, "test/best": 81.0}
    newer = Evaluation(version=2, commit="", dirty="", cpu="")
    records[0] = records[0].model_copy(update={"metrics": more, "evaluation": newer})
    results = tables.Results.of("digits", records)
    frame = tables.table_frame("table1", results)
    shown = tables.view("table1", frame, results)
    line = dict(zip(shown.columns, shown.lines[0], strict=True))
    assert (line["ours: accuracy %"].text, line["best test epoch"].text) == ("80.00 ± 0.00", "81.00 (n = 1)")
    assert line["seeds"].text == "5"
    assert any(note.startswith("Rows were evaluated by versions 1; 2 of the code") for note in shown.notes)


def test_fewer_seeds_are_told_beside_the_verdict() -> None:
    records = [recorded("table1", "1", seed, 80.0 + seed % 2) for seed in SEEDS]
    records += [recorded("table1", "2", seed, 92.0 + seed % 2) for seed in (43, 44, 45)]
    records += [recorded("table3", RELU, seed, 93.0) for seed in SEEDS]
    found = judged_part(records, "C1", "ResNet-18: accuracy of M-HT L=2 T=2 minus L=1")
    assert (found.said, found.seeds) == ("reproduced (3 seeds)", (43, 44, 45))


def test_what_is_not_testable_makes_a_claim_neither_reproduced_nor_not() -> None:
    (claim, *_) = claims.load().claim

    def whole(*verdicts: str) -> str:
        parts = [claims.Judged(claim.part[0], verdict, runs=str(i)) for i, verdict in enumerate(verdicts)]
        return claims.JudgedClaim(claim, parts).verdict

    assert whole("reproduced", "not testable", "inconclusive") == "not testable"
    assert whole("not reproduced", "not testable") == "not reproduced"


def part(**bounds: float) -> claims.Part:
    return claims.Part(says="", table="table1", metric="accuracy_pct", of="1", **bounds)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("bounds", "low", "high", "verdict"),
    [
        ({"above": 0}, 0.1, 2, "reproduced"),
        ({"above": 0}, 0, 2, "inconclusive"),
        ({"above": 0}, -1, 0, "not reproduced"),
        ({"above": 0}, 0, 0, "not reproduced"),
        ({"at_least": -0.1, "at_most": 0.1}, 0, 0, "reproduced"),
        ({"at_least": -0.1, "at_most": 0.1}, -0.1, 0.1, "reproduced"),
        ({"at_least": -0.1, "at_most": 0.1}, -0.2, 0.1, "inconclusive"),
        ({"at_least": -0.1, "at_most": 0.1}, 0.2, 0.3, "not reproduced"),
        ({"at_least": 100}, 99, 99.9, "not reproduced"),
    ],
)
def test_the_interval_decides(bounds: dict[str, float], low: float, high: float, verdict: str) -> None:
    assert part(**bounds).judge(low, high) == verdict


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('of = "5"', 'of = "nine"', "no row 'nine'"),
        ('metric = "sops_g"', 'metric = "spikes"', "no metric 'spikes'"),
        ('table = "table1"', 'table = "table9"', "unknown table 'table9'"),
        ("relative = true", "relatively = true", "relatively"),
        ('net = "ResNet-18", of = "2"', 'nets = "ResNet-18", of = "2"', "no substitution for {net}"),
        ("at_least = -0.5", "", "no bound"),
    ],
)
def test_a_wrong_claim_is_an_error(tmp_path: Path, old: str, new: str, message: str) -> None:
    text = (spec.HERE / "specs" / "claims.toml").read_text()
    assert old in text
    (tmp_path / "claims.toml").write_text(text.replace(old, new, 1))
    with pytest.raises(spec.SpecError, match=re.escape(message)):
        claims.load(tmp_path / "claims.toml")


def test_the_papers_own_numbers_keep_its_claims() -> None:
    """The margins are such that the published tables pass: a rule that the paper itself failed would judge nothing."""
    for claim in claims.load().claim:
        if claim.id in ("C1", "C2", "C4"):
            for one in claim.part:
                value = claims._published(one, {row.id: row for row in spec.load_spec(one.table).row})
                assert one.judge(value - 1e-9, value - 1e-9) == "reproduced", (claim.id, one.says, value)


def table1(change: float = 0.0, seeds: Iterable[int] = SEEDS, checkpoint: str = "c" * 64) -> list[Record]:
    """Rows 1 and 2 of Table 1, and their network's ReLU ANN; ``change`` is added to the second."""
    noise = dict(zip(SEEDS, (0.0, 0.2, -0.2, 0.1, -0.1), strict=True))

    def one(table: str, row: str, seed: int, accuracy: float) -> Record:
        wrong = np.arange(1000) >= round(10 * accuracy)
        packed = pack(np.zeros(1000, np.int64), {"test/final": wrong.astype(np.int64)})
        return recorded(table, row, seed, accuracy, checkpoint_sha256=checkpoint, predictions=packed)

    accuracies = {"1": 90.0, "2": 92.0 + change}
    found = [
        one("table1", row, seed, value + noise[seed] * int(row)) for row, value in accuracies.items() for seed in seeds
    ]
    return found + [one("table3", RELU, seed, 93.0) for seed in seeds]


@pytest.mark.parametrize(
    ("fresh", "outcome", "confirmed"),
    [
        (table1(), "identical", True),
        (table1(0.5, checkpoint="d" * 64), "same verdict", True),
        (table1(-5), "flipped", False),
        (table1(seeds=list(SEEDS)[:4]), "not run", False),
        ([one for one in table1() if one.metrics["test/final"] < 91], "not run", False),
        ([], "not run", False),
    ],
)
def test_a_fresh_store_is_judged_against_the_record(fresh: list[Record], outcome: str, confirmed: bool) -> None:
    found = verify.verify("digits", fresh, table1(), claims.load())
    says = "ResNet-18: accuracy of M-HT L=2 T=2 minus L=1 T=4 is above 0"
    assert [part.outcome for part in found.parts if part.committed.part.says == says] == [outcome]
    assert {part.outcome for part in found.parts if part.committed.part.says != says} == {"not in the record"}
    assert found.confirmed == confirmed


def test_verify_ends_with_1_unless_all_that_is_committed_was_trained_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    trained: list[Record] = []
    monkeypatch.setattr(cli, "Store", lambda profile: SimpleNamespace(records=lambda imported: trained))
    missing = CliRunner().invoke(app, ["verify"])
    assert missing.exit_code == 1
    assert "no record at results/digits/runs.jsonl" in missing.output
    Path("results/digits").mkdir(parents=True)
    Path("results/digits/runs.jsonl").write_text("")
    empty = CliRunner().invoke(app, ["verify"])
    assert empty.exit_code == 1
    assert "holds no finished run to verify" in empty.output
    Path("results/digits/runs.jsonl").write_text(dumps(table1()))
    for records, words, code, text in [
        (table1(), [], 0, "15 of 15 runs identical to the committed ones, bit for bit"),
        (
            table1(-5),
            [],
            1,
            "flipped: C1: ResNet-18: accuracy of M-HT L=2 T=2 minus L=1 T=4 is above 0: reproduced -> not",
        ),
        (table1(seeds=[42]), [], 1, "not run: 12 of the committed runs were not trained in this store"),
        (table1(seeds=[42]), ["--seeds", "1"], 0, "3 of 3 runs identical to the committed ones, bit for bit"),
    ]:
        trained[:] = records
        done = CliRunner().invoke(app, ["verify", *words])
        assert done.exit_code == code, done.output
        assert text in done.output


def test_the_readme_block_is_renewed_between_its_markers(uri: str, tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("no markers\n")
    with pytest.raises(spec.SpecError, match="results:begin"):
        page.update_readme(readme, "block\n")
    readme.write_text(f"above\n\n{page.BEGIN}\nold\n{page.END}\nbelow\n")
    page.update_readme(readme, "new\n")
    page.update_readme(readme, "new\n")
    assert readme.read_text() == f"above\n\n{page.BEGIN}\nnew\n{page.END}\nbelow\n"


def test_an_error_while_a_report_is_written_leaves_the_old_files(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole or not at all: a disk that is full in the middle of a file cuts none off, and not README's hand-written end."""
    readme = tmp_path / "README.md"
    readme.write_text(f"top\n{page.BEGIN}\nold\n{page.END}\nend\n")
    results = tables.Results.of("digits", Store("digits", uri).records())
    page.write(results, tmp_path, readme)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def full(path: Path, text: str, **_: Any) -> int:
        with path.open("w") as file:
            file.write(text[: len(text) // 2])
        raise OSError(28, "No space left on device")

    def cut(self: Figure, file: Any, **_: Any) -> None:
        full(Path(file), "<svg>")

    monkeypatch.setattr(Path, "write_text", full)
    monkeypatch.setattr(Figure, "savefig", cut)
    frame = pd.DataFrame({"row": ["1"]})
    monkeypatch.setattr(tables, "table_frame", lambda *_: frame)
    for write in (
        lambda: tables.write_tables(results, tmp_path / "digits"),
        lambda: claims.write([], results, claims.load(), tmp_path / "digits"),
        lambda: page.update_readme(readme, "new\n"),
        lambda: figures.save(Figure(), tmp_path / "figures", "hybrid"),
    ):
        with pytest.raises(OSError, match="No space left"):
            write()
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_report_that_breaks_off_leaves_the_old_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No new table stands beside an old page."""
    record, words = tmp_path / "runs.jsonl", ["report", "--records", str(tmp_path / "runs.jsonl"), "--out"]

    def report(accuracy: float) -> int:
        record.write_text(dumps([recorded("table4", "resnet20-tq4-if-t4", 42, accuracy)]))
        return CliRunner().invoke(app, [*words, str(tmp_path / "out")]).exit_code

    def full(*_: Any) -> str:
        raise OSError(28, "No space left on device")

    assert report(95.0) == 0
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    with monkeypatch.context() as patch:
        patch.setattr(page, "html", full)
        assert report(94.0) == 1
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()} == before
    assert report(94.0) == 0
    assert (tmp_path / "out" / "digits" / "table4.csv").read_bytes() != before[tmp_path / "out/digits/table4.csv"]


def test_publishing_one_profile_renews_the_pages_of_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each page shows every profile's verdicts."""
    monkeypatch.chdir(tmp_path)
    Path("README.md").write_text(f"{page.BEGIN}\n{page.END}\n")
    for name in ("digits", "paper"):
        (row,) = spec.select_rows("table4", spec.load_spec("table4"), ["resnet20-tq4-if-t4"])
        one = recorded("table4", row.id, 42, 95.0).model_copy(update=of_profile(name, row))
        Path("results", name).mkdir(parents=True)
        Path("results", name, "runs.jsonl").write_text(dumps([one]))
    Path("results", "paper", "report.html").write_text("old")
    told = CliRunner().invoke(app, ["report", "--records", "results/digits/runs.jsonl", "--publish"])
    assert told.exit_code == 0, told.output
    assert "<th>claim</th><th>digits</th><th>paper</th>" in Path("results/paper/report.html").read_text()


def test_figures_say_what_the_store_holds(written: Path) -> None:
    names = {path.stem for path in (written / "digits" / "figures").glob("*.svg")}
    assert names >= {"accuracy_sops", "accuracy_latency", "hybrid", "training_curves", "tgim_resnet18"}
    heat = (written / "digits" / "figures" / "tgim_resnet18.svg").read_text()
    assert "λ 1.12" in html.unescape(heat)
    assert {path.name for path in (written / "figures").glob("*")} == {
        "ri_curves.svg",
        "firing_regions.svg",
        "neuron.svg",
    }


def test_a_legend_names_what_any_panel_shows() -> None:
    figure = Figure()
    left, right = figure.subplots(1, 2)
    for panel, names in ((left, "ab"), (right, "bc")):
        for name in names:
            panel.plot([0, 1], label=name)
    figures.legend_below(figure, (left, right), 3)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b", "c"]


def test_the_page_stands_alone_and_is_small(written: Path) -> None:
    text = (written / "digits" / "report.html").read_text()
    assert len(text.encode()) < 900_000
    fetched = re.findall(r"""(?:src|href)\s*=\s*["'](?!#|data:)([^"']*)|url\((?!#)([^)]*)\)|@import""", text)
    assert fetched == []
    for name in spec.tables():
        assert f'id="{name}"' in text


def test_profiles_stand_side_by_side_and_table_4_on_the_papers_data_first(tmp_path: Path) -> None:
    (row,) = spec.select_rows("table4", spec.load_spec("table4"), ["resnet20-tq4-if-t4"])

    metrics = {"test/final": 65.0, "if/T4/accuracy": 33.25}
    update = of_profile("paper", row) | {"metrics": metrics}
    one = recorded("table4", row.id, 42, 0.0).model_copy(update=update)
    readme, digits, real = (
        tmp_path / "README.md",
        tables.Results.of("digits", table1()),
        tables.Results.of("paper", [one]),
    )
    readme.write_text(empty := f"{page.BEGIN}\n{page.END}\n")
    page.write(digits, tmp_path, readme, [real], links=True)
    assert readme.read_text() == empty  # it shows the other profile, which has the paper's data
    page.write(digits, tmp_path, readme)
    assert "| M-HT L=1 T=4 | ResNet-18 | 76.22 |" in readme.read_text()
    page.write(digits, tmp_path, None, [real], links=True)
    text = (tmp_path / "digits" / "report.html").read_text()
    page.write(real, tmp_path, readme, [digits])
    block = readme.read_text()
    assert (
        text.index('<section id="table4-paper">')
        < text.index('<section id="claims">')
        < text.index('<section id="table1">')
    )
    assert "<th>claim</th><th>digits</th><th>paper</th>" in text
    assert 'href="runs.jsonl"' in text
    first = text[text.index('<section id="table4-paper">') : text.index('<section id="claims">')]
    assert "33.25" in first
    assert "profile paper" in first
    assert block.index("33.25") < block.index("| claim | on `digits` | on `paper` |")
    assert "VGG-16" not in block  # not run
    second = one.model_copy(update={"metrics": metrics | {"if/T4/accuracy": 31.25}})
    small = second.model_copy(update=of_profile("paper-small", row))
    page.write(tables.Results.of("paper-small", [small]), tmp_path, readme, [digits, real])
    both = readme.read_text()
    assert (
        both.index("33.25")
        < both.index("31.25")
        < both.index("| claim | on `digits` | on `paper` | on `paper-small` |")
    )
    page.write(real, tmp_path)
    alone = (tmp_path / "paper" / "report.html").read_text()
    assert alone.count('id="table4') == 1
    for tag in ("section", "details", "figure", "main", "table", "tr", "td", "div"):
        assert alone.count(f"<{tag}>") + alone.count(f"<{tag} ") == alone.count(f"</{tag}>") > 0, tag


def chromium(profile: Path, *words: str) -> subprocess.CompletedProcess[str]:
    quiet = ["--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", *quiet, f"--user-data-dir={profile}"]
    done = subprocess.run(
        [*command, "--enable-logging=stderr", *words], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done


PROBE = """<script>
const table = document.querySelector("#table3 table"), head = [...table.tHead.rows[0].cells];
const published = head.findIndex(cell => cell.textContent.startsWith("paper: accuracy"));
const shown = () => [...table.tBodies[0].rows].filter(row => !row.hidden), kinds = new Set(shown().map(row => row.dataset.kind));
document.querySelector('#table3 button[data-kind=""]').click();
head[published].firstElementChild.click(); head[published].firstElementChild.click();
const first = table.tBodies[0].rows[0].cells[published].textContent;
document.querySelector("#table3 input").value = "glif imagenet-1k";
document.querySelector("#table3 input").dispatchEvent(new Event("input"));
document.title = ["probe", [...kinds].join("+"), first, shown().length, document.documentElement.scrollWidth, innerWidth].join(" ");
</script></body>"""


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium to open the page with")
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_opens_without_errors(written: Path, tmp_path: Path, width: int) -> None:
    source = written / "digits" / "report.html"
    shot = tmp_path / "page.png"
    size = f"--window-size={width},2000"
    done = chromium(tmp_path / "a", size, "--hide-scrollbars", f"--screenshot={shot}", source.as_uri())
    assert "CONSOLE" not in done.stderr
    assert len(set(pixels(shot))) > 50, "the screenshot is nearly blank"
    probed = tmp_path / "probe.html"
    probed.write_text(source.read_text().replace("</body>", PROBE))
    done = chromium(tmp_path / "b", size, "--dump-dom", probed.as_uri())
    assert "CONSOLE" not in done.stderr
    found = re.search(r"<title>probe (\S+) (\S+) (\d+) (\d+) (\d+)</title>", done.stdout)
    assert found, done.stdout[:500]
    highest = max(float(value) for value in spec.published("table3")["accuracy_pct"])
    assert found[1] == "ours"  # where rows were not run, those that were are shown first
    assert float(found[2]) == highest
    assert int(found[3]) == 1  # GLIF on ImageNet-1k stands once in the paper's table
    assert int(found[4]) <= int(found[5]), "the page is wider than the window"


def pixels(png: Path) -> bytes:
    """The raw bytes of a PNG's scan lines."""
    raw, at, data = png.read_bytes(), 8, b""
    while at < len(raw):
        (length,) = struct.unpack(">I", raw[at : at + 4])
        data += raw[at + 8 : at + 8 + length] if raw[at + 4 : at + 8] == b"IDAT" else b""
        at += 12 + length
    return zlib.decompress(data)


@pytest.mark.parametrize("profile", ["digits", "paper", "paper-small"])
def test_the_committed_tables_and_verdicts_are_those_of_the_committed_record(profile: str, tmp_path: Path) -> None:
    """``python -m benchmarks report --publish`` was run after the last change of records, specs or rules."""
    results, rules = tables.Results.of(profile, load(ROOT / "results" / profile / FILE)), claims.load()
    tables.write_tables(results, tmp_path)
    claims.write(claims.judge(rules, results), results, rules, tmp_path)
    written = sorted(tmp_path.iterdir())
    assert len(written) > len(spec.tables())
    for path in written:
        assert path.read_bytes() == (ROOT / "results" / profile / path.name).read_bytes(), path.name


def test_ranges_in_the_readmes_prose_are_those_of_the_records() -> None:
    records = [one for profile in ("paper", "paper-small") for one in load(ROOT / "results" / profile / FILE)]
    tuned = [one for one in records if one.status == "finished" and one.config["ann"]]

    def values(name: str, start: str = "") -> list[float]:
        return [one.metrics[name] for one in tuned if start in one.config["start"]]

    text = " ".join((ROOT / "README.md").read_text().split())
    promised, begun = values("certificate/promised_pct"), values("before/accuracy", "algorithm1")
    changed, broken = max(values("reparam/changed_pct")), max(values("certificate/broken_pct"))
    assert f"fewer than {math.ceil(changed * 10 + 1e-9) / 10:g} % of the images change class" in text
    assert f"promises equal spikes for {min(promised):.0f} to {max(promised):.0f} %" in text
    assert f"in float32 rounding makes at most {broken:.2f} % change class in spite of it" in text
    assert f"Algorithm 1 taken literally begins at {min(begun):.0f} to {max(begun):.0f} %" in text


def rows(path: str) -> pd.DataFrame:
    """Of a committed table, as text."""
    return pd.read_csv(ROOT / "results" / path, dtype=str, index_col="row")


def test_numbers_in_the_readmes_prose_are_those_of_the_tables() -> None:
    text = " ".join((ROOT / "README.md").read_text().split())
    found = rows("paper/table4.csv")

    def points(row: str, column: str) -> float:
        return float(found.at[f"resnet20-tq8-{row}", column])

    ann, theirs = points("l2t2-exact", "ann_accuracy_pct_mean"), points("l2t2-exact", "published_ann_accuracy_pct")
    end = {row: points(f"{row}-exact", "accuracy_pct_mean") for row in ("l2t2", "l4t2")}
    begin = {row: points(f"{row}-exact", "before_finetuning_accuracy_pct_mean") for row in end}
    drop = {row: theirs - points(f"{row}-exact", "published_snn_accuracy_pct") for row in end}
    (loss,) = (one.history["loss"][-1] for one in load(ROOT / "results" / "paper" / FILE) if not one.config["ann"])
    assert f"one quantised ANN, {theirs - ann:.1f} points below the published one" in text
    assert f"its loss on augmented images ends at {loss:.2f}" in text
    for steps in (2, 4, 8):
        assert abs(points(f"if-t{steps}", "ours_minus_published_points")) < 2
    assert (
        f"LM-HT with L=2, T=2 begins at {begin['l2t2']:.1f} % without any fine-tuning and ends at {end['l2t2']:.1f} % after 30 "
        f"epochs, {ann - end['l2t2']:.1f} points below its ANN (the paper: {drop['l2t2']:.1f})"
    ) in text
    assert (
        f"it begins at its ANN's {begin['l4t2']:.1f} %, and 30 epochs change nothing ({end['l4t2']:.1f} %; the paper's ends "
        f"{drop['l4t2']:.1f} points below its ANN)"
    ) in text
    assert ann == begin["l4t2"]
    narrow = rows("paper-small/table1.csv")["accuracy_pct_mean"].astype(float)
    assert (
        f"IF ends at {narrow['1']:.1f} %, M-HT at {narrow['2']:.1f} %, LM-HT at {narrow['3']:.1f} % with more spikes"
        in text
    )
    assert f"the ReLU network reached {narrow['resnet18-relu']:.1f} % in ten" in text
    changed = []
    for path, row in (("digits", "2"), ("digits", "5"), ("paper-small", "2")):
        one = rows(f"{path}/table1.csv").loc[row]
        assert {float(value) for value in one["certified_images_pct_per_seed"].split(";")} == {0}
        changed += [float(value) for value in one["reparameterised_changed_pct_per_seed"].split(";")]
    assert f"promises nothing for any image, and {min(changed):.0f} to {max(changed):.0f} % change class" in text


def test_a_cell_of_a_markdown_table_is_one_line_of_text() -> None:
    shown = tables.View("x", "x", [], ["a"], [False], [[tables.Shown("one\n<script>|two")]], ["ours"])
    assert tables.markdown_table(shown)[-1] == "| one &lt;script&gt;\\|two |"


def test_no_text_is_markup_in_a_page(monkeypatch: pytest.MonkeyPatch) -> None:
    failed = recorded("table1", "3", 42, 0.0).model_dump() | {"status": "failed", "reason": "<script>"}
    read = spec.load_spec
    titled = read("table1").model_copy(update={"title": "<script>", "note": "<script>"})
    monkeypatch.setattr(tables, "load_spec", lambda name: titled if name == "table1" else read(name))
    results = tables.Results.of("digits", [Record(**failed)])
    shown = tables.markdown(tables.view("table1", tables.table_frame("table1", results), results), results)
    judged = claims.markdown(claims.judge(claims.load(), results), results, claims.load())
    for text in (shown, judged):
        assert "&lt;script" in text
        assert "<script" not in text
