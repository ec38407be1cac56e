"""Reads a pickle of plain Python values and numeric NumPy arrays, and nothing else.

`pickle.Unpickler` calls what a file names (https://docs.python.org/3/library/pickle.html opens with
that warning); even with the names restricted, a file can set attributes on whatever it was given
and grow the memo at will. So the steps are carried out here, on the few opcodes that such values
need (the standard library's `pickletools` parses and documents them). The names in a file are
compared and never looked up: nothing that a file says is imported or called.
"""

import math
import pickle
import pickletools
import sys
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np

# What is refused is always the same thing to a caller: not a pickle of such values.
UnpicklingError = pickle.UnpicklingError

MAX_STEPS = 250_000  # opcodes

DTYPES = {
    code: np.dtype(code)
    for code in ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")
}
_NATIVE = "<" if sys.byteorder == "little" else ">"
_NUMPY = {
    "numpy dtype": "dtype",
    "numpy ndarray": "ndarray",
    **{
        f"numpy.{core}.{name}": name.split()[1]
        for core in ("_core", "core")  # NumPy 2 and 1
        for name in ("multiarray _reconstruct", "multiarray scalar", "numeric _frombuffer")
    },
}
_LITERALS = {
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
    *("SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
    *("SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_ITEMS = {"APPEND": (list, 1), "APPENDS": (list, 0), "SETITEM": (dict, 2), "SETITEMS": (dict, 0)}


class _Name(str):
    """One of the values of `_NUMPY`, told apart from text in the file."""


class _Unfilled:
    """An array between its two steps; the memo keeps this and finds the array through it."""

    array: np.ndarray | None = None

    def filled(self) -> np.ndarray:
        if self.array is None:
            raise UnpicklingError("refused: it uses an array that has no contents yet")
        return self.array


def loads(data: bytes) -> object:
    """Carries out the steps of a pickle (protocol 3, 4 or 5).

    Memory is bounded by the size of the data and by `MAX_STEPS`. Arrays come C-contiguous and
    writable. Containers may be shared, or even contain themselves, and may hold leftovers of a
    pickle's inner steps: a caller who trusts nobody walks the result, allowing exact types only.

    Args:
        data: the whole pickle, up to and with its last byte.

    Returns:
        None, bool, int, float, str, bytes, bytearray, list, tuple, dict with str keys, ndarray.

    Raises:
        UnpicklingError: the pickle asks for anything else, or is damaged; one line.
    """
    try:
        return _run(data)
    except UnpicklingError:
        raise
    except Exception as error:  # hostile bytes can raise anything; all of it means one thing
        raise UnpicklingError(f"not a pickle, or a damaged one ({type(error).__name__})") from error


def _run(data: bytes) -> object:
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}
    array_bytes = 0

    def take(count: int) -> list[Any]:
        start = len(stack) - count
        if start < (marks[-1] if marks else 0):
            raise UnpicklingError("damaged: a step lacks its operands")
        items = stack[start:]
        del stack[start:]
        return items

    def take_to_mark() -> list[Any]:
        items = take(len(stack) - marks[-1])
        marks.pop()
        return items

    def array(dtype: object, shape: object, content: object, order: object) -> np.ndarray:
        nonlocal array_bytes
        made = _array(dtype, shape, content, order)
        array_bytes += made.nbytes  # by way of the memo, the same bytes could fill many arrays
        if array_bytes > len(data):
            raise UnpicklingError("refused: its arrays are larger than the file")
        return made

    steps: Iterator[Any] = pickletools.genops(data)
    for step, (opcode, argument, position) in enumerate(steps):
        name = opcode.name
        if step >= MAX_STEPS:
            raise UnpicklingError(f"refused: more than {MAX_STEPS} steps")
        if name in _LITERALS:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name == "EMPTY_DICT":
            stack.append({})
        elif name == "EMPTY_LIST":
            stack.append([])
        elif name == "MARK":
            marks.append(len(stack))
        elif name in _TUPLES:
            stack.append(tuple(take(_TUPLES[name])))
        elif name == "TUPLE":
            stack.append(tuple(take_to_mark()))
        elif name in _ITEMS:
            kind, count = _ITEMS[name]
            items = take(count) if count else take_to_mark()
            (target,) = take(1)
            if type(target) is not kind:
                raise UnpicklingError(f"refused: items for a {type(target).__name__}")
            if kind is list:
                target.extend(items)
            else:
                if any(type(key) is not str for key in items[::2]):
                    raise UnpicklingError("refused: a key that is not text")
                target.update(zip(items[::2], items[1::2], strict=True))
            stack.append(target)
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            value = memo[argument]
            if type(value) is _Unfilled:
                value = value.filled()
            stack.append(value)
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            words = [argument] if name == "GLOBAL" else take(2)
            if any(type(word) is not str for word in words):  # and so neither hashed nor formatted
                raise UnpicklingError("refused: it asks for a name that is not text")
            if " ".join(words) not in _NUMPY:
                wanted = ".".join(word[:40] for word in words).replace(" ", ".")
                raise UnpicklingError(f"refused: it asks for {wanted!a:.80}")
            stack.append(_Name(_NUMPY[" ".join(words)]))
        elif name == "REDUCE":
            function, arguments = take(2)
            if type(function) is not _Name or type(arguments) is not tuple:
                raise UnpicklingError("refused: it calls what is no function of NumPy")
            if function == "dtype" and arguments[1:] == (False, True):
                code = arguments[0] if type(arguments[0]) is str else ""
                if code not in DTYPES:
                    raise UnpicklingError("refused: an array that is not of plain numbers")
                stack.append(DTYPES[code])
            elif function == "_reconstruct" and arguments == (_Name("ndarray"), (0,), b"b"):
                stack.append(_Unfilled())
            elif function == "_frombuffer" and len(arguments) == 4:
                content, dtype, shape, order = arguments
                stack.append(array(dtype, shape, content, order))
            elif function == "scalar" and len(arguments) == 2:
                dtype, content = arguments
                stack.append(array(dtype, (), content, "C").item())
            else:
                raise UnpicklingError(f"refused: it calls numpy's {function} in an unknown way")
        elif name == "BUILD":
            target, state = take(2)
            if type(target) is _Unfilled:
                _version, shape, dtype, fortran, content = state
                target.array = array(dtype, shape, content, "F" if fortran is True else "C")
                target = target.array
            elif not isinstance(target, np.dtype):
                raise UnpicklingError(f"refused: it sets the state of a {type(target).__name__}")
            elif (state[0], *state[2:]) != (3, None, None, None, -1, -1, 0) or (
                state[1] not in ("|", "=", _NATIVE)
            ):
                raise UnpicklingError("refused: an array of another machine's byte order, or odder")
            stack.append(target)
        elif name == "STOP":
            if len(stack) != 1 or marks or position + 1 != len(data):
                raise UnpicklingError("damaged: something is left over at its end")
            return stack[0]
        elif name not in ("PROTO", "FRAME"):
            raise UnpicklingError(f"refused: it uses {name}, which no plain value needs")
    raise UnpicklingError("damaged: it has no end")


def _array(dtype: object, shape: object, content: object, order: object) -> np.ndarray:
    """Makes an array of plain numbers from its bytes, after checking that they fit exactly."""
    if not isinstance(dtype, np.dtype) or not isinstance(content, bytes | bytearray):
        raise UnpicklingError("refused: an array that is not of numbers")
    if type(shape) is not tuple or len(shape) > 8 or order not in ("C", "F"):
        raise UnpicklingError("refused: an array without a proper shape")
    if any(type(size) is not int or not 0 <= size < 2**31 for size in shape):
        raise UnpicklingError("refused: an array with an impossible shape")
    if math.prod(shape) * dtype.itemsize != len(content):
        raise UnpicklingError("refused: an array whose shape does not fit its bytes")
    layout: Literal["C", "F"] = "C" if order == "C" else "F"
    array = np.ndarray(shape, dtype, content, order=layout).copy()
    if dtype == np.bool_ and array.view(np.uint8).max(initial=0) > 1:
        raise UnpicklingError("refused: an array of truth values that are neither")
    return array
