"""What :mod:`benchmarks.run.evaluate` measures, measured again on a stored checkpoint, without training."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import data
from benchmarks.record import Evaluation, Record, pack
from benchmarks.run.evaluate import compare_with_ann, evaluate
from benchmarks.run.network import full_float32, network_of, starting_network
from benchmarks.spec import Cell
from lmht.conversion import to_lmht
from lmht.kernels import use_backend

TRAINED = {"val/final", "test/best", "test/best_val"}  # looked at after each epoch


def again(
    record: Record, checkpoint: Path, ann: Path | None, *, root: Path, device: str, where: dict[str, str]
) -> Record:
    """A finished run's record with its metrics, predictions and T-GIMs measured by today's code; what training measured stays.

    Args:
        checkpoint: the run's.
        ann: its quantised ANN's, for a fine-tuned run.
        where: commit, dirty flag and kind of processor of this process.

    Raises:
        data.DataError: the data are missing, or not those that the run was tested on.
    """
    cell = Cell(**record.config)
    if cell.threads:
        torch.set_num_threads(cell.threads)
    full_float32()
    recipe, on = cell.recipe, torch.device(device)
    options: dict[str, Any] = {
        "root": root,
        "steps": cell.neuron.steps,
        "augment": recipe.augment,
        "validation": recipe.validation,
    }
    info = data.load(cell.dataset, **options)
    if info.digest != record.data["digest"]:
        raise data.DataError(
            f"{cell.name}, seed {record.seed}: the data in {info.source} are not those that it was trained on; bring them back"
        )
    _, _, test = data.loaders(info, recipe.batch_size, seed=record.seed, workers=0, device=on)
    metrics, classes = {name: record.metrics[name] for name in TRAINED & record.metrics.keys()}, dict[str, Tensor]()
    with use_backend(cell.backend):
        if cell.ann:
            assert ann is not None
            assert cell.start is not None
            source = network_of(cell, info)
            source.load_state_dict(torch.load(ann, weights_only=True))
            source.to(on)
            converted = to_lmht(source, cell.neuron.levels, cell.neuron.steps, start=cell.start)
            more, classes = compare_with_ann(source, converted, test, on, cell.float64_checks)
            metrics |= more
        network = starting_network(cell, info).to(on)
        network.load_state_dict(torch.load(checkpoint, weights_only=True))
        if recipe.channels_last:
            network = network.to(memory_format=torch.channels_last)
        measured = evaluate(network, test, on, cell.float64_checks)
    predictions = measured.predictions | {name: one.numpy() for name, one in classes.items()}
    return record.model_copy(
        update={
            "metrics": metrics | measured.metrics,
            "predictions": pack(measured.labels, predictions),
            "tgim": measured.tgim,
            "evaluation": Evaluation(version=measured.version, **where),
        }
    )
