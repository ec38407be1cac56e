"""A check of what a compiled function is given, at no cost when it runs."""

from jax.typing import ArrayLike, DTypeLike


def check(
    name: str, array: ArrayLike, shape: tuple[int | None, ...], dtype: DTypeLike | None = None
) -> None:
    """Checks the shape of an array, in which None stands for any size, and its type, if given.

    Raises:
      ValueError: One of them is another.
    """
    found = getattr(array, "shape", ()), getattr(array, "dtype", type(array))
    sizes = zip(found[0], shape, strict=False)
    fits = len(found[0]) == len(shape) and all(b in (None, a) for a, b in sizes)
    if not fits or dtype not in (None, found[1]):
        expected = str(shape).replace("None", "any")
        raise ValueError(
            f"{name} must have the shape {expected}{f' and the type {dtype}' if dtype else ''}; "
            f"got {found[0]} and {found[1]}"
        )
