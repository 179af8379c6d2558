"""What a profile costs before it is run: images, MACs, GPU-hours and disk, by stated assumptions."""

from dataclasses import dataclass

import pandas as pd
import torch

from benchmarks.schedule import Job
from benchmarks.spec import Cell
from benchmarks.train import network_of
from lmht.energy import count_operations

BACKWARD = 3  # a training step costs about three forward passes


@dataclass(frozen=True)
class Size:
    """A data set's size, as published: training images (before the validation split), image size, classes, disk in GB."""

    train: int
    test: int
    size: int
    classes: int
    in_channels: int
    disk_gb: float
    frames: bool = False


SIZES = {
    "digits": Size(1437, 360, 8, 10, 1, 0.0),
    "fashion-mnist": Size(60_000, 10_000, 28, 10, 1, 0.1),
    "cifar10": Size(50_000, 10_000, 32, 10, 3, 0.2),
    "cifar100": Size(50_000, 10_000, 32, 100, 3, 0.2),
    "imagenet200": Size(100_000, 10_000, 64, 200, 3, 0.5),
    "imagenet100": Size(128_000, 5_000, 224, 100, 3, 14),
    "imagenet1k": Size(1_281_167, 50_000, 224, 1000, 3, 150),
    "cifar10-dvs": Size(9_000, 1_000, 48, 10, 2, 9, frames=True),
    "cifar10-dvs-averaged": Size(9_000, 1_000, 48, 10, 2, 0),  # of the same files
}


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
