"""What a profile costs before it is run: images, MACs, GPU-hours and disk, by stated assumptions."""

import pandas as pd
import torch

from benchmarks.data import SIZES, Size
from benchmarks.run.network import network_of
from benchmarks.run.schedule import Job
from benchmarks.spec import Cell
from lmht.energy import count_operations

BACKWARD = 3  # a training step costs about three forward passes


def plan(jobs: list[Job], tflops: float) -> pd.DataFrame:
    """One line a job: images seen in training, MACs, GPU-hours at ``tflops`` sustained, checkpoint size in MB.

    A step of an SNN costs T passes of its network; evaluation after each epoch one forward pass over validation and test.
    """
    lines = []
    weights: dict[tuple[str, str, str], tuple[float, float]] = {}
    for job in jobs:
        cell, size = job.cell, SIZES[job.cell.dataset]
        key = (cell.architecture, cell.dataset, str(cell.network))
        if key not in weights:
            weights[key] = _macs_and_parameters(cell, size)
        macs, parameters = weights[key]
        trained = round(0.9 * size.train)
        seen = cell.recipe.epochs * min(trained, cell.recipe.epoch_images or trained)
        passes = BACKWARD * seen + cell.recipe.epochs * (size.train - trained + size.test)
        flop = 2 * macs * cell.neuron.steps * passes
        lines.append(
            {
                "table": job.table,
                "cell": cell.name,
                "seed": job.seed,
                "images": seen,
                "macs_g": macs * cell.neuron.steps * 1e-9,
                "gpu_hours": flop / (tflops * 1e12) / 3600,
                "checkpoint_mb": parameters * 4e-6,
            }
        )
    return pd.DataFrame(lines)


def disk_gb(jobs: list[Job]) -> float:
    """Disk that the data sets of some jobs take, in GB."""
    return sum(SIZES[name].disk_gb for name in {job.cell.dataset for job in jobs})


def _macs_and_parameters(cell: Cell, size: Size) -> tuple[float, float]:
    ann = cell.model_copy(
        update={"neuron": cell.neuron.model_copy(update={"kind": "relu", "levels": 1, "steps": 1}), "ann": None}
    )
    network = network_of(ann, size)
    shape = (1,) * size.frames + (1, size.in_channels, size.size, size.size)
    operations = count_operations(network, torch.zeros(shape))
    return operations.total_macs, sum(p.numel() for p in network.parameters())
