"""CIFAR-10 and -100, in memory, and the ImageNets, image by image in the workers: read from their official layouts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha1
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.datasets import CIFAR10, CIFAR100
from torchvision.datasets.folder import IMG_EXTENSIONS, default_loader, make_dataset
from torchvision.datasets.utils import check_integrity

from .base import Data, DataError, InMemory, Part, digest, downloading, split
from .transforms import CifarEach, batch_transform, recipe


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


TOGETHER = 2048  # CIFAR images that are augmented at once: enough that each operation of a policy gets a hundred
PER_CLASS = {"cifar10": (5000, 1000), "cifar100": (500, 100)}  # images of a class that train, and that test
JUNK = (
    "@eaDir",
    "__MACOSX",
)  # what file managers and archivers leave beside images; besides names that begin with a dot


def cifar(name: str, root: Path, augment: bool, validation: float, seed: int, download: bool) -> Data:
    """CIFAR-10 or CIFAR-100; 32x32 colour, 50 000 to train, 10 000 to test.

    From torchvision's files (checked by their MD5), or from image folders, ``<name>/train|test/CLASS/*.png`` with CLASS a name or
    a number (checked by their counts). Sorted by label and pixels, so that both give the same digest, split and trained numbers.
    """
    kind = {"cifar10": CIFAR10, "cifar100": CIFAR100}[name]
    folder, images = root / kind.base_folder, root / name
    if download:
        with downloading(name, folder):
            kind(root, download=True)
    if folder.is_dir():
        parts = _cifar_files(name, kind, root, folder)
    elif images.is_dir():
        folder, parts = images, [_cifar_folders(name, images / part) for part in ("train", "test")]
    else:
        where = "https://www.cs.toronto.edu/~kriz/cifar.html, or load it with download=True"
        raise DataError.missing(name, f"{folder} (torchvision's files) or {images} (train|test/CLASS/*.png)", where)
    (pixels, labels), (test_pixels, test_labels) = (_in_order(*part) for part in parts)
    train, val = split(labels, validation, seed)

    def part(pixels: np.ndarray, labels: np.ndarray, augment: bool = False) -> InMemory:
        images, classes = torch.from_numpy(pixels).movedim(-1, 1).contiguous(), torch.from_numpy(labels)
        return InMemory(images, classes, CifarEach(name, augment), TOGETHER)

    return Data(
        name=name,
        train=part(pixels[train], labels[train], augment),
        val=part(pixels[val], labels[val]),
        test=part(test_pixels, test_labels),
        classes=10 if name == "cifar10" else 100,
        in_channels=3,
        size=32,
        frames=False,
        digest=digest(pixels, labels, test_pixels, test_labels, train, val),
        source=str(folder),
    )


def _cifar_files(name: str, kind: type[CIFAR10], root: Path, folder: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    try:
        sets = kind(root), kind(root, train=False)
    except RuntimeError:
        files = [*kind.train_list, *kind.test_list, (kind.meta["filename"], kind.meta["md5"])]
        bad = next(folder / file for file, md5 in files if not check_integrity(folder / file, md5))
        problem = "its MD5 is not the published one" if bad.exists() else "not there"
        raise DataError.damaged(name, bad, problem) from None
    return [(one.data, np.asarray(one.targets)) for one in sets]


def _cifar_folders(name: str, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Pixels [n, 32, 32, 3] and labels [n]; the published class names are in sorted order, as are numbers."""
    if not folder.is_dir():
        raise DataError.damaged(name, folder, "not there", "unpack it again")
    classes = [path for path in folder.iterdir() if path.is_dir() and not _is_junk(path)]
    numbered = all(path.name.isdecimal() for path in classes)
    classes.sort(key=lambda path: (int(path.name) if numbered else 0, path.name))
    expected = PER_CLASS[name][folder.name == "test"]
    _count(name, folder, "class folders", 10 if name == "cifar10" else 100, len(classes))
    pixels, labels = [], []
    for label, path in enumerate(classes):
        files = [file for file in path.iterdir() if file.suffix.lower() in IMG_EXTENSIONS and not _is_junk(file)]
        _count(name, path, "images", expected, len(files))
        for file in files:
            try:
                image = np.asarray(default_loader(str(file)))
            except OSError as error:
                raise DataError.damaged(name, file, str(error)) from None
            if image.shape != (32, 32, 3):
                raise DataError.damaged(name, file, f"expected 32x32 pixels, found {image.shape[1]}x{image.shape[0]}")
            pixels.append(image)
            labels.append(label)
    return np.stack(pixels), np.asarray(labels)


def _is_junk(path: Path) -> bool:
    return path.name.startswith(".") or path.name in JUNK


def _in_order(pixels: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sorted by label and a hash of the pixels: the same images in the same order, whatever files they come from."""
    keys = [(label, sha1(image.tobytes()).digest()) for image, label in zip(pixels, labels.tolist(), strict=True)]
    order = np.array(sorted(range(len(keys)), key=keys.__getitem__))
    return np.ascontiguousarray(pixels[order]), labels[order]


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
