"""Being asked to stop, by Ctrl-C or by whoever runs the machine."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any


class StoppedError(Exception):
    """Training was asked to stop, and saved a checkpoint; the same call goes on from there."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message, number)  # both, so that it can be pickled
        self.signal = number

    def __str__(self) -> str:
        return str(self.args[0])


@contextlib.contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM in a list while it lasts; a second SIGINT ends the process.

    Only a process's main thread can do this: in another the list stays empty.
    """
    received: list[int] = []

    def receive(number: int, frame: Any) -> None:
        if received and number == signal.SIGINT:
            os._exit(128 + number)
        received.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    before = {n: signal.signal(n, receive) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
