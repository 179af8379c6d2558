"""CIFAR-10 and -100, and the ImageNets: read from their official layouts, augmented image by image in the workers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torchvision.datasets import CIFAR10, CIFAR100
from torchvision.datasets.folder import IMG_EXTENSIONS, default_loader, make_dataset
from torchvision.datasets.utils import check_integrity

from .base import Data, DataError, Part, digest, downloading, split
from .transforms import batch_transform, recipe


class Items(Part):
    """`read(i)` of the chosen indices i, transformed, with its label."""

    def __init__(
        self,
        read: Callable[[Any], Any],
        keys: Sequence[Any] | np.ndarray,
        labels: np.ndarray,
        transform: Callable[[Any], Tensor],
    ) -> None:
        self.read, self.keys, self.labels, self.transform = read, keys, labels, transform

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.read(self.keys[index])), int(self.labels[index])


def cifar(name: str, root: Path, augment: bool, validation: float, seed: int, download: bool) -> Data:
    """CIFAR-10 or CIFAR-100, checked and read by torchvision; 32x32 colour, 50 000 to train, 10 000 to test."""
    kind = {"cifar10": CIFAR10, "cifar100": CIFAR100}[name]
    folder = root / kind.base_folder
    if download:
        with downloading(name, folder):
            kind(root, download=True)
    if not folder.is_dir():
        where = "https://www.cs.toronto.edu/~kriz/cifar.html, or load it with download=True"
        raise DataError.missing(name, folder, where)
    try:
        train_set, test_set = kind(root), kind(root, train=False)
    except RuntimeError:
        files = [*kind.train_list, *kind.test_list, (kind.meta["filename"], kind.meta["md5"])]
        bad = next(folder / file for file, md5 in files if not check_integrity(folder / file, md5))
        problem = "its MD5 is not the published one" if bad.exists() else "not there"
        raise DataError.damaged(name, bad, problem) from None
    labels, test_labels = np.asarray(train_set.targets), np.asarray(test_set.targets)
    train, val = split(labels, validation, seed)
    plain, augmented = recipe(name, False), recipe(name, augment)
    return Data(
        name=name,
        train=Items(_array, train_set.data[train], labels[train], augmented),
        val=Items(_array, train_set.data[val], labels[val], plain),
        test=Items(_array, test_set.data, test_labels, plain),
        classes=10 if name == "cifar10" else 100,
        in_channels=3,
        size=32,
        frames=False,
        digest=digest(train_set.data, labels, test_set.data, test_labels, train, val),
        source=str(folder),
    )


def _array(pixels: np.ndarray) -> np.ndarray:
    """[H, W, C] bytes, which the recipe's ToImage takes as they are."""
    return pixels


@dataclass(frozen=True)
class Tree:
    """An ImageNet folder: its name under the root, and what it must hold to be whole."""

    folder: str
    classes: int
    train_images: int
    val_images: int
    size: int
    where: str
    used: int | None = None  # the first so many classes in sorted order; None: all


IMAGENET = "https://image-net.org/download-images.php (ILSVRC 2012), in torchvision's layout train/WNID, val/WNID"
TREES = {
    "imagenet200": Tree(
        "tiny-imagenet-200", 200, 100_000, 10_000, 64, "http://cs231n.stanford.edu/tiny-imagenet-200.zip, unpacked"
    ),
    "imagenet1k": Tree("imagenet", 1000, 1_281_167, 50_000, 224, IMAGENET),
    "imagenet100": Tree("imagenet", 1000, 1_281_167, 50_000, 224, IMAGENET, used=100),
}


def imagenet(name: str, root: Path, augment: bool, validation: float, seed: int) -> Data:
    """ImageNet-200 (Tiny ImageNet), ImageNet-1k, or ImageNet-100: the first 100 of ImageNet-1k's WNIDs in sorted order.

    The official test labels are not public: the official validation images test, as is usual. Folder and image counts
    are checked; of the subset only the number of classes and test images is known beforehand.
    """
    tree = TREES[name]
    folder = root / tree.folder
    train_folder, val_folder = folder / "train", folder / "val"
    for part in (train_folder, val_folder):
        if not part.is_dir():
            raise DataError.missing(name, part, tree.where)
    wnids = sorted(path.name for path in train_folder.iterdir() if path.is_dir())
    _count(name, train_folder, "class folders", tree.classes, len(wnids))
    wnids = wnids[: tree.used]
    index = {wnid: label for label, wnid in enumerate(wnids)}
    try:
        samples = make_dataset(str(train_folder), index, extensions=IMG_EXTENSIONS)
        annotations = val_folder / "val_annotations.txt"
        if annotations.is_file():  # Tiny ImageNet's: file name, WNID and a box
            rows = [line.split("\t")[:2] for line in annotations.read_text().splitlines()]
            test = sorted((str(val_folder / "images" / file), index[wnid]) for file, wnid in rows)
        else:
            test = make_dataset(str(val_folder), index, extensions=IMG_EXTENSIONS)
    except (FileNotFoundError, KeyError, ValueError) as error:
        raise DataError.damaged(name, folder, f"classes without images or with unknown names ({error})") from None
    if tree.used is None:
        _count(name, train_folder, "training images", tree.train_images, len(samples))
    _count(name, val_folder, "validation images", tree.val_images * len(wnids) // tree.classes, len(test))

    paths, labels = np.array([path for path, _ in samples]), np.array([label for _, label in samples])
    train, val = split(labels, validation, seed)
    try:
        sizes = [
            f"{Path(path).relative_to(folder).as_posix()} {Path(path).stat().st_size}" for path, _ in samples + test
        ]
    except FileNotFoundError as error:
        raise DataError.damaged(name, error.filename, "not there") from None
    plain, augmented = recipe(name, False), recipe(name, augment)
    return Data(
        name=name,
        train=Items(default_loader, paths[train], labels[train], augmented),
        val=Items(default_loader, paths[val], labels[val], plain),
        test=Items(default_loader, np.array([path for path, _ in test]), np.array([label for _, label in test]), plain),
        classes=len(wnids),
        in_channels=3,
        size=tree.size,
        frames=False,
        digest=digest("\n".join(sizes), train, val),
        source=str(folder),
        batch_transform=batch_transform(name, len(wnids)) if augment else None,
    )


def _count(name: str, path: Path, what: str, expected: int, found: int) -> None:
    if found != expected:
        raise DataError.damaged(name, path, f"expected {expected} {what}, found {found}", "unpack it again")
