"""Writing files so that a reader never sees a partly written one."""

import contextlib
import os
from pathlib import Path

PathLike = str | os.PathLike[str]


def expand_user(path: PathLike) -> Path:
    """Replaces a leading `~` or `~user`, and leaves the path as it is if there is no such user."""
    return Path(os.path.expanduser(path))  # Path.expanduser raises an error for an unknown user


def write_atomically(path: PathLike, data: bytes) -> None:
    """Writes a file under a temporary name in the same folder, and then renames it.

    Args:
      path: The file to write or replace. Its folder is created if it does not exist.
      data: The complete contents.

    Raises:
      OSError: The file could not be written. The message is one line, and an earlier version of
        the file is unchanged.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with contextlib.suppress(FileExistsError):  # if it is a file, open reports that better
            path.parent.mkdir(parents=True)
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        message = f"{str(path)!r}: cannot be written: {error.strerror}; nothing was changed"
        raise OSError(message) from error
    finally:
        with contextlib.suppress(OSError):  # after the renaming, there is none
            temporary.unlink()
