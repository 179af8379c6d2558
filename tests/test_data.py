"""Data sets, read from files that the tests write in the true on-disk formats; splits, digests, recipes and loaders."""

import gzip
import hashlib
import itertools
import pickle
import struct
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import CIFAR10, CIFAR100, FashionMNIST
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF
from typer.testing import CliRunner

from benchmarks.cli import app
from benchmarks.data import NAMES, PLACES, DataError, events, images, load, loaders, small
from benchmarks.data.base import Batches, InMemory, Part, crop_and_flip, digest, split
from benchmarks.data.transforms import STATISTICS, AutoAugmentEach, CifarEach, Cutout, batch_transform, roll


def batches(loader: Any) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(x.clone(), y.clone()) for x, y in loader]


def equal(a: list[tuple[torch.Tensor, torch.Tensor]], b: list[tuple[torch.Tensor, torch.Tensor]]) -> bool:
    return len(a) == len(b) and all(torch.equal(*p) for pair in zip(a, b, strict=True) for p in zip(*pair, strict=True))


def labels_of(part: Part) -> list[int]:
    return [int(label) for label in part.labels]


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


# --- writers of the true formats --------------------------------------------------------------------------------------


def write_idx(path: Path, values: np.ndarray) -> None:
    """IDX: zero, zero, type 8 (bytes), rank, big-endian sizes, data; gzipped if the name says so."""
    raw = struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape) + values.tobytes()
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)


@pytest.fixture
def fashion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Writes a small Fashion-MNIST in torchvision's layout and makes its sizes and MD5s the published ones."""

    def write(suffix: str = ".gz", change: int = 0) -> Path:
        random, raw, published = np.random.default_rng(0), tmp_path / "FashionMNIST" / "raw", {}
        raw.mkdir(parents=True, exist_ok=True)
        for part, n in ("train", 60), ("t10k", 20):
            pictures = random.integers(0, 256, (n, 28, 28), np.uint8)
            pictures[0, 0, 0] ^= change
            files = {
                f"{part}-images-idx3-ubyte": pictures,
                f"{part}-labels-idx1-ubyte": np.arange(n, dtype=np.uint8) % 10,
            }
            for name, values in files.items():
                write_idx(raw / name, values)
                published[name] = ((raw / name).stat().st_size, md5(raw / name))
                if suffix:
                    (raw / name).unlink()
                    write_idx(raw / f"{name}{suffix}", values)
        monkeypatch.setattr(small, "FASHION", published)
        return tmp_path

    return write


@pytest.fixture
def cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Writes a small CIFAR in its pickled batches and makes their MD5s the published ones."""

    def write(name: str) -> Path:
        kind, key, classes = {"cifar10": (CIFAR10, "labels", 10), "cifar100": (CIFAR100, "fine_labels", 100)}[name]
        folder, random = tmp_path / kind.base_folder, np.random.default_rng(1)
        folder.mkdir()
        for which in "train_list", "test_list":
            published = []
            for file, _ in getattr(kind, which):
                pixels = random.integers(0, 256, (2 * classes, 3072), np.uint8)
                batch = {"data": pixels, key: [i % classes for i in range(2 * classes)], "batch_label": "a batch"}
                (folder / file).write_bytes(pickle.dumps(batch, protocol=2))
                published.append([file, md5(folder / file)])
            monkeypatch.setattr(kind, which, published)
        meta = folder / kind.meta["filename"]
        meta.write_bytes(pickle.dumps({kind.meta["key"]: [str(i) for i in range(classes)]}, protocol=2))
        monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": md5(meta)})
        return tmp_path

    return write


def write_jpeg(path: Path, size: tuple[int, int], value: int, mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value if mode == "L" else (value, value, value)).save(path, "JPEG")


@pytest.fixture
def tiny_imagenet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Tiny ImageNet's layout: train/WNID/images/*.JPEG with boxes beside them, and val/ with annotations; 3 classes."""
    folder, wnids = tmp_path / "tiny-imagenet-200", ["n03", "n01", "n02"]
    for wnid in wnids:
        for i in range(10):  # one grey picture, as the real set has some
            mode = "L" if i == 9 else "RGB"
            write_jpeg(folder / "train" / wnid / "images" / f"{wnid}_{i}.JPEG", (64, 64), 20 * i, mode)
        (folder / "train" / wnid / f"{wnid}_boxes.txt").write_text(f"{wnid}_0.JPEG\t0\t0\t63\t63\n")
    lines = []
    for i in range(6):
        write_jpeg(folder / "val" / "images" / f"val_{i}.JPEG", (64, 64), 10 * i)
        lines.append(f"val_{i}.JPEG\t{wnids[i % 3]}\t0\t0\t63\t63\n")
    (folder / "val" / "val_annotations.txt").write_text("".join(lines))
    (folder / "wnids.txt").write_text("\n".join(wnids))
    tree = replace(images.TREES["imagenet200"], classes=3, train=(10, 10), val=2)
    monkeypatch.setitem(images.TREES, "imagenet200", tree)
    return tmp_path


@pytest.fixture
def imagenet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """torchvision's ImageNet layout: train/WNID and val/WNID; 4 classes, of which the subset uses 2."""
    for number, (wnid, value) in enumerate([("n04", 200), ("n02", 60), ("n03", 130), ("n01", 0)]):
        for i in range(5):
            write_jpeg(tmp_path / "imagenet" / "train" / wnid / f"{wnid}_{i}.JPEG", (300 - 40 * i, 260), value)
        for i in (1 + number, 5 + number):
            write_jpeg(tmp_path / "imagenet" / "val" / wnid / f"ILSVRC2012_val_{i:08}.JPEG", (280, 400), value)
    tree = replace(images.TREES["imagenet1k"], classes=4, train=(4, 5), val=2)
    monkeypatch.setitem(images.TREES, "imagenet1k", tree)
    monkeypatch.setitem(images.TREES, "imagenet100", replace(tree, used=2))
    return tmp_path


def write_aedat2(path: Path, t: np.ndarray, x: np.ndarray, y: np.ndarray, p: np.ndarray) -> None:
    """AEDAT 2.0: comment lines, then big-endian (address, microseconds); a DVS128 address is y, x, polarity from bit 8 down."""
    comments = b"#!AER-DAT2.0\r\n# This is a raw AE data file\r\n# Timestamps tick is 1 us\r\n# End of ASCII Header\r\n"
    path.write_bytes(comments + np.stack([y << 8 | x << 1 | p, t], 1).astype(">u4").tobytes())


def write_aedat4(path: Path, t: np.ndarray, x: np.ndarray, y: np.ndarray, p: np.ndarray) -> None:
    """AEDAT 4.0, uncompressed: an IOHeader and one packet of events, both size-prefixed FlatBuffers laid out by hand."""
    xml = (
        b'<dv version="2.0"><node name="outInfo" path="/outInfo/"><node name="0" path="/outInfo/0/">'
        b'<attr key="compression" type="string">NONE</attr><attr key="typeIdentifier" type="string">EVTS</attr>'
        b'<node name="info" path="/outInfo/0/info/"><attr key="sizeX" type="int">128</attr>'
        b'<attr key="sizeY" type="int">128</attr></node></node></node></dv>'
    )
    # root offset, identifier, vtable (its size, the table's, fields), table (vtable offset, field offsets), contents
    header = struct.pack("<I4sHHHHH2xiII", 20, b"IOHE", 10, 8, 0, 0, 4, 12, 4, len(xml)) + xml + b"\0"
    rows = np.zeros(len(t), np.dtype([("t", "<i8"), ("x", "<i2"), ("y", "<i2"), ("on", "?"), ("pad", "V3")]))
    rows["t"], rows["x"], rows["y"], rows["on"] = t, x, y, p
    packet = struct.pack("<I4sHHH2xiII", 16, b"EVTS", 6, 8, 4, 8, 4, len(t)) + rows.tobytes()
    packet = struct.pack("<I", len(packet)) + packet
    framed = struct.pack("<I", len(header)) + header + struct.pack("<II", 0, len(packet)) + packet
    path.write_bytes(b"#!AER-DAT4.0\r\n" + framed)


def recording(count: int, seed: int) -> tuple[np.ndarray, ...]:
    random = np.random.default_rng(seed)
    return np.arange(count) * 7, *random.integers(0, 128, (2, count)), random.integers(0, 2, count)


@pytest.fixture
def dvs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """CIFAR10-DVS's layout with 10 recordings a class; recording i of class c has 100 (i + 1) + 10 c + 3 events."""
    pytest.importorskip("tonic")
    monkeypatch.setattr(events, "RECORDINGS", 10)
    for c, label in enumerate(events.CLASSES):
        (tmp_path / "CIFAR10DVS" / label).mkdir(parents=True)
        for i in range(10):
            path = tmp_path / "CIFAR10DVS" / label / f"cifar10_{label}_{i + 1}.aedat"
            write_aedat2(path, *recording(100 * (i + 1) + 10 * c + 3, seed=10 * c + i))
    return tmp_path


# --- splits and digests -----------------------------------------------------------------------------------------------


def test_a_split_is_stratified_complete_and_fixed() -> None:
    labels = np.repeat([0, 1, 2], [50, 31, 9])
    rest, part = split(labels, 0.1)
    assert sorted([*rest, *part]) == list(range(90))
    assert all((np.diff(indices) > 0).all() for indices in (rest, part))
    assert np.bincount(labels[part]).tolist() == [5, 3, 1]
    assert np.array_equal(part, split(labels, 0.1)[1])
    assert not np.array_equal(part, split(labels, 0.1, seed=1)[1])
    assert len(split(labels, 0.0)[1]) == 0
    with pytest.raises(ValueError, match=r"fraction is in \[0, 1\), got 1.0"):
        split(labels, 1.0)


def test_a_digest_tells_bytes_shapes_types_and_boundaries_apart() -> None:
    array = np.arange(6, dtype=np.uint8)
    changed = array.copy()
    changed[3] ^= 1
    variants = [
        (array,),
        (changed,),
        (array.reshape(2, 3),),
        (array.astype(np.int8),),
        (array, array),
        ("ab", "c"),
        ("a", "bc"),
    ]
    assert len({digest(*parts) for parts in variants}) == len(variants)
    assert digest(array, "x") == digest(array.copy(), "x")


def test_digits() -> None:
    data = load("digits")
    assert (len(data.train), len(data.val), len(data.test)) == (1295, 143, 359)
    assert (data.classes, data.in_channels, data.size, data.frames) == (10, 1, 8, False)
    # pinned: neither the data nor the split may change from one version of anything to the next
    assert data.digest == "dd98c44bf709b779bdd4c0c2ae617a00c1c2780374d88101670b5de10f518b81"
    assert data.source == "scikit-learn load_digits"
    assert isinstance(data.train, InMemory)
    assert isinstance(data.val, InMemory)
    image, label = data.train[0]
    assert (image.shape, image.dtype, type(label)) == ((1, 8, 8), torch.float32, int)
    pixels = torch.cat([part.batch(torch.arange(len(part)))[0] for part in (data.train, data.val)])
    assert abs(float(pixels.mean())) < 1e-3
    assert abs(float(pixels.std()) - 1) < 1e-3
    with pytest.raises(IndexError, match="index 1295 of 1295"):
        data.train[1295]


def test_the_split_changes_the_digest_and_a_run_changes_neither() -> None:
    digests = [load("digits").digest, load("digits", validation=0.2).digest, load("digits", seed=1).digest]
    assert len(set(digests)) == 3
    assert load("digits", steps=4, augment=False).digest == digests[0]
    unvalidated = load("digits", validation=0.0)
    assert (len(unvalidated.train), len(unvalidated.val)) == (1438, 0)
    assert batches(loaders(unvalidated, 64, seed=0)[1]) == []


# --- Fashion-MNIST ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".gz", ""])
def test_fashion_mnist_from_torchvisions_layout(fashion: Callable[..., Path], suffix: str) -> None:
    root = fashion(suffix)
    data = load("fashion-mnist", root=root, augment=False, validation=0.5)
    assert (len(data.train), len(data.val), len(data.test)) == (30, 30, 20)
    assert np.bincount(labels_of(data.train)).tolist() == [3] * 10
    reference = FashionMNIST(root, train=False) if not suffix else None
    if reference is not None:  # torchvision itself reads the same
        for i in range(20):
            expected = (TF.to_image(reference[i][0]).float() / 255 - 0.2860) / 0.3530
            torch.testing.assert_close(data.test[i][0], expected, rtol=0, atol=1e-6)
            assert data.test[i][1] == reference[i][1]
    assert data.source == str(root / "FashionMNIST" / "raw")
    assert load("fashion-mnist", root=fashion(suffix, change=1), augment=False, validation=0.5).digest != data.digest


@pytest.mark.skipif(not small.DEBIAN.is_dir(), reason="Debian's package dataset-fashion-mnist is not installed")
def test_the_real_fashion_mnist_from_debian(tmp_path: Path) -> None:
    data = load("fashion-mnist", root=tmp_path)
    assert (len(data.train), len(data.val), len(data.test)) == (54_000, 6_000, 10_000)
    assert np.bincount(labels_of(data.val)).tolist() == [600] * 10
    assert data.source == str(small.DEBIAN)
    assert isinstance(data.test, InMemory)
    pixels = data.test.images.double()
    assert abs(float(pixels.mean()) / 255 - small.FASHION_MEAN) < 2e-3  # the constants are the training images'
    assert abs(float(pixels.std()) / 255 - small.FASHION_STD) < 2e-3


def test_a_truncated_fashion_mnist_file_is_one_clear_error(fashion: Callable[..., Path]) -> None:
    path = fashion() / "FashionMNIST" / "raw" / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:20_000])
    with pytest.raises(
        DataError, match=r"train-images.*\.gz: expected 47056 bytes unpacked, found \d+; delete it"
    ) as error:
        load("fashion-mnist", root=path.parents[2])
    assert 0 < int(str(error.value).split("found ")[1].split(";")[0]) < 47_056
    path.write_bytes(b"not a gzip file")
    with pytest.raises(DataError, match=r"fashion-mnist is damaged: .*not a gzip file"):
        load("fashion-mnist", root=path.parents[2])
    path.unlink()
    with pytest.raises(
        DataError, match=r"data set fashion-mnist not found at .*train-images-idx3-ubyte\.gz; get it from"
    ):
        load("fashion-mnist", root=path.parents[2])


def test_a_flipped_bit_of_fashion_mnist_is_found(fashion: Callable[..., Path]) -> None:
    path = fashion("") / "FashionMNIST" / "raw" / "t10k-images-idx3-ubyte"
    raw = bytearray(path.read_bytes())
    raw[1000] ^= 1
    path.write_bytes(raw)
    with pytest.raises(DataError, match=r"t10k-images-idx3-ubyte: expected MD5 \w{32} unpacked, found \w{32}"):
        load("fashion-mnist", root=path.parents[2])


def test_a_failed_download_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Any) -> None:
        raise OSError("no route to host")

    for kind in FashionMNIST, CIFAR10:
        monkeypatch.setattr(kind, "download", fail)
    for name in "fashion-mnist", "cifar10":
        with pytest.raises(DataError, match=f"{name} not found at .*, and its download failed: no route to host"):
            load(name, root=tmp_path, download=True)


def test_crop_and_flip_gives_every_crop_and_mirror_and_nothing_else() -> None:
    torch.manual_seed(0)
    picture = torch.randint(1, 256, (2, 5, 7), dtype=torch.uint8)
    out = small.crop_and_flip(picture.expand(2000, 2, 5, 7), pad=1)
    padded = torch.nn.functional.pad(picture, (1, 1, 1, 1))
    crops = [padded[:, i : i + 5, j : j + 7] for i, j in itertools.product(range(3), range(3))]
    wanted = {tuple(x.flatten().tolist()) for crop in crops for x in (crop, crop.flip(-1))}
    assert {tuple(x.flatten().tolist()) for x in out} == wanted
    assert len(wanted) == 18


# --- loaders ----------------------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_batches(fashion: Callable[..., Path]) -> None:
    data = load("fashion-mnist", root=fashion())
    torch.manual_seed(3)
    train = loaders(data, 16, seed=7)[0]
    first, second = batches(train), batches(train)
    torch.manual_seed(4)  # what else the program draws does not matter
    again = loaders(data, 16, seed=7)[0]
    assert equal(first, batches(again))
    assert equal(second, batches(again))
    assert not equal(first, second)
    assert isinstance(again.sampler, Batches)
    again.sampler.set_epoch(0)
    assert equal(first, batches(again))
    assert not equal(first, batches(loaders(data, 16, seed=8)[0]))
    assert [len(y) for _, y in first] == [16, 16, 16, 2]
    assert sorted(y for _, batch in first for y in batch.tolist()) == sorted(labels_of(data.train))
    assert (first[0][0].shape, first[0][0].dtype, first[0][1].dtype) == ((16, 1, 28, 28), torch.float32, torch.int64)


def test_loading_leaves_the_random_state_alone(fashion: Callable[..., Path]) -> None:
    data = load("fashion-mnist", root=fashion())
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    # DataLoader itself draws one base seed an epoch for its workers, from the generator it is given
    for loader in loaders(data, 16, seed=7):
        batches(loader)
    assert torch.equal(torch.rand(4), expected)


def test_validation_and_test_come_in_order_and_unaugmented(fashion: Callable[..., Path]) -> None:
    data = load("fashion-mnist", root=fashion(), validation=0.5)
    for part, loader in zip((data.val, data.test), loaders(data, 8, seed=0)[1:], strict=True):
        first = batches(loader)
        assert equal(first, batches(loader))
        assert torch.equal(torch.cat([x for x, _ in first]), torch.stack([part[i][0] for i in range(len(part))]))


def test_data_in_memory_are_never_read_image_by_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(InMemory, "__getitem__", lambda *_: pytest.fail("an image was read on its own"))
    assert sum(len(y) for loader in loaders(load("digits"), 64, seed=0) for _, y in loader) == 1797


@pytest.mark.parametrize("n", [23, 24, 3])
def test_processes_share_an_epoch(n: int) -> None:
    for shuffle in True, False:
        parts = [[i.tolist() for _, i in Batches(n, 4, seed=0, shuffle=shuffle, rank=r, world=3)] for r in range(3)]
        assert [len(Batches(n, 4, seed=0, shuffle=shuffle, rank=r, world=3)) for r in range(3)] == [
            len(p) for p in parts
        ]
        flat = [[i for batch in part for i in batch] for part in parts]
        together = sorted(i for part in flat for i in part)
        if shuffle:  # equally many steps each, and none twice
            assert {len(part) for part in flat} == {n // 3}
            assert len(set(together)) == len(together)
        else:
            assert together == list(range(n))
    keys = [seed for r in range(3) for seed, _ in Batches(24, 4, seed=0, shuffle=True, rank=r, world=3)]
    assert len(set(keys)) == len(keys)


def test_bad_loader_arguments() -> None:
    with pytest.raises(ValueError, match="batch_size is at least 1, got 0"):
        loaders(load("digits"), 0, seed=0)
    with pytest.raises(ValueError, match="got rank 2 of world 2"):
        loaders(load("digits"), 8, seed=0, rank=2, world=2)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_sees_the_same_batches_and_keeps_its_random_state(fashion: Callable[..., Path]) -> None:
    data = load("fashion-mnist", root=fashion())
    state = torch.cuda.get_rng_state()
    on_gpu = batches(loaders(data, 16, seed=7, device="cuda")[0])
    assert on_gpu[0][0].is_cuda
    assert torch.equal(state, torch.cuda.get_rng_state())
    assert equal([(x.cpu(), y.cpu()) for x, y in on_gpu], batches(loaders(data, 16, seed=7)[0]))


# --- CIFAR ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "n_train"), [("cifar10", 100), ("cifar100", 200)])
def test_cifar_from_its_batches(cifar: Callable[[str], Path], name: str, n_train: int) -> None:
    root = cifar(name)
    data = load(name, root=root, augment=False, validation=0.5)
    assert len(data.train) == len(data.val) == n_train // 2
    assert (data.classes, data.in_channels, data.size) == (10 if name == "cifar10" else 100, 3, 32)
    kind = CIFAR10 if name == "cifar10" else CIFAR100
    mean, std = (torch.tensor(x)[:, None, None] for x in STATISTICS[name])
    ours, labels = torch.stack([image for image, _ in data.test]), labels_of(data.test)
    assert len(ours) == len(kind(root, train=False))
    for picture, label in kind(root, train=False):
        expected = (torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 255 - mean) / std
        nearest = int((ours - expected).abs().flatten(1).amax(1).argmin())
        torch.testing.assert_close(ours[nearest], expected, rtol=0, atol=1e-5)
        assert labels[nearest] == label
    assert labels == sorted(labels)
    other = load(name, root=root, augment=False, validation=0.5, seed=1)
    assert data.digest == load(name, root=root, validation=0.5).digest != other.digest


def test_workers_change_nothing(tiny_imagenet: Path) -> None:
    data = load("imagenet200", root=tiny_imagenet)
    alone = loaders(data, 16, seed=5)
    helped = loaders(data, 16, seed=5, workers=2)
    first = batches(alone[0])
    assert equal(first, batches(helped[0]))
    second = batches(alone[0])
    assert equal(second, batches(helped[0]))
    assert not equal(first, second)
    assert equal(batches(alone[1]), batches(helped[1]))


def test_workers_augment_what_lies_in_memory(cifar: Callable[[str], Path]) -> None:
    data = load("cifar100", root=cifar("cifar100"))
    alone, helped = loaders(data, 16, seed=5), loaders(data, 16, seed=5, workers=2)
    assert [loader.chunks.num_workers for loader in helped] == [2, 0, 0]  # nothing else is worth a worker
    for _ in range(2):
        assert equal(batches(alone[0]), batches(helped[0]))
    assert equal(batches(alone[2]), batches(helped[2]))


def test_workers_begin_with_a_pass_when_it_is_made(cifar: Callable[[str], Path]) -> None:
    data = load("cifar100", root=cifar("cifar100"))
    train = loaders(data, 16, seed=5, workers=1)[0]
    first = iter(train)
    assert train.sampler.epoch == 1  # its keys are with the workers
    assert equal(list(first), batches(loaders(data, 16, seed=5)[0]))


def test_damaged_cifar(cifar: Callable[[str], Path]) -> None:
    root = cifar("cifar10")
    path = root / "cifar-10-batches-py" / "data_batch_3"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(
        DataError, match=r"cifar10 is damaged: .*data_batch_3: its MD5 is not the published one; delete it"
    ):
        load("cifar10", root=root)
    path.unlink()
    with pytest.raises(DataError, match="data_batch_3: not there"):
        load("cifar10", root=root)


# --- ImageNets --------------------------------------------------------------------------------------------------------


def test_tiny_imagenet(tiny_imagenet: Path) -> None:
    data = load("imagenet200", root=tiny_imagenet, augment=False)
    assert (len(data.train), len(data.val), len(data.test), data.classes, data.size) == (27, 3, 6, 3, 64)
    assert data.batch_transform is None
    mean, std = (torch.tensor(x)[:, None, None] for x in STATISTICS["imagenet200"])
    for place, i in enumerate([1, 4, 2, 5, 0, 3]):  # val_i is filled with 10 i; pictures are of n03, n01, n02, n03, ...
        expected = (torch.full((3, 64, 64), 10 * i / 255) - mean) / std
        torch.testing.assert_close(data.test[place][0], expected, rtol=0, atol=0.03)  # JPEG
    assert labels_of(data.test) == [0, 0, 1, 1, 2, 2]
    assert {data.train[i][0].shape for i in range(27)} == {(3, 64, 64)}
    augmented = load("imagenet200", root=tiny_imagenet)
    assert augmented.digest == data.digest
    x, y = next(iter(loaders(augmented, 8, seed=0)[0]))
    assert (x.shape, y.dtype) == ((8, 3, 64, 64), torch.int64)
    (tiny_imagenet / "tiny-imagenet-200/val/images/val_0.JPEG").write_bytes(b"other")
    assert load("imagenet200", root=tiny_imagenet).digest != data.digest


def test_tiny_imagenet_as_people_have_it(tiny_imagenet: Path) -> None:
    """What file managers leave; validation images sorted into folders or not; annotations with a BOM and a blank last line."""
    folder = tiny_imagenet / "tiny-imagenet-200"
    published = load("imagenet200", root=tiny_imagenet)
    for junk in ("train/n01/images/._n01_0.JPEG", "train/n02/@eaDir/n02_0.JPEG", "train/.ipynb_checkpoints/a.JPEG"):
        (folder / junk).parent.mkdir(exist_ok=True)
        (folder / junk).write_bytes(b"no image")
    (folder / "train" / "__MACOSX").mkdir()
    annotations = folder / "val" / "val_annotations.txt"
    annotations.write_text("\ufeff" + annotations.read_text() + "\n")
    assert load("imagenet200", root=tiny_imagenet).digest == published.digest
    for line in annotations.read_text(encoding="utf-8-sig").split("\n"):
        if line:
            file, wnid = line.split("\t")[:2]
            (folder / "val" / wnid / "images").mkdir(parents=True, exist_ok=True)
            (folder / "val" / "images" / file).rename(folder / "val" / wnid / "images" / file)
    by_class = load("imagenet200", root=tiny_imagenet)
    assert by_class.digest == published.digest
    assert labels_of(by_class.test) == labels_of(published.test)


def test_a_picture_of_absurd_size_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.JPEG"
    write_jpeg(path, (16, 16), 1)
    raw = bytearray(path.read_bytes())
    at = raw.index(b"\xff\xc0")
    raw[at + 5 : at + 9] = b"\xff\x00\xff\x00"
    path.write_bytes(raw)
    with pytest.raises(DataError, match=rf"damaged: {path}: .*pixels.*; delete it"):
        images.Pictures("imagenet200")(str(path))


def test_texts_in_another_encoding_are_named_and_links_followed(tiny_imagenet: Path) -> None:
    folder = tiny_imagenet / "tiny-imagenet-200"
    published = load("imagenet200", root=tiny_imagenet).digest
    (folder / "train/n01/images").rename(tiny_imagenet / "elsewhere")
    (folder / "train/n01/images").symlink_to(tiny_imagenet / "elsewhere")
    assert load("imagenet200", root=tiny_imagenet).digest == published
    for file in (folder / "val/val_annotations.txt", folder / "wnids.txt"):
        text = file.read_text()
        file.write_text(text, encoding="utf-16")
        with pytest.raises(DataError, match=rf"damaged: {file}: .*decode.*; save it as UTF-8, or get it again"):
            load("imagenet200", root=tiny_imagenet)
        file.write_text(text)


def test_damaged_tiny_imagenet(tiny_imagenet: Path) -> None:
    folder = tiny_imagenet / "tiny-imagenet-200"
    annotations = folder / "val/val_annotations.txt"
    whole = annotations.read_text()
    annotations.write_text(whole.replace("n02", "n09"))
    with pytest.raises(DataError, match=r"val_annotations\.txt: unknown class 'n09' of val_2\.JPEG"):
        load("imagenet200", root=tiny_imagenet)
    annotations.write_text(whole)
    (folder / "val/images/val_3.JPEG").unlink()
    with pytest.raises(DataError, match=r"val_3\.JPEG of class 'n03' is not there"):
        load("imagenet200", root=tiny_imagenet)
    write_jpeg(folder / "val/images/val_3.JPEG", (64, 64), 30)
    (folder / "train/n01/images/n01_0.JPEG").rename(folder / "train/n01/images/copy.JPEG")
    with pytest.raises(
        DataError, match=r"n01: expected 10 images, found 10; missing: n01_0\.JPEG; not of them: copy\.JPEG"
    ):
        load("imagenet200", root=tiny_imagenet)
    (folder / "train/n01").rename(folder / "train/other")
    with pytest.raises(DataError, match="expected 3 class folders, found 3; missing: n01; not of them: other; unpack"):
        load("imagenet200", root=tiny_imagenet)
    annotations.unlink()
    (folder / "train/other").rename(folder / "train/n01")
    with pytest.raises(
        DataError, match="6 images that are not in folders by class; sort them into folders by class, as"
    ):
        load("imagenet200", root=tiny_imagenet)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_truncated_image_is_named_in_training(tiny_imagenet: Path, workers: int) -> None:
    data = load("imagenet200", root=tiny_imagenet)
    assert isinstance(data.train, images.Items)
    path = Path(data.train.keys[3])
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(DataError) as caught:
        batches(loaders(data, 8, seed=0, workers=workers)[0])
    assert str(caught.value).startswith(f"data set imagenet200 is damaged: {path}: ")
    assert len(str(caught.value).splitlines()) == 1


def test_imagenet_and_its_subset(imagenet: Path) -> None:
    data = load("imagenet1k", root=imagenet, validation=0.2)
    assert (len(data.train), len(data.val), len(data.test), data.classes, data.size) == (16, 4, 8, 4, 224)
    subset = load("imagenet100", root=imagenet, validation=0.2)
    assert (len(subset.train), len(subset.val), len(subset.test), subset.classes) == (8, 2, 4, 2)
    mean, std = (torch.tensor(x)[:, None, None] for x in STATISTICS["imagenet1k"])
    for i, value in enumerate([0, 0, 60, 60]):  # the first WNIDs in sorted order are n01 (0) and n02 (60)
        expected = (torch.full((3, 224, 224), value / 255) - mean) / std
        torch.testing.assert_close(subset.test[i][0], expected, rtol=0, atol=0.03)
    assert labels_of(subset.test) == [0, 0, 1, 1]
    train, val, _ = loaders(data, 4, seed=0)
    x, y = next(iter(train))
    assert (x.shape, y.shape, y.dtype) == ((4, 3, 224, 224), (4, 4), torch.float32)
    assert next(iter(val))[1].dtype == torch.int64
    assert load("imagenet1k", root=imagenet, augment=False).batch_transform is None
    one, other = (imagenet / "imagenet/val/n04" / f"ILSVRC2012_val_{i:08}.JPEG" for i in (1, 9))
    one.rename(other)
    with pytest.raises(
        DataError, match=r"expected 2 images of n04, found 2; not of them: ILSVRC2012_val_00000009\.JPEG"
    ):
        load("imagenet1k", root=imagenet)
    other.rename(one)
    for i in (0, 1):
        (imagenet / "imagenet/train/n01" / f"n01_{i}.JPEG").unlink()
    with pytest.raises(DataError, match="n01: expected 4 to 5 images, found 3"):
        load("imagenet100", root=imagenet)


# --- CIFAR10-DVS ------------------------------------------------------------------------------------------------------


def test_cifar10_dvs(dvs: Path) -> None:
    data = load("cifar10-dvs", root=dvs, steps=10, augment=False)
    # of each class's ten the first nine train or validate: number 14 tests, not "9", the last by name
    assert (len(data.train), len(data.val), len(data.test)) == (80, 10, 10)
    assert (data.classes, data.in_channels, data.size, data.frames) == (10, 2, 48, True)
    assert labels_of(data.test) == list(range(10))
    for c in range(10):
        frames = data.test[c][0]
        count = 1003 + 10 * c
        assert frames.shape == (10, 2, 48, 48)
        assert frames.sum((1, 2, 3)).tolist() == [count // 10] * 10  # ten bins of equally many events
        _, x, y, p = recording(count, seed=10 * c + 9)
        expected = torch.zeros(10, 2, 48, 48)
        for k in range(count // 10 * 10):  # the camera's address is turned, mirrored and of the opposite polarity
            expected[k // (count // 10), 1 - p[k], (127 - x[k]) * 48 // 128, (127 - y[k]) * 48 // 128] += 1
        assert torch.equal(frames, expected)
    images_, labels = next(iter(loaders(data, 4, seed=0)[2]))
    assert (images_.shape, labels.tolist()) == ((10, 4, 2, 48, 48), [0, 1, 2, 3])
    assert torch.equal(images_[:, 1], data.test[1][0])


def test_frames_are_merged_evenly_or_averaged(dvs: Path) -> None:
    every = load("cifar10-dvs", root=dvs, steps=10, augment=False).test[0][0]
    four = load("cifar10-dvs", root=dvs, steps=4, augment=False).test[0][0]
    groups = [every[0:3], every[3:6], every[6:8], every[8:10]]
    torch.testing.assert_close(four, torch.stack([group.mean(0) for group in groups]), rtol=0, atol=1e-6)
    averaged = load("cifar10-dvs-averaged", root=dvs, steps=4, augment=True)
    assert not averaged.frames
    torch.testing.assert_close(averaged.test[0][0], every.mean(0), rtol=0, atol=1e-6)
    assert next(iter(loaders(averaged, 4, seed=0)[0]))[0].shape == (4, 2, 48, 48)
    with pytest.raises(ValueError, match="T is 1 to 10 for CIFAR10-DVS, which has 10 frames; got 11"):
        load("cifar10-dvs", root=dvs, steps=11)


def test_dvs_augmentation_and_workers(dvs: Path) -> None:
    data = load("cifar10-dvs", root=dvs, steps=5)
    first = batches(loaders(data, 16, seed=1)[0])
    assert equal(first, batches(loaders(data, 16, seed=1, workers=2)[0]))
    plain = load("cifar10-dvs", root=dvs, steps=5, augment=False)
    assert not equal(first, batches(loaders(plain, 16, seed=1)[0]))


def test_aedat4_gives_the_frames_of_the_events_it_holds(tmp_path: Path) -> None:
    pytest.importorskip("tonic")
    pytest.importorskip("aedat")
    t, x, y, p = recording(230, seed=0)
    write_aedat4(tmp_path / "a.aedat4", t, 127 - x, 127 - y, 1 - p)
    write_aedat2(tmp_path / "a.aedat", t, y, x, p)  # the other format's address is turned and mirrored
    assert np.array_equal(events.frames_of(tmp_path / "a.aedat4"), events.frames_of(tmp_path / "a.aedat"))
    (tmp_path / "c.aedat").write_bytes(b"#!AER-DAT3.1\r\n" + bytes(800))
    with pytest.raises(DataError, match=r"c\.aedat: its first line is b'#!AER-DAT3.1': neither AEDAT 2 nor AEDAT 4.0"):
        events.frames_of(tmp_path / "c.aedat")
    (tmp_path / "b.aedat4").write_bytes((tmp_path / "a.aedat4").read_bytes()[:900])
    with pytest.raises(DataError, match=r"cifar10-dvs is damaged: .*b\.aedat4"):
        events.frames_of(tmp_path / "b.aedat4")


def test_damaged_dvs(dvs: Path) -> None:
    path = dvs / "CIFAR10DVS" / "dog" / "cifar10_dog_7.aedat"
    whole = path.read_bytes()
    path.write_bytes(whole[:-16] + b"\x00\x01" + whole[-14:])
    with pytest.raises(
        DataError, match=r"cifar10_dog_7\.aedat: address 0x1\w+ has bits that no event of a 128x128 camera has"
    ):
        load("cifar10-dvs", root=dvs, steps=4)
    path.write_bytes(whole[:-3])
    with pytest.raises(DataError, match=r"cifar10_dog_7\.aedat: it ends inside an event; delete it and get it again"):
        load("cifar10-dvs", root=dvs, steps=4)
    path.write_bytes(whole[: -8 * 750])
    with pytest.raises(DataError, match=r"cifar10_dog_7\.aedat: \d events, too few for 10 frames"):
        load("cifar10-dvs", root=dvs, steps=4)
    path.unlink()
    (path.parent / "cifar10_dog_8.aedat.part").write_bytes(whole)  # neither is one of them
    (path.parent / "._cifar10_dog_8.aedat").write_bytes(b"junk")
    with pytest.raises(
        DataError, match=r"expected 10 recordings, found 9; missing: cifar10_dog_7\.aedat; unpack it again"
    ):
        load("cifar10-dvs", root=dvs, steps=4)
    path.with_name("dog.aedat").write_bytes(whole)
    with pytest.raises(DataError, match=r"missing: cifar10_dog_7\.aedat; not of them: dog\.aedat"):
        load("cifar10-dvs", root=dvs, steps=4)
    path.with_name("dog.aedat").rename(path.with_name("cifar10_dog_77.aedat"))
    with pytest.raises(DataError, match=r"missing: cifar10_dog_7\.aedat; not of them: cifar10_dog_77\.aedat"):
        load("cifar10-dvs", root=dvs, steps=4)


def test_other_recordings_are_binned_anew_and_digested_otherwise(dvs: Path) -> None:
    before = load("cifar10-dvs", root=dvs, steps=10)
    assert load("cifar10-dvs", root=dvs, steps=2).digest == before.digest
    write_aedat2(dvs / "CIFAR10DVS" / "airplane" / "cifar10_airplane_10.aedat", *recording(700, seed=99))
    after = load("cifar10-dvs", root=dvs, steps=10)
    assert after.digest != before.digest
    assert after.test[0][0].sum() == 700


# --- recipes ----------------------------------------------------------------------------------------------------------


def test_cutout_erases_a_square_clipped_by_the_border() -> None:
    torch.manual_seed(0)
    image, sizes = torch.ones(3, 32, 20), set()
    for _ in range(3000):
        hole = Cutout(16)(image) == 0
        assert torch.equal(hole[0], hole[1])
        rows, columns = hole[0].any(1), hole[0].any(0)
        assert torch.equal(hole[0], rows[:, None] & columns)  # a rectangle
        assert all(int(line.diff().abs().sum()) <= 2 for line in (rows.int(), columns.int()))  # without gaps
        sizes.add((int(rows.sum()), int(columns.sum())))
    assert sizes == {(h, w) for h in range(8, 17) for w in range(8, 17)}
    assert torch.equal(image, torch.ones(3, 32, 20))  # the input is left alone


def test_roll_wraps_around() -> None:
    torch.manual_seed(0)
    frames = torch.arange(2 * 2 * 48 * 48.0).reshape(2, 2, 48, 48)
    shifts = {tuple(np.argwhere(roll(frames)[0, 0].numpy() == 0)[0]) for _ in range(2000)}
    assert shifts == {(i % 48, j % 48) for i in range(-5, 6) for j in range(-5, 6)}


@pytest.mark.parametrize(("name", "side"), [("cifar10", 16), ("cifar100", 12)])
def test_the_cifar_recipe_cuts_out_the_paper_s_square(name: str, side: int) -> None:
    torch.manual_seed(0)
    out = CifarEach(name, True)(torch.full((200, 3, 32, 32), 128, dtype=torch.uint8))
    assert (out.shape, out.dtype) == ((200, 3, 32, 32), torch.float32)
    assert int((out == 0).all(1).sum((1, 2)).max()) == side**2


def test_each_image_draws_its_own_crop_flip_and_square() -> None:
    torch.manual_seed(0)
    image = torch.arange(3 * 32 * 32).reshape(1, 3, 32, 32)
    crops = crop_and_flip(image.expand(4000, -1, -1, -1), 4).flatten(1)
    assert len(crops.unique(dim=0)) == 9 * 9 * 2  # every place, mirrored or not
    holes = Cutout(12, each=True)(torch.ones(4000, 1, 32, 32)) == 0
    assert len(holes.flatten(1).unique(dim=0)) > 0.9 * 32 * 32


@pytest.mark.parametrize("policy", range(25))
@pytest.mark.parametrize("sign", [0.25, 0.75])
def test_autoaugment_of_many_images_is_torchvision_s_of_each(
    monkeypatch: pytest.MonkeyPatch, policy: int, sign: float
) -> None:
    images = torch.randint(256, (4, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(policy))
    each, theirs = AutoAugmentEach(v2.AutoAugmentPolicy.CIFAR10), v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10)
    signed = [each._AUGMENTATION_SPACE[operation][1] for operation, _, _ in each._policies[policy]]
    with monkeypatch.context() as patch:
        whole = iter([torch.zeros(2, 4), torch.full((2, 4), sign)])
        patch.setattr(torch, "randint", lambda high, shape: torch.full(shape, policy))
        patch.setattr(torch, "rand", lambda *_: next(whole))
        ours = each(images)
    expected = []
    for image in images:
        with monkeypatch.context() as patch:
            draws = iter([x for has_sign in signed for x in ([0.0, sign] if has_sign else [0.0])])
            patch.setattr(torch, "randint", lambda *_: torch.tensor(policy))
            patch.setattr(torch, "rand", lambda *_, draws=draws: torch.tensor(next(draws)))
            expected.append(theirs(image))
    assert torch.equal(ours, torch.stack(expected))


def test_autoaugment_of_many_images_draws_as_torchvision_does() -> None:
    """What becomes of one image, 40 000 times at once and 4 000 times one by one: the same outcomes, equally often."""
    torch.manual_seed(0)
    image = torch.randint(256, (3, 8, 8), dtype=torch.uint8)
    many = AutoAugmentEach(v2.AutoAugmentPolicy.CIFAR10)(image.expand(40_000, -1, -1, -1))
    alone = v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10)
    one_by_one = torch.stack([alone(image) for _ in range(4_000)])
    ours, theirs = (Counter(out.numpy().tobytes() for out in outs) for outs in (many, one_by_one))
    common = {outcome for outcome, count in ours.items() if count >= 200}  # of these, 20 are expected one by one
    observed = [theirs[outcome] for outcome in common] + [sum(theirs[o] for o in theirs.keys() - common)]
    expected = [ours[outcome] / 10 for outcome in common] + [sum(ours[o] for o in ours.keys() - common) / 10]
    chi2 = sum((o - e) ** 2 / e for o, e in zip(observed, expected, strict=True))
    assert len(common) > 30
    assert chi2 < len(common) + 4 * (2 * len(common)) ** 0.5  # four standard deviations above its mean


def test_batches_that_are_augmented_together_are_told_one_by_one(cifar: Callable[[str], Path]) -> None:
    data = load("cifar100", root=cifar("cifar100"))
    assert isinstance(data.train, InMemory)
    data.train.together = 64
    train = loaders(data, 16, seed=5)[0]
    first = batches(train)
    n = len(data.train)
    assert [len(y) for _, y in first] == [16] * (n // 16) + [n % 16] * (n % 16 > 0)
    assert len(first) == len(train)
    assert sorted(y for _, batch in first for y in batch.tolist()) == sorted(labels_of(data.train))
    for begin in (0, 1, 4, 6):  # within a chunk of four, and between two
        train.sampler.set_epoch(0, begin)
        assert equal(batches(train), first[begin:])
    assert not equal(batches(train), first)


def test_soft_labels_are_mixed_and_smoothed() -> None:
    torch.manual_seed(0)
    transform = batch_transform("imagenet1k", 5)
    assert transform is not None
    pixels, labels, mixed = torch.rand(8, 3, 16, 16), torch.arange(8) % 5, 0
    for _ in range(50):
        out, soft = transform(pixels, labels)
        torch.testing.assert_close(soft.sum(1), torch.ones(8))
        assert float(soft.min()) >= 0.1 / 5 - 1e-6
        # lambda of an image, read from its label, is the share of the image that stayed (CutMix) or its weight (MixUp)
        share = (soft[torch.arange(8), labels] - 0.02) / 0.9
        mixed += int(0 < float(share.min()) < 1)
        partner = labels.roll(1)
        expected = 0.02 + 0.9 * (share[:, None] * torch.eye(5)[labels] + (1 - share)[:, None] * torch.eye(5)[partner])
        torch.testing.assert_close(soft, expected)
        assert out.shape == pixels.shape
    assert mixed > 25
    assert batch_transform("imagenet100", 100) is not None
    assert all(batch_transform(name, 10) is None for name in ("cifar10", "imagenet200", "digits", "cifar10-dvs"))


# --- the command ------------------------------------------------------------------------------------------------------


def told(*words: str) -> tuple[int, list[str]]:
    result = CliRunner().invoke(app, ["data", *words])
    return result.exit_code, result.output.splitlines()


def test_the_command_lists_what_is_there_and_how_to_get_the_rest(cifar: Callable[[str], Path]) -> None:
    root = cifar("cifar10")
    code, lines = told("--data-root", str(root))
    assert code == 0
    assert [line.split(" ")[0] for line in lines] == list(NAMES)
    assert told("cifar100", "--data-root", str(root))[0] == 0
    assert told("cifar100", "--check", "--data-root", str(root))[0] == 1  # asked whether it is whole
    by_name = dict(zip(NAMES, lines, strict=True))
    assert by_name["cifar10"].endswith(f"images of 32x32, 0.2 GB): found: {root}/cifar-10-batches-py")
    assert f"not found: looked for {root}/cifar-100-python, {root}/cifar100; get it from https:" in by_name["cifar100"]
    assert by_name["digits"].endswith("): found")


def test_the_command_checks_what_is_there(cifar: Callable[[str], Path]) -> None:
    root = cifar("cifar10")
    code, lines = told("cifar10", "digits", "--check", "--data-root", str(root))
    assert code == 0
    assert all(": whole: " in line for line in lines)
    (root / "cifar-10-batches-py" / "data_batch_3").unlink()
    code, lines = told("cifar10", "--check", "--data-root", str(root))
    assert code == 1
    assert "cifar10 is damaged" in lines[0]


def test_the_command_refuses_what_it_does_not_know(tmp_path: Path) -> None:
    assert told("mnist")[0] == told("imagenet1k", "--download")[0] == 1


# --- what is not there ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in NAMES if PLACES[name].folders])
def test_missing_data_are_one_line_with_the_remedy(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(small, "DEBIAN", tmp_path / "nothing")
    files = name.removesuffix("-averaged")
    with pytest.raises(
        DataError, match=f"^data set {files} not found at {tmp_path}/[^;]+; get it from .{{10,}}$"
    ) as error:
        load(name, root=tmp_path)
    assert "\n" not in str(error.value)


def test_unknown_data_set() -> None:
    with pytest.raises(ValueError, match=r"unknown data set 'mnist': one of .*digits"):
        load("mnist")


def as_folders(root: Path, name: str, into: Path, *, numbers: bool, suffix: str = "png") -> Path:
    """The small CIFAR of the fixture as image folders, in another order, with what file managers leave beside images."""
    whole = {"cifar10": CIFAR10, "cifar100": CIFAR100}[name]
    for part in "train", "test":
        data = whole(root, train=part == "train")
        for i, (pixels, label) in enumerate(zip(data.data, data.targets, strict=True)):
            folder = into / name / part / (str(label) if numbers else f"class{label:03}")
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / f"{10**6 - i}.{suffix}")
        for junk in ("._x.png", ".DS_Store"):
            (folder / junk).write_bytes(b"junk")
        for junk in ("@eaDir", ".ipynb_checkpoints", "__MACOSX"):
            (into / name / part / junk).mkdir()
    return into


@pytest.fixture
def folders(
    request: pytest.FixtureRequest, cifar: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[str, Path, Path]:
    name, numbers = request.param
    root = cifar(name)
    train_files = {"cifar10": 5, "cifar100": 1}[name]
    monkeypatch.setitem(images.PER_CLASS, name, {"train": 2 * train_files, "test": 2})
    return name, root, as_folders(root, name, tmp_path / "as folders", numbers=numbers)


CIFARS = pytest.mark.parametrize("folders", [("cifar10", False), ("cifar100", True)], indirect=True)


@CIFARS
def test_cifar_as_image_folders_is_the_same_data_set(folders: tuple[str, Path, Path]) -> None:
    name, root, other = folders
    files, pictures = (load(name, root=one, augment=False, validation=0.5) for one in (root, other))
    assert files.digest == pictures.digest
    for part in ("train", "val", "test"):
        ours, theirs = getattr(files, part), getattr(pictures, part)
        assert len(ours) == len(theirs) > 0
        for (x, y), (x2, y2) in zip(ours, theirs, strict=True):
            assert torch.equal(x, x2)
            assert y == y2


@pytest.mark.parametrize(
    ("folders", "spelled"),
    [
        (("cifar10", False), lambda i, one: one),
        (("cifar10", False), lambda i, one: str(i)),
        (("cifar10", True), lambda i, one: str(i + 1)),
        (("cifar100", True), lambda i, one: one.title()),
        (("cifar100", False), lambda i, one: f"class_{i}"),
        (("cifar10", True), lambda i, one: f"cifar10-{i + 1:02}"),
    ],
    indirect=["folders"],
)
def test_class_folders_have_their_official_labels_however_they_are_spelled(
    folders: tuple[str, Path, Path], spelled: Callable[[int, str], str]
) -> None:
    name, root, other = folders
    official = images.CLASSES[name]
    assert official == sorted(official)
    for part in "train", "test":
        old = sorted(
            (p for p in (other / name / part).iterdir() if p.name[-1].isdigit()), key=lambda p: p.name.zfill(9)
        )
        for i, path in enumerate(old):
            path.rename(path.with_name(f"new {spelled(i, official[i])}"))
        for path in (other / name / part).glob("new *"):
            path.rename(path.with_name(path.name[4:]))
    assert load(name, root=other).digest == load(name, root=root).digest
    first, second = ((other / name / "train" / spelled(i, official[i])) for i in (0, 1))
    first.rename(first.with_name("plane"))
    with pytest.raises(
        DataError, match=f"(?i)train: expected 10+ class folders, .*missing: {first.name}; not of them: plane"
    ):
        load(name, root=other)
    first.with_name("plane").rename(first)
    second.rename(second.with_name("SECOND"))
    with pytest.raises(DataError, match=f"(?i)missing: {second.name}; not of them: SECOND"):
        load(name, root=other)


@CIFARS
def test_parts_of_different_classes_are_refused(folders: tuple[str, Path, Path]) -> None:
    name, _, root = folders
    for path in list((root / name / "test").glob("*[0-9]")):
        path.rename(path.with_name(f"c{path.name}"))
    with pytest.raises(DataError, match=r"its parts have different classes: .*; rename them"):
        load(name, root=root)


@CIFARS
def test_image_folders_that_are_not_whole_name_what_is_wrong(folders: tuple[str, Path, Path]) -> None:
    name, _, root = folders
    folder = sorted(path for path in (root / name / "train").iterdir() if path.name[-1].isdigit())[3]
    file = next(folder.glob("[!.]*.png"))
    whole = file.read_bytes()
    file.unlink()
    with pytest.raises(DataError, match=f"{folder}: expected .* images, found"):
        load(name, root=root)
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=f"data set {name} is damaged: {file}: .*get it again"):
        load(name, root=root)
    Image.new("RGB", (31, 32)).save(file)
    with pytest.raises(DataError, match="expected 32x32 pixels, found 31x32"):
        load(name, root=root)
    shorter = (int.from_bytes(whole[33:37]) - 5).to_bytes(4)
    for torn in (whole[:11] + b"\f" + whole[12:], whole[:33] + shorter + whole[37:]):  # PIL's ValueError, SyntaxError
        file.write_bytes(torn)
        with pytest.raises(DataError, match=f"data set {name} is damaged: {file}: .*get it again"):
            load(name, root=root)
    file.write_bytes(whole)
    tested = sorted(path for path in (root / name / "test").iterdir() if path.name[-1].isdigit())[3]
    tested.rename(renamed := tested.with_name("77777"))
    with pytest.raises(DataError, match=f"class folders, found 10+; missing: {tested.name}; not of them: 77777"):
        load(name, root=root)
    renamed.rename(tested)
    (root / name / "test" / "surplus").mkdir()
    with pytest.raises(DataError, match=r"class folders, found 10*1; not of them: surplus"):
        load(name, root=root)
    assert load(name, root=root.parent).name == name
