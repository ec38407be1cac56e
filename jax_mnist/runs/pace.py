"""How fast training goes in the steady state, and how long the rest of it takes."""

import collections
import heapq
import math
from collections.abc import Sequence


class Pace:
    """The mean time of recent calls of the compiled program, without those that compile.

    There are two kinds of calls: some end an epoch, so that an evaluation follows. The first of
    each kind compiles.
    """

    def __init__(self) -> None:
        self._seconds: dict[bool, collections.deque[float]] = {}

    def compiles(self, ends_epoch: bool) -> bool:
        """Whether a call of this kind would be the first."""
        return ends_epoch not in self._seconds

    def add(self, ends_epoch: bool, seconds: float) -> None:
        """Counts a call."""
        if self.compiles(ends_epoch):
            self._seconds[ends_epoch] = collections.deque(maxlen=100)
        else:
            self._seconds[ends_epoch].append(seconds)

    def seconds(self, ends_epoch: bool) -> float:
        """The time of a call of this kind, else of the other kind; NaN if neither is known."""
        for kind in (ends_epoch, not ends_epoch):
            if calls := self._seconds.get(kind):
                return sum(calls) / len(calls)
        return math.nan


class Estimate:
    """The time that is left of many runs, from the time that epochs take in the steady state.

    The first interval between two reports of a run does not count: it is mostly compilation.

    Args:
      epochs: Of each run.
      lanes: How many runs train at a time.
    """

    def __init__(self, epochs: Sequence[int], lanes: int) -> None:
        self.epochs, self.lanes = epochs, lanes
        self.done: dict[int, float] = {}
        self._last: dict[int, float] = {}  # when a run whose first interval is over reported
        self._trained, self._seconds, self._now = 0.0, 0.0, 0.0

    def report(self, number: int, done: float, now: float) -> None:
        """Notes the epochs that a run has behind it; the first report is from before training."""
        if number in self._last:
            self._trained += done - self.done[number]
            self._seconds += now - self._last[number]
        if number in self.done:
            self._last[number] = self._now = now
        self.done[number] = done

    @property
    def compiling(self) -> bool:
        """Whether no run has trained yet."""
        return not self._last

    def seconds_left(self, now: float) -> float:
        """The time until the last run ends, if each lane takes the next run when it is free."""
        if not self._trained:
            return math.nan
        lanes = [0.0] * self.lanes
        for number, epochs in enumerate(self.epochs):
            heapq.heapreplace(lanes, lanes[0] + epochs - self.done.get(number, 0.0))
        return max(0.0, max(lanes) * self._seconds / self._trained - (now - self._now))
