"""What bfloat16 costs in accuracy: results/precision.md (``tox run -e precision``, six minutes).

The same trainings on digits in float32 and under bfloat16 autocast in channels_last, as profile ``paper`` trains:
the same seeds, so the same start and the same batches. Accuracies are measured in float32 either way, as everywhere here.
"""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
import torch

from benchmarks.files import write_text
from benchmarks.record import Result
from benchmarks.report.tables import half_width
from benchmarks.run.train import run_cell
from benchmarks.spec import Cell, load_profile, load_spec, resolve, select_rows

ROOT = Path(__file__).parents[1]
SEEDS = (42, 43, 44, 45, 46)
ROWS = {
    "ReLU ANN": ("table3", "cifar10-resnet18-relu"),
    "QCFS ANN, Tq = 4": ("table4", "resnet20-tq4-if-t2"),
    "LM-HT, L = 2, T = 2": ("table3", "cifar10-resnet18-lmht-l2t2"),
}
PAGE = """\
# What bfloat16 costs in accuracy

Written by `tests/precision.py`. The same trainings on digits in float32 and under bfloat16 autocast in channels_last on the fused
backend, as profile `paper` trains on a CPU: same seeds, so the same start and the same batches. Test accuracy in %, measured in
float32 either way; mean of {seeds} seeds, and the mean of the differences with its 95 % interval.

{table}

{answer} {machine}
"""


def accuracy(cell: Cell, seed: int) -> float:
    with TemporaryDirectory() as scratch:
        *_, result = run_cell(cell, seed, root=ROOT, device="cpu", out=Path(scratch, "c.pt"))
    assert isinstance(result, Result)
    return float(result.metrics["test/final"])


def main() -> None:
    table = ["| network | float32 | bfloat16 | bfloat16 minus float32, points |", "|---" * 4 + "|"]
    within = []
    for name, (spec, row) in ROWS.items():
        wide = resolve(select_rows(spec, load_spec(spec), [row])[0], load_profile("digits"))
        recipe = wide.recipe.model_copy(update={"precision": "bf16-mixed", "channels_last": True})
        half = wide.model_copy(update={"recipe": recipe, "backend": "compiled"})
        found = pd.DataFrame([[accuracy(cell, seed) for cell in (wide, half)] for seed in SEEDS])
        print(name, found.values.tolist(), file=sys.stderr)
        off = found[1] - found[0]
        low, high = off.mean() - half_width(off), off.mean() + half_width(off)
        title = f"{wide.architecture} {name}"
        table.append(
            f"| {title} | {found[0].mean():.2f} | {found[1].mean():.2f} | {off.mean():+.2f} [{low:+.2f}, {high:+.2f}] |"
        )
        within.append(low <= 0 <= high)
    answer = (
        "No difference can be told from zero." if all(within) else f"{within.count(False)} of {len(within)} differ."
    )
    cpu = f"torch {torch.__version__}, processor with {torch.backends.cpu.get_cpu_capability()}."
    page = PAGE.format(seeds=len(SEEDS), table="\n".join(table), answer=answer, machine=cpu)
    write_text(ROOT / "results" / "precision.md", page)


if __name__ == "__main__":
    main()
