"""What a run says of itself: its progress, and its result."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Epoch:
    """Progress after one epoch; accuracies in percent, loss in nats."""

    epoch: int
    epochs: int
    metrics: dict[str, float]


@dataclass(frozen=True)
class Result:
    """Final metrics, and the checkpoint's path."""

    metrics: dict[str, float]
    checkpoint: Path
    data: dict[str, str]
