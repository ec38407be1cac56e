"""Writing files so that no reader ever sees half of one."""

import contextlib
import os
from pathlib import Path

PathLike = str | os.PathLike[str]


def write_atomically(path: PathLike, data: bytes) -> None:
    """Writes a file by way of a temporary name in its folder, so that no reader sees half of it.

    Args:
        path: the file; its folder is made if there is none.
        data: the whole contents.

    Raises:
        OSError: it could not be written, in one line; an earlier file is as it was.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with contextlib.suppress(FileExistsError):  # if it is a file, opening says so better
            path.parent.mkdir(parents=True)
        try:
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        message = f"{str(path)!r}: cannot be written: {error.strerror}; nothing was changed"
        raise OSError(message) from error
