"""Pickles of plain Python values and NumPy arrays that are safe to read from strangers.

`pickle.load` runs whatever a file asks for, as its documentation warns. The pickles written here
ask for nothing: they hold dicts, lists, numbers, strings, bytes, booleans and None. An array is a
dict of its type, its shape and its bytes. `loads` looks at all opcodes of a file first, and refuses
it if one of them does more than make such a value.
"""

import io
import math
import pickle
import pickletools
from typing import Any, NoReturn

import numpy as np

# None of these opcodes of protocol 3 names, calls or repeats anything. So every value takes up
# its own bytes, and the size of a file bounds the memory that reading it takes.
_PROTOCOL = 3
_OPCODES = {
    *("PROTO", "MARK", "STOP", "NONE", "NEWTRUE", "NEWFALSE"),
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
    *("BINUNICODE", "SHORT_BINBYTES", "BINBYTES"),
    *("EMPTY_LIST", "APPEND", "APPENDS", "EMPTY_DICT", "SETITEM", "SETITEMS"),
}
_MAX_OPCODES = 10_000  # the record of a run takes about 250
_MAX_DEPTH = 16
_DTYPES = ("<f8", "<f4", "<i4", "|u1")


class NotPlainError(ValueError):
    """Something other than plain values and numeric arrays; the message is one line."""


def dumps(value: object) -> bytes:
    """Pickles a value; `pickle.loads` reads the result too, with arrays as dictionaries.

    Args:
      value: Nested dicts and lists of bool, int, float, str, None, and arrays of float64, float32,
        int32 or uint8. NumPy scalars become Python scalars.

    Raises:
      NotPlainError: The value holds anything else, or is too deep. `loads` checks other limits.
    """
    file = io.BytesIO()
    pickler = pickle.Pickler(file, _PROTOCOL)
    pickler.fast = True  # write a repeated value again rather than a reference to the first
    pickler.dump(_without_arrays(value))
    return file.getvalue()


def loads(data: bytes) -> Any:
    """Reads what `dumps` wrote. Memory stays below a few times the size of the data.

    Returns:
      The value. Its arrays are C-contiguous, writable and in native byte order.

    Raises:
      NotPlainError: The data is damaged, asks for anything but such a value, or exceeds a limit.
    """
    try:
        for count, (opcode, _, position) in enumerate(pickletools.genops(data), start=1):
            if opcode.name not in _OPCODES:
                raise NotPlainError(f"it uses {opcode.name}, which no plain value needs")
            if count > _MAX_OPCODES:
                raise NotPlainError(f"it takes more than {_MAX_OPCODES} steps")
            if opcode.name == "STOP" and position != len(data) - 1:
                raise NotPlainError("something follows its end")
        return _with_arrays(_Unpickler(io.BytesIO(data)).load())
    except NotPlainError:
        raise
    except Exception as error:  # damaged data can raise anything
        raise NotPlainError(f"it is damaged ({type(error).__name__})") from error


def is_label(text: object) -> bool:
    """Whether a value is a string of 1 to 64 printable characters, as names and keys are."""
    return type(text) is str and text.isprintable() and 0 < len(text) <= 64


class _Unpickler(pickle.Unpickler):
    """A second safeguard: even if a name got past the opcodes, it would not be looked up."""

    def find_class(self, module: str, name: str) -> NoReturn:
        raise NotPlainError("it asks for a name")


def _without_arrays(value: object, where: str = "record", depth: int = 0) -> object:
    """Copies a value with arrays as dictionaries. Subclasses are refused: they may do anything."""
    if depth > _MAX_DEPTH:
        raise NotPlainError(f"{where:.60} is more than {_MAX_DEPTH} levels deep")
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or type(value) in (bool, int, float, str):
        return value
    if type(value) is dict:
        if not all(map(is_label, value)):
            raise NotPlainError(f"{where:.60} has a key that is not 1 to 64 printable characters")
        return {k: _without_arrays(v, f"{where}[{k!r:.40}]", depth + 1) for k, v in value.items()}
    if type(value) is list:
        return [_without_arrays(item, f"{where}[]", depth + 1) for item in value]
    kind = type(value).__name__
    if type(value) is np.ndarray:
        dtype = value.dtype.newbyteorder("<")
        if dtype.str in _DTYPES:
            data = value.astype(dtype).tobytes()
            return {"dtype": dtype.str, "shape": list(value.shape), "data": data}
        kind = f"array of {value.dtype}"
    raise NotPlainError(f"{where:.60} is {kind:.60}: give plain Python values and numeric arrays")


def _with_arrays(value: object, depth: int = 0) -> Any:
    """Checks a value that was read, and copies it with dictionaries turned back into arrays."""
    if depth > _MAX_DEPTH:
        raise NotPlainError(f"it is more than {_MAX_DEPTH} levels deep")
    if type(value) is list:
        return [_with_arrays(item, depth + 1) for item in value]
    if type(value) is dict:
        if not all(map(is_label, value)):
            raise NotPlainError("it has a key that is not 1 to 64 printable characters")
        if value.keys() == {"dtype", "shape", "data"}:
            return _array(**value)
        return {key: _with_arrays(item, depth + 1) for key, item in value.items()}
    if type(value) is bytes:
        raise NotPlainError("it has bytes that belong to no array")
    return value


def _array(dtype: object, shape: object, data: object) -> np.ndarray:
    if type(dtype) is not str or dtype not in _DTYPES:
        raise NotPlainError(f"the dtype of an array is none of {', '.join(_DTYPES)}")
    if type(shape) is not list or len(shape) > 3 or {*map(type, shape)} - {int}:
        raise NotPlainError("the shape of an array is not a list of at most 3 integers")
    kind, possible = np.dtype(dtype), all(0 <= size < 2**31 for size in shape)
    if type(data) is not bytes or not possible or math.prod(shape) * kind.itemsize != len(data):
        raise NotPlainError("the shape of an array does not fit its bytes")
    return np.ndarray(shape, kind, data).astype(kind.newbyteorder("="))
