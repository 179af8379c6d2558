"""What a torch version changes: results/compatibility.csv and .md.

    python tests/compatibility.py measure NAME    trainings on the installed torch, into out/compatibility/NAME.json and .pt
    python tests/compatibility.py page            the record, renewed from those and from pytest's out/compatibility/NAME.xml, and
                                                  the page, from the record

Also the finding of that page: QCFS as it is usually published, with torch.clamp, loses its gradients where clamp's subgradient at a
bound is 0, which torch changed between 2.13 and 2.14.
"""

import argparse
import csv
import hashlib
import io
import json
import platform
import xml.etree.ElementTree as ElementTree
from importlib.metadata import version
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

import lmht
from benchmarks.files import write_text
from benchmarks.record import Result
from benchmarks.run.train import run_cell
from benchmarks.spec import Cell, load_profile, load_spec, resolve, select_rows
from tests.neurons.foreign import torch_clamp

ROOT = Path(__file__).parents[1]
OUT = ROOT / "out" / "compatibility"
RECORD = ROOT / "results" / "compatibility.csv"
REFERENCE = "torch215-py313"  # whose weights the others' are compared with
PACKAGES = ("torch", "torchvision", "triton", "numpy", "hypothesis", "mlflow", "lightning-fabric", "ray")
LEVELS = (1, 2, 4, 8)
SEEDS = (42, 43, 44)


class ClampQCFS(lmht.QCFS):
    def forward(self, x: Tensor) -> Tensor:
        return torch_clamp.qcfs(x, levels=self.levels, scale=self.scale)


def cell(levels: int = 4) -> Cell:
    """Table 4's quantised ResNet-20 on digits."""
    row = select_rows("table4", load_spec("table4"), ["resnet20-tq4-if-t2"])[0]
    return resolve(row.model_copy(update={"tq": levels}), load_profile("digits"))


def train(levels: int, kind: type[lmht.QCFS], seed: int) -> tuple[float, str, dict[str, Tensor]]:
    """Test accuracy in percent, the digest of the weights, and these."""
    with TemporaryDirectory() as scratch, patch.object(lmht, "QCFS", kind):
        *_, result = run_cell(cell(levels), seed, root=ROOT, device="cpu", out=Path(scratch, "c.pt"))
        assert isinstance(result, Result)
        weights = torch.load(result.checkpoint, weights_only=True)
        return result.metrics["test/final"], digest(weights), weights


def digest(weights: dict[str, Tensor]) -> str:
    """SHA-256 over names and values; a checkpoint's own bytes depend on the version that wrote it."""
    sha = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        sha.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return sha.hexdigest()


def measure(name: str) -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    x = torch.tensor([0.0, 1.0], requires_grad=True)
    torch.clamp(x, 0, 1).sum().backward()
    assert x.grad is not None
    found: dict[str, Any] = {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "versions": {package: version(package) for package in PACKAGES},
        "clamp_gradient_at_bounds": x.grad.tolist(),
        "accuracy": {},
    }
    for levels in LEVELS:
        ours = [train(levels, lmht.QCFS, seed) for seed in SEEDS]
        clamp = [train(levels, ClampQCFS, seed) for seed in SEEDS]
        found["accuracy"][levels] = [[accuracy for accuracy, _, _ in kind] for kind in (ours, clamp)]
        if levels == 4:
            _, found["sha256"], weights = ours[0]
            torch.save(weights, OUT / f"{name}.pt")
    write_text(OUT / f"{name}.json", json.dumps(found, indent=1))


def counts(path: Path) -> str:
    """Passed, skipped and failed tests of a JUnit file, and the day."""
    suite = ElementTree.parse(path).getroot()[0]
    total, skipped = int(suite.get("tests", 0)), int(suite.get("skipped", 0))
    failed = int(suite.get("failures", 0)) + int(suite.get("errors", 0))
    day = suite.get("timestamp", "")[:10]
    return (
        f"{total - skipped - failed} passed, {skipped} skipped" + f", **{failed} failed**" * (failed > 0) + f" ({day})"
    )


def release(version: str) -> list[int]:
    return [int(part) for part in version.split("+")[0].split(".")]


def measured(path: Path) -> dict[str, str]:
    """An environment's row, from its trainings; weights are compared with the reference's, where these are here."""
    if not path.with_stem(REFERENCE).exists():
        raise SystemExit(
            f"{REFERENCE} was not measured here, and {path.stem}'s weights are compared with its: measure it too"
        )
    one = json.loads(path.read_text())
    weights, base = (torch.load(path.with_name(f"{name}.pt"), weights_only=True) for name in (path.stem, REFERENCE))
    largest = max(float((weights[key] - base[key]).abs().max()) for key in base)
    return {
        **{package: one["versions"][package] for package in ("torch", "torchvision", "triton")},
        "python": one["python"],
        "processor": f"{one['machine']} with {one['cpu']}",
        "weights": "identical" if digest(weights) == digest(base) else f"differ by up to {largest:.2g}",
        "clamp_gradient": ", ".join(f"{value:g}" for value in one["clamp_gradient_at_bounds"]),
        **{f"Tq={n}": " / ".join(f"{mean(kind):.1f}" for kind in both) for n, both in one["accuracy"].items()},
    }


def renewed(rows: dict[str, dict[str, str]]) -> dict[str, dict[str, str]]:
    """The record, with what the environments left here since: a row has the newest that is known of each part."""
    rows = {name: dict(row) for name, row in rows.items()}
    for path in OUT.glob("*.json"):
        rows[path.stem] = {"tests": "not run"} | rows.get(path.stem, {}) | measured(path)
    for path in OUT.glob("*.xml"):
        if path.stem not in rows:
            raise SystemExit(
                f"{path}: {path.stem} was tested, but not measured: tests/compatibility.py measure {path.stem}"
            )
        rows[path.stem]["tests"] = counts(path)
    return dict(sorted(rows.items(), key=lambda row: (row[0] == "lowest", release(row[1]["torch"]))))


def page(rows: dict[str, dict[str, str]]) -> str:
    columns = [f"Tq = {levels}: ours / clamp" for levels in LEVELS]
    table = ["| environment | torch | torchvision | triton | Python | theorems and tests | weights |", "|---" * 7 + "|"]
    clamps = [
        "| torch | clamp's gradient at its bounds | " + " | ".join(columns) + " |",
        "|---" * (2 + len(LEVELS)) + "|",
    ]
    shown = ("torch", "torchvision", "triton", "python", "tests", "weights")
    for name, row in rows.items():
        table.append(f"| {name} | " + " | ".join(row[column] for column in shown) + " |")
        cells = [row["torch"], row["clamp_gradient"], *(row[f"Tq={levels}"] for levels in LEVELS)]
        clamps.append("| " + " | ".join(cells) + " |")
    processors = ", ".join(sorted({row["processor"] for row in rows.values()}))
    return PAGE.format(
        seed=SEEDS[0], reference=REFERENCE, table="\n".join(table), clamps="\n".join(clamps), cpu=processors
    )


PAGE = """\
# What a torch version changes

Written by `tests/compatibility.py page` from [compatibility.csv](compatibility.csv): what `tests/compatibility.py measure` and
pytest found in each environment of `tox run -m torch`. An environment resolves torch with everything else in one step, fails
unless torch is the version in its name, trains, and runs `pytest theorems tests`; `lowest` has the lowest versions that
pyproject.toml allows. Environments without a row were not measured.

{table}

Weights are those of Table 4's quantised ResNet-20 on digits (seed {seed}), compared with {reference}'s: the same bits, or the
largest difference of a weight. Processor: {cpu}.

## QCFS by `torch.clamp` trains worse since torch 2.14

QCFS is usually published as a floor with a straight-through gradient, then `torch.clamp` to levels 0 and Tq. After the floor,
every value that is quantised to level 0 or Tq lies on a bound of the clamp, whose subgradient there is torch's choice: 1 up to
torch 2.13, 0 since 2.14. So the window in which gradients pass shrinks from [-1/2, Tq + 1/2) to [1/2, Tq - 1/2) levels, and at
Tq = 1 nothing is left of it. `lmht.QCFS` has the window written out, and does not depend on the version; the remedy for other code
is the same: a mask of one's own on the gradient.

The same training with either form, test accuracy in % (digits, mean of three seeds). Tq = 2 shows it best: at Tq = 1 trainings are
unstable, and another rounding of a sum moves a seed by tens of points, with our form too:

{clamps}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("measure").add_argument("name")
    commands.add_parser("page")
    options = parser.parse_args()
    if options.command == "measure":
        measure(options.name)
    else:
        with RECORD.open(newline="", encoding="utf-8") as file:
            rows = renewed({row.pop("environment"): row for row in csv.DictReader(file)})
        text = io.StringIO()
        lines = [{"environment": name} | row for name, row in rows.items()]
        out = csv.DictWriter(text, lines[0], lineterminator="\n")
        out.writeheader()
        out.writerows(lines)
        write_text(RECORD, text.getvalue())
        write_text(RECORD.with_suffix(".md"), page(rows))


if __name__ == "__main__":
    main()
