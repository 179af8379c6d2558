"""One training in float64 by as many processes as torchrun starts, into a file: what tests/test_together.py compares.

torchrun --nproc-per-node 2 tests/shared.py FILE
"""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from torch.utils.data import Dataset

from benchmarks import data, spec
from benchmarks.run import together, train
from benchmarks.run.train import StoppedError


class Images(Dataset[Any]):
    """8x8 images in float64."""

    def __init__(self, count: int) -> None:
        self.labels = torch.arange(count) % 10
        self.images = torch.randn(count, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(count))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.images[index], int(self.labels[index])


def cell(devices: int) -> spec.Cell:
    """LM-HT on odd numbers of images: two epochs of two updates, each of two batches."""
    whole = spec.resolve(spec.load_spec("table1").row[2], spec.load_profile("digits"))
    recipe = whole.recipe.model_copy(
        update={"epochs": 2, "epoch_images": 64, "batch_size": 16, "accumulate": 2, "precision": "64-true"}
    )
    small = {"recipe": recipe, "network": {"width": 1 / 16}, "float64_checks": False, "devices": devices}
    return whole.model_copy(update=small)


def measured(devices: int, folder: Path, **options: Any) -> dict[str, Any]:
    """Loss of every batch, gradient of every update, accuracies and final weights; in this process."""
    losses: list[float] = []
    gradients: list[torch.Tensor] = []
    images = Images(101), Images(21), Images(33)
    made = data.Data("digits", *images, 10, 1, 8, False, "d" * 64, "invented")
    load, entropy, step = data.load, train.F.cross_entropy, torch.optim.SGD.step

    def cross_entropy(*arguments: Any, **options: Any) -> Any:
        loss = entropy(*arguments, **options)
        losses.append(loss.item())
        return loss

    def noted(self: Any, closure: Any = None) -> Any:
        gradients.append(torch.cat([p.grad.flatten() for group in self.param_groups for p in group["params"]]))
        return step(self, closure)

    data.load, train.F.cross_entropy, torch.optim.SGD.step = lambda *_, **__: made, cross_entropy, noted
    folder.mkdir(exist_ok=True)
    torch.set_default_dtype(torch.float64)  # what Fabric gives the loss
    try:
        events = list(
            train.run_cell(cell(devices), 7, root=folder, device="cpu", out=folder / "checkpoint.pt", **options)
        )
    finally:
        data.load, train.F.cross_entropy, torch.optim.SGD.step = load, entropy, step
        torch.set_default_dtype(torch.float32)
    accuracies = [(e.metrics["test"], e.metrics["val"]) for e in events if isinstance(e, train.Epoch)]
    result = events[-1].metrics if isinstance(events[-1], train.Result) else {}
    return {"losses": losses, "gradients": gradients, "accuracies": accuracies, "result": result}


def stopped_and_gone_on(devices: int, folder: Path) -> dict[str, Any]:
    """The same, but the last process is told to stop at its third update."""
    asked: Iterator[int] = iter(range(1, 1000))
    last = distributed.get_rank() == devices - 1
    try:
        measured(devices, folder, state_dir=str(folder), stopping=lambda: last and next(asked) >= 3)
    except StoppedError:
        return measured(devices, folder, state_dir=str(folder))
    raise AssertionError("it was not stopped")


def main() -> None:
    devices, file = int(os.environ["WORLD_SIZE"]), Path(sys.argv[1])
    with together.started(devices, "cpu") as group:
        found = measured(devices, file.parent / "whole")
        all_losses: list[Any] = [None] * devices
        distributed.all_gather_object(all_losses, found["losses"])
        found["losses"] = [sum(parts) / devices for parts in zip(*all_losses, strict=True)]
        again = stopped_and_gone_on(devices, file.parent / "again")
        errors = []
        for failing in ({0, 1}, {1}):
            try:
                together.everywhere(lambda mine=group.rank in failing: 1 // (not mine), ZeroDivisionError)
            except ZeroDivisionError as error:
                errors.append(str(error))
        if group.rank == 0:
            torch.save({"whole": found, "again": again, "errors": errors}, file)
        else:
            assert group.hear() is None


if __name__ == "__main__":
    main()
