"""Split strings such as `"train[:80%]+test"`, with the meaning that they have in TFDS.

TFDS has its own parser, but importing it takes from half a second to three seconds.
"""

import re
from collections.abc import Mapping, Sequence

import numpy as np

from jax_mnist.data.types import Dataset, DatasetError, first_line

Slice = tuple[str, int, int]  # split, start, stop

# train, test[10:], train[:80%]; several are joined by +
_PIECE = re.compile(r"([\w-]+)(?:\[(?:(-?[\d_.]+)(%?))?:(?:(-?[\d_.]+)(%?))?\])?")


def parse(split: str, counts: Mapping[str, int]) -> list[Slice]:
    """Parses a split string.

    Args:
      split: For example `"train"`, `"test[:100]"`, `"train[80%:]"`, `"all"` or
        `"train[:100]+test"`. TFDS's `shard` unit is not supported.
      counts: The number of examples in each split.

    Returns:
      The slices to concatenate; none of them is empty.

    Raises:
      DatasetError: The string is malformed, or names no examples or examples that do not exist.
    """
    try:
        pieces = re.split(r"\s*\+\s*", split)
        return [part for piece in pieces for part in _parse_piece(piece, counts)]
    except (TypeError, ValueError) as error:
        raise DatasetError(
            f"bad split {split!r}: {first_line(error)}; write 'train', 'test', 'train[:50000]', "
            "'train[80%:]' or 'train[:100]+test'"
        ) from error


def _parse_piece(piece: str, counts: Mapping[str, int]) -> list[Slice]:
    match = _PIECE.fullmatch(piece)
    if not match:
        raise ValueError(f"{piece!r} is not a split name with an optional [from:to]")
    split, low, low_unit, high, high_unit = match.groups()
    if piece == "all":
        return [(split, 0, count) for split, count in counts.items()]
    if split not in counts:
        raise ValueError(f"the splits are {', '.join(counts)}, not {split!r}")
    if "[" in piece and low is None and high is None:
        raise ValueError("[:] has no bounds")
    count = counts[split]

    def bound(text: str | None, default: int) -> int:
        if text is None:
            return default
        percent = low_unit or high_unit  # as in TFDS, a unit on one bound applies to both
        value = float(text) if percent else int(text)
        if abs(value) > (100 if percent else count):
            raise ValueError(f"{text} is beyond the {count} examples of {split}")
        index = round(value * count / 100.0) if percent else int(value)
        return index + count if index < 0 else index

    start, stop = bound(low, 0), bound(high, count)
    if start >= stop:
        raise ValueError(f"{piece!r} contains no examples")
    return [(split, start, stop)]


def take(data: Mapping[str, Dataset], slices: Sequence[Slice]) -> Dataset:
    """Returns the examples that `slices` name; those of a single slice are not copied."""
    parts = [(data[s].images[start:stop], data[s].labels[start:stop]) for s, start, stop in slices]
    if len(parts) == 1:
        return Dataset(*parts[0])
    images, labels = zip(*parts, strict=True)
    return Dataset(np.concatenate(images), np.concatenate(labels))
