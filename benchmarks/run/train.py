"""One cell, one seed: build the network, train it in one visible loop, evaluate. Knows nothing of MLflow.

:func:`run_cell` yields an ``Epoch`` after every epoch and one ``Result`` at the end (:mod:`benchmarks.record`).
"""

import contextvars
import itertools
import math
import os
import queue
import socket
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.nn import functional as F

import lmht
from benchmarks import data
from benchmarks.record import Epoch, Result
from benchmarks.run.evaluate import accuracy, compare_with_ann, evaluate, predict
from benchmarks.run.network import network_of
from benchmarks.spec import Cell, Recipe
from lmht.conversion import to_lmht
from lmht.kernels import use_backend

LEAST_SCALE = 1e-2


class TrainingError(Exception):
    """Training went wrong in a way that more epochs won't mend."""


def run_cell(
    cell: Cell,
    seed: int,
    *,
    root: Path,
    device: str,
    out: Path,
    ann: Path | None = None,
    data_workers: int = 0,
    devices: int = 1,
) -> Iterator[Epoch | Result]:
    """Train and evaluate one cell with one seed.

    Args:
        root: where data sets lie.
        device: Fabric accelerator: ``cpu``, ``cuda`` or ``auto``.
        data_workers: processes that load data sets too large for memory.
        out: file to write the checkpoint to (the state of the last epoch).
        ann: checkpoint of ``cell.ann`` with the same seed, for a fine-tuned cell.
        devices: processes that share the training by DDP: each takes its part of every batch (and normalises over that part).

    Raises:
        data.DataError: a data set is missing or damaged.
        TrainingError: the loss is not finite.
    """
    if cell.threads:
        torch.set_num_threads(cell.threads)
    work = (cell, seed, root, device, out, ann, data_workers, devices)
    context = contextvars.copy_context()  # between two events the caller's own choice of backend holds
    events = _on_backend(work)
    try:
        while (event := context.run(next, events, None)) is not None:
            yield event
    finally:
        context.run(events.close)


def _on_backend(work: tuple[Any, ...]) -> Generator[Epoch | Result, None, None]:
    cell, devices = work[0], work[-1]
    with use_backend(cell.backend):
        yield from _train(*work) if devices == 1 else _in_processes(work, devices)


def _in_processes(work: tuple[Any, ...], devices: int) -> Iterator[Epoch | Result]:
    """One process a device; the first one's events are passed on."""
    spawn = torch.multiprocessing.get_context("spawn")
    events = spawn.Queue()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ranks = torch.multiprocessing.spawn(_rank, (work, devices, port, events), devices, join=False)
    try:
        while True:
            try:
                event = events.get(timeout=1)
            except queue.Empty:
                ranks.join(timeout=0)  # raises what a process raised
                continue
            if isinstance(event, Exception):
                raise event
            if isinstance(event, Result):
                break
            yield event
        while not ranks.join():
            pass
        yield event
    finally:
        for process in ranks.processes:
            process.kill()


def _rank(rank: int, work: tuple[Any, ...], devices: int, port: int, events: Any) -> None:
    os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    cell: Cell = work[0]
    torch.set_num_threads(cell.threads or max(1, torch.get_num_threads() // devices))
    with use_backend(cell.backend):
        try:
            for event in _train(*work):
                if rank == 0:
                    events.put(event)
        except (data.DataError, TrainingError) as error:
            events.put(error)


def _train(
    cell: Cell, seed: int, root: Path, device: str, out: Path, ann: Path | None, data_workers: int, devices: int
) -> Iterator[Epoch | Result]:
    recipe = cell.recipe
    strategy = "ddp" if devices > 1 else "auto"
    fabric = Fabric(accelerator=device, devices=devices, strategy=strategy, precision=recipe.precision)
    if devices > 1:
        fabric.launch()
    torch.manual_seed(seed)
    info = data.load(cell.dataset, root=root, steps=cell.neuron.steps, augment=recipe.augment)
    options: dict[str, Any] = {"seed": seed, "workers": data_workers, "device": fabric.device}
    train, val, test = data.loaders(info, recipe.batch_size, **options)
    if devices > 1:
        if recipe.batch_size % devices:
            raise TrainingError(f"a batch of {recipe.batch_size} can't be shared by {devices} devices; take a divisor")
        part = recipe.batch_size // devices
        train, _, _ = data.loaders(info, part, rank=fabric.global_rank, world=devices, **options)
    network, extra = network_of(cell, info), {}
    if cell.ann is not None:
        assert ann is not None, "a fine-tuned cell needs its quantised ANN's checkpoint"
        assert cell.start is not None
        network.load_state_dict(torch.load(ann, weights_only=True))
        network.to(fabric.device)
        source = network
        network = to_lmht(source, cell.neuron.levels, cell.neuron.steps, start=cell.start)
        extra = compare_with_ann(source, network, test, fabric.device, cell.float64_checks)
    if recipe.channels_last:
        network = network.to(memory_format=torch.channels_last)
    optimizer = make_optimizer(network, recipe)
    model, optimizer = fabric.setup(network, optimizer)
    model.mark_forward_method("step_logits")
    forward = torch.compile(model) if recipe.compile else model

    scales = [m.scale for m in network.modules() if isinstance(m, lmht.QCFS)]
    batches = len(train)
    if recipe.epoch_images:
        batches = min(batches, math.ceil(recipe.epoch_images / recipe.batch_size))
    updates = math.ceil(batches / recipe.accumulate)
    schedule = cosine(recipe, updates)
    update, best_val, best = 0, -1.0, {"test/best_val": 0.0, "test/best": 0.0}
    for epoch in range(recipe.epochs):
        model.train()
        started, images, loss_sum = time.perf_counter(), 0, torch.zeros((), device=fabric.device)
        for i, (x, y) in enumerate(itertools.islice(train, batches)):
            x, y = fabric.to_device((x, y))
            last = (i + 1) % recipe.accumulate == 0 or i + 1 == batches
            with fabric.no_backward_sync(model, enabled=not last):
                loss = F.cross_entropy(forward(x), y, label_smoothing=recipe.label_smoothing)
                fabric.backward(loss / recipe.accumulate)
            if last:
                for group in optimizer.param_groups:
                    group["lr"] = schedule(update)
                optimizer.step()
                optimizer.zero_grad()
                keep_scales_positive(scales)
                update += 1
            loss_sum += loss.detach() * len(y)
            images += len(y)
        images *= devices
        total_loss = fabric.all_reduce(loss_sum, reduce_op="sum")
        assert isinstance(total_loss, Tensor)
        mean_loss = float(total_loss) / images
        if not math.isfinite(mean_loss):
            raise TrainingError(
                f"{cell.name}, seed {seed}: the loss is {mean_loss} in epoch {epoch + 1}; lower the learning rate"
            )
        seconds = time.perf_counter() - started
        val_accuracy, test_accuracy = (accuracy(*predict(model, split, fabric.device)) for split in (val, test))
        best["test/best"] = max(best["test/best"], test_accuracy)
        if val_accuracy > best_val:
            best_val, best["test/best_val"] = val_accuracy, test_accuracy
        metrics = {"loss": mean_loss, "val": val_accuracy, "test": test_accuracy, "images_per_s": images / seconds}
        yield Epoch(epoch + 1, recipe.epochs, metrics)

    if fabric.is_global_zero:
        network = model.module
        checkpoint = save(network, out)  # first: the evaluation needs more memory than training
        final = {"val/final": val_accuracy, **best, **extra}
        final |= evaluate(network, test, fabric.device, cell.float64_checks)
        yield Result(final, checkpoint, _describe(info))


@torch.no_grad()
def keep_scales_positive(scales: list[nn.Parameter]) -> None:
    """Project QCFS's ``vartheta`` onto ``>= LEAST_SCALE``: its gradient sums over a layer, and an early step can overshoot."""
    for scale in scales:
        scale.clamp_(min=LEAST_SCALE)


def make_optimizer(network: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(network.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    return torch.optim.SGD(
        network.parameters(),
        lr=recipe.learning_rate,
        momentum=recipe.momentum,
        nesterov=recipe.nesterov,
        weight_decay=recipe.weight_decay,
    )


def cosine(recipe: Recipe, updates_per_epoch: int) -> Callable[[int], float]:
    """Learning rate of each update: linear warm-up, then cosine annealing to 0 over what is left of all epochs."""
    warmup, total = recipe.warmup_epochs * updates_per_epoch, recipe.epochs * updates_per_epoch

    def rate(update: int) -> float:
        if update < warmup:
            return recipe.learning_rate * (update + 1) / warmup
        return recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * (update - warmup) / (total - warmup)))

    return rate


def save(network: nn.Module, path: Path) -> Path:
    torch.save({name: t.cpu() if isinstance(t, Tensor) else t for name, t in network.state_dict().items()}, path)
    return path


def _describe(info: data.Data) -> dict[str, str]:
    return {"name": info.name, "digest": info.digest, "source": info.source}
