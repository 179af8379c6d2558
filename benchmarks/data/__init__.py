"""Data sets of the tables and their stand-ins: `load` one by name, `loaders` for its batches, `DataError` if it cannot be."""

from dataclasses import dataclass
from pathlib import Path

from .base import Data, DataError, loaders
from .places import PLACES
from .small import digits, fashion_mnist

__all__ = ["NAMES", "PLACES", "SIZES", "Data", "DataError", "Size", "load", "loaders"]


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
NAMES = tuple(SIZES)


def load(
    name: str,
    *,
    root: Path = Path("data"),
    steps: int = 1,
    augment: bool = True,
    validation: float = 0.1,
    seed: int = 0,
    download: bool = False,
) -> Data:
    """The data set `name` with its recipe's normalisation and augmentation, and its fixed split.

    Args:
        root: the folder that holds the data sets (digits needs none).
        steps: T; the number of frames of "cifar10-dvs", without effect on images.
        augment: whether the training images are augmented by the data set's recipe.
        validation: the share of each training class that validates, un-augmented; 0 leaves `val` empty.
        seed: of the validation split alone. It is no run's seed: the split is the same for every run.
        download: let torchvision download Fashion-MNIST or CIFAR into `root`.

    Raises:
        DataError: the data are not there, or damaged.
        ValueError: an unknown name or option.
    """
    match name:
        case "digits":
            return digits(validation, seed)
        case "fashion-mnist":
            return fashion_mnist(root, augment, validation, seed, download)
    from . import events, images  # torchvision takes seconds to import, and the small data sets do not need it

    match name:
        case "cifar10" | "cifar100":
            return images.cifar(name, root, augment, validation, seed, download)
        case "imagenet200" | "imagenet1k" | "imagenet100":
            return images.imagenet(name, root, augment, validation, seed)
        case "cifar10-dvs":
            return events.cifar10_dvs(root, steps, augment, validation, seed)
        case "cifar10-dvs-averaged":
            return events.cifar10_dvs(root, None, augment, validation, seed)
    raise ValueError(f"unknown data set {name!r}: one of {', '.join(NAMES)}")
