"""What a profile costs before it is run: images, MACs, GPU-hours and disk, by stated assumptions; or hours here, measured."""

import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import pandas as pd
import torch
from torch.nn import functional as F

from benchmarks.data import SIZES, Size
from benchmarks.run import together
from benchmarks.run.evaluate import CONVERTED_STEPS
from benchmarks.run.network import network_of, starting_network
from benchmarks.run.schedule import Job
from benchmarks.run.train import TrainingError, check_channels_last, make_optimizer
from benchmarks.spec import Cell
from lmht.energy import count_operations
from lmht.kernels import use_backend

BACKWARD = 3  # a training step costs about three forward passes
TIMED = 3  # batches, the quickest of which counts


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
        trained = round((1 - cell.recipe.validation) * size.train)
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
                "hours": flop / (tflops * 1e12) / 3600,
                "checkpoint_mb": parameters * 4e-6,
            }
        )
    return pd.DataFrame(lines)


def hours(jobs: list[Job], parallel: int, device: str) -> list[float]:
    """Hours of each job here, from a few batches of each cell, measured while `parallel` of them run side by side.

    Raises:
        TrainingError: a cell can't be trained here, or crashes.
    """
    cells = list({job.cell.hash: job.cell for job in jobs}.values())
    with ProcessPoolExecutor(parallel, multiprocessing.get_context("spawn")) as pool:
        try:
            found = list(pool.map(_seconds, cells, [device] * len(cells)))
        except BrokenProcessPool as error:
            raise TrainingError(
                "a process that timed a cell crashed or was killed, perhaps for want of memory (`dmesg` may tell); plan one table "
                "after the other to see which, and lower its batch_size"
            ) from error
    costs = dict(zip([cell.hash for cell in cells], found, strict=True))
    needed = []
    for job in jobs:
        cell, size = job.cell, SIZES[job.cell.dataset]
        step, look = costs[cell.hash]
        trained = round((1 - cell.recipe.validation) * size.train)
        seen = min(trained, cell.recipe.epoch_images or trained)
        looked = cell.recipe.epochs * (size.train - trained + size.test) + _last_passes(cell) * size.test
        needed.append((cell.recipe.epochs * seen * step + looked * look) / 3600)
    return needed


def _last_passes(cell: Cell) -> int:
    """How many times its own forward pass a network's last evaluation costs an image: of conversions, twins, foretelling."""
    if cell.neuron.kind == "qcfs":
        return 1 + sum(CONVERTED_STEPS)
    return 1 + 3 * cell.neuron.levels if cell.neuron.levels > 1 else 1


def _seconds(cell: Cell, device: str) -> tuple[float, float]:
    """Seconds that an image takes in training, and in evaluation, on random images."""
    torch.set_num_threads(cell.threads or torch.get_num_threads())
    size, recipe = SIZES[cell.dataset], cell.recipe
    fabric = together.fabric(1, device, recipe.precision)
    network = starting_network(cell, size)
    if recipe.channels_last:
        try:
            check_channels_last(network, recipe, fabric.device)
        except TrainingError as error:
            raise TrainingError(f"{cell.name}: {error}") from error
        network = network.to(memory_format=torch.channels_last)
    model, optimizer = fabric.setup(network, make_optimizer(network, recipe, fabric.device))
    frames = (cell.neuron.steps,) * size.frames
    x = torch.randn(*frames, recipe.batch_size, size.in_channels, size.size, size.size, device=fabric.device)
    y = torch.randint(size.classes, (recipe.batch_size,), device=fabric.device)

    def train() -> None:
        fabric.backward(F.cross_entropy(model(x), y))
        optimizer.step()
        optimizer.zero_grad()

    def timed(work: Callable[[], object]) -> float:
        taken = []
        for _ in range(1 + TIMED):
            began = time.perf_counter()
            work()
            if fabric.device.type == "cuda":
                torch.cuda.synchronize()
            taken.append(time.perf_counter() - began)
        return min(taken[1:]) / recipe.batch_size

    with use_backend(cell.backend):
        step = timed(train)
        model.eval()
        with torch.no_grad():
            return step, timed(lambda: model(x))


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
