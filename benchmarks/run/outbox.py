"""What is still to be logged, in order, while the store is away."""

import time
from collections import deque
from collections.abc import Callable

from benchmarks.tracking import StoreError

RETRY_EVERY = 20.0  # seconds
PATIENCE = 900.0


class Outbox:
    """Calls to the store: made at once while it answers, else kept in order and made when it does again.

    A call may be made twice (the store took it, and its answer was lost), so each must come to the same when it is repeated. A kill
    loses none of them: a training's state is on disk before what it has measured is put here, and stays there until the store has
    its result. It tells all its epochs again, in order; the store then gets those that it lacks, and the result is measured anew.

    Args:
        away: told the error once, when an outage begins.
    """

    def __init__(self, away: Callable[[StoreError], None] = lambda error: None) -> None:
        self.calls: deque[Callable[[], None]] = deque()
        self.away = away
        self.since: float | None = None  # when the store stopped answering
        self.again = 0.0  # when to try it next

    def put(self, call: Callable[[], None]) -> None:
        self.calls.append(call)
        self.flush()

    def flush(self) -> None:
        """Make the calls that wait, unless the store was tried a moment ago.

        Raises:
            StoreError: it will not go by itself, or has lasted longer than anybody's patience.
        """
        while self.calls and self.attempt(self.calls[0]):
            self.calls.popleft()

    def attempt(self, call: Callable[[], None]) -> bool:
        """Make a call that may wait; whether the store took it."""
        began = time.monotonic()
        if began < self.again:
            return False
        try:
            call()
        except StoreError as error:
            if not error.passing:
                raise
            now = time.monotonic()
            if self.since is None:
                self.since = now
                self.away(error)
            if now - self.since > PATIENCE:
                raise
            self.again = now + max(RETRY_EVERY, 2 * (now - began))  # a server that hangs may not hold the training up
            return False
        self.since = None
        return True
