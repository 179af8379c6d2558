"""CIFAR-10 and -100, in memory, and the ImageNets, image by image in the workers: read from their official layouts."""

import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from hashlib import sha1
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.datasets import CIFAR10, CIFAR100
from torchvision.datasets.folder import IMG_EXTENSIONS, default_loader
from torchvision.datasets.utils import check_integrity

from .base import Data, DataError, InMemory, Part, digest, downloading, split
from .places import PLACES
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
PER_CLASS = {"cifar10": {"train": 5000, "test": 1000}, "cifar100": {"train": 500, "test": 100}}  # images of a class
_NAMES = {
    "cifar10": "airplane automobile bird cat deer dog frog horse ship truck",
    "cifar100": (
        "apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle "
        "caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant flatfish "
        "forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle "
        "mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine "
        "possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar "
        "sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle wardrobe whale willow_tree "
        "wolf woman worm"
    ),
}
CLASSES = {name: names.split() for name, names in _NAMES.items()}  # the published ones, in order of their labels
JUNK = (
    "@eaDir",
    "__MACOSX",
)  # what file managers and archivers leave beside images; besides names that begin with a dot


def cifar(name: str, root: Path, augment: bool, validation: float, seed: int, download: bool) -> Data:
    """CIFAR-10 or CIFAR-100; 32x32 colour, 50 000 to train, 10 000 to test.

    From torchvision's files (checked by their MD5), or from image folders, ``<name>/train|test/CLASS/*.png`` (checked by their
    counts) with CLASS the published name in any case, or a number from 0 or 1 behind one prefix or none. Sorted by label and
    pixels, so that both give the same digest, split and trained numbers.
    """
    kind = {"cifar10": CIFAR10, "cifar100": CIFAR100}[name]
    folder, images = root / kind.base_folder, root / name
    if download:
        with downloading(name, folder):
            kind(root, download=True)
    if folder.is_dir():
        parts = _cifar_files(name, kind, root, folder)
    elif images.is_dir():
        folder, parts = images, _cifar_folders(name, images)
    else:
        place = f"{folder} (torchvision's files) or {images} (train|test/CLASS/*.png)"
        raise DataError.missing(name, place, PLACES[name].where)
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
        classes=len(CLASSES[name]),
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


def _cifar_folders(name: str, folder: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    """Of train and test pixels [n, 32, 32, 3] and labels [n]."""
    classes = {part: _classes(name, folder / part) for part in PER_CLASS[name]}
    if differing := sorted(set(classes["train"]) ^ set(classes["test"])):
        problem = f"its parts have different classes: {', '.join(differing[:4])}"
        raise DataError.damaged(name, folder, problem, "rename them, or unpack it again")
    parts = []
    for part, expected in PER_CLASS[name].items():
        pixels, labels = [], []
        for label, path in enumerate(folder / part / one for one in classes[part]):
            files = [
                file for file in path.iterdir() if file.suffix.lower() in IMG_EXTENSIONS and not is_junk(file.name)
            ]
            check_whole(name, path, [file.name for file in files], (expected, expected), None)
            for file in files:
                image = np.asarray(Pictures(name)(str(file)))
                if image.shape != (32, 32, 3):
                    problem = f"expected 32x32 pixels, found {image.shape[1]}x{image.shape[0]}"
                    raise DataError.damaged(name, file, problem)
                pixels.append(image)
                labels.append(label)
        parts.append((np.stack(pixels), np.asarray(labels)))
    return parts


def _classes(name: str, folder: Path) -> list[str]:
    """The class folders of a part in order of their labels."""
    if not folder.is_dir():
        raise DataError.damaged(name, folder, "not there", "unpack it again")
    classes = [path.name for path in folder.iterdir() if path.is_dir() and not is_junk(path.name)]
    published = {one.lower(): one for one in classes}
    expected, count = [published.get(one, one) for one in CLASSES[name]], len(CLASSES[name])
    ends = [found for one in classes if (found := re.fullmatch(r"(.*?)([0-9]+)", one))]
    prefix, times = Counter(found[1] for found in ends).most_common(1)[0] if ends else ("", 0)
    if 2 * times > len(classes):
        numbered = {int(found[2]): found[0] for found in ends if found[1] == prefix}
        first = int(count in numbered)
        width = min(len(found[2]) for found in ends)
        expected = [numbered.get(number, f"{prefix}{number:0{width}}") for number in range(first, first + count)]
    check_whole(name, folder, classes, (count, count), set(expected), "class folders")
    return expected


def is_junk(name: str) -> bool:
    return name.startswith(".") or name in JUNK


def _in_order(pixels: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sorted by label and a hash of the pixels: the same images in the same order, whatever files they come from."""
    keys = [(label, sha1(image.tobytes()).digest()) for image, label in zip(pixels, labels.tolist(), strict=True)]
    order = np.array(sorted(range(len(keys)), key=keys.__getitem__))
    return np.ascontiguousarray(pixels[order]), labels[order]


@dataclass(frozen=True)
class Tree:
    """An ImageNet folder: its name under the root, and what it must hold to be whole.

    Attributes:
        train: the fewest and the most training images of a class.
        val: validation images of a class.
        train_name, val_name: of image i of class wnid, and of validation image i, counted from `first`; None: not a rule.
        used: the first so many classes in sorted order; None: all.
    """

    folder: str
    classes: int
    train: tuple[int, int]
    val: int
    size: int
    val_name: str
    first: int
    train_name: str | None = None
    used: int | None = None


TREES = {
    "imagenet200": Tree(
        "tiny-imagenet-200",
        200,
        (500, 500),
        50,
        64,
        "val_{i}.JPEG",
        0,
        "{wnid}_{i}.JPEG",
    ),
    "imagenet1k": Tree("imagenet", 1000, (732, 1300), 50, 224, "ILSVRC2012_val_{i:08}.JPEG", 1),
}
TREES["imagenet100"] = replace(TREES["imagenet1k"], used=100)


def imagenet(name: str, root: Path, augment: bool, validation: float, seed: int) -> Data:
    """ImageNet-200 (Tiny ImageNet), ImageNet-1k, or ImageNet-100: the first 100 of ImageNet-1k's WNIDs in sorted order.

    The official test labels are not public: the official validation images test, as is usual. They lie in folders by class, or as
    Tiny ImageNet is published, in one folder with ``val_annotations.txt``. Names and counts of classes and images are checked, as
    far as they are published: of ImageNet's training images the fewest and the most of a class.
    """
    tree = TREES[name]
    folder = root / tree.folder
    for part in ("train", "val"):
        if not (folder / part).is_dir():
            raise DataError.missing(name, folder / part, PLACES[name].where)
    wnids = _wnids(name, tree, folder)
    every_val = {tree.val_name.format(i=i + tree.first) for i in range(tree.classes * tree.val)}
    parts = {"train": {w: _files(name, folder / "train" / w) for w in wnids}, "val": _val(name, tree, folder, wnids)}
    for wnid, files in parts["train"].items():
        rule = {tree.train_name.format(wnid=wnid, i=i) for i in range(tree.train[0])} if tree.train_name else None
        check_whole(name, folder / "train" / wnid, files, tree.train, rule)
    for wnid, files in parts["val"].items():
        check_whole(name, folder / "val", files, (tree.val, tree.val), every_val, f"images of {wnid}")

    described, samples = [], {}
    for part, classes in parts.items():
        items = [
            (label, file, classes[wnid][file]) for label, wnid in enumerate(wnids) for file in sorted(classes[wnid])
        ]
        try:
            described += [f"{part} {wnids[label]} {file} {os.stat(path).st_size}" for label, file, path in items]
        except FileNotFoundError as error:
            raise DataError.damaged(name, error.filename, "not there") from None
        samples[part] = np.array([path for _, _, path in items]), np.array([label for label, _, _ in items])
    paths, labels = samples["train"]
    train, val = split(labels, validation, seed)
    plain, augmented = recipe(name, False), recipe(name, augment)
    read = Pictures(name)
    return Data(
        name=name,
        train=Items(read, paths[train], labels[train], augmented),
        val=Items(read, paths[val], labels[val], plain),
        test=Items(read, *samples["val"], plain),
        classes=len(wnids),
        in_channels=3,
        size=tree.size,
        frames=False,
        digest=digest("\n".join(described), train, val),
        source=str(folder),
        batch_transform=batch_transform(name, len(wnids)) if augment else None,
    )


@dataclass(frozen=True)
class Pictures:
    """Reads an image file of the data set `name`; a damaged one is named."""

    name: str

    def __call__(self, path: str) -> Any:
        try:
            return default_loader(str(path))
        # PIL's, of a torn header, a broken chunk, too large a size
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise DataError.damaged(self.name, path, str(error)) from None


def _wnids(name: str, tree: Tree, folder: Path) -> list[str]:
    """The class folders of train/, compared with the list that Tiny ImageNet has beside them."""
    found = {path.name for path in (folder / "train").iterdir() if path.is_dir() and not is_junk(path.name)}
    listed = folder / "wnids.txt"
    expected = set(_text(name, listed).split()) if listed.is_file() else None
    if expected is None and len(found) != tree.classes:
        expected = {wnid for wnid in found if re.fullmatch(r"n\d{8}", wnid)}
    check_whole(name, folder / "train", found, (tree.classes, tree.classes), expected, "class folders")
    return sorted(found)[: tree.used]


def _val(name: str, tree: Tree, folder: Path, wnids: list[str]) -> dict[str, dict[str, str]]:
    """Of each class, file names and paths of its validation images; folders by class are taken before annotations."""
    val = folder / "val"
    if any((val / wnid).is_dir() for wnid in wnids):
        return {wnid: _files(name, val / wnid) for wnid in wnids}
    files, annotations = _files(name, val), val / "val_annotations.txt"
    if not annotations.is_file():
        remedy = "sort them into folders by class, as the devkit's ground truth or PyTorch's valprep.sh says"
        raise DataError.damaged(name, val, f"{len(files)} images that are not in folders by class", remedy)
    found: dict[str, dict[str, str]] = {wnid: {} for wnid in wnids}
    for line in _text(name, annotations).splitlines():
        if line.strip():  # file name, WNID and a box
            file, wnid, *_ = [*line.split("\t"), ""]
            if wnid not in found or file not in files:
                problem = (
                    f"{file} of class {wnid!r} is not there" if wnid in found else f"unknown class {wnid!r} of {file}"
                )
                raise DataError.damaged(name, annotations, problem)
            found[wnid][file] = files[file]
    return found


def _text(name: str, path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError.damaged(name, path, str(error), "save it as UTF-8, or get it again") from None


def _files(name: str, folder: Path) -> dict[str, str]:
    """The paths of all images below a folder, by their names; what file managers and archivers leave is passed over."""
    found: dict[str, str] = {}
    for where, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [one for one in folders if not is_junk(one)]
        for file in files:
            if file.lower().endswith(IMG_EXTENSIONS) and not is_junk(file):
                if file in found:
                    raise DataError.damaged(name, folder, f"{file} is there twice", "unpack it again")
                found[file] = os.path.join(where, file)
    return found


def check_whole(
    name: str,
    path: Path,
    found: Collection[str],
    bounds: tuple[int, int],
    expected: set[str] | None,
    what: str = "images",
) -> None:
    """Raise DataError unless there are as many as there should be, with the names they should have; it names what is not."""
    least, most = bounds
    surplus = sorted(set(found) - expected) if expected else []
    if least <= len(found) <= most and not surplus:
        return
    count = f"{least}" if least == most else f"{least} to {most}"
    told = [f"expected {count} {what}, found {len(found)}"]
    missing = sorted(expected - set(found)) if expected and len(expected) == least else []
    for word, files in (("missing", missing), ("not of them", surplus)):
        if files:
            told.append(f"{word}: {', '.join(files[:3])}" + f" and {len(files) - 3} more" * (len(files) > 3))
    raise DataError.damaged(name, path, "; ".join(told), "unpack it again")
