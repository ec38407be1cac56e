"""Requests to stop: Ctrl-C and SIGTERM."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator

_ANSWER = b"\nstopping once the steps under way are done; press Ctrl-C again to leave at once\n"


class StoppedError(Exception):
    """A signal stopped training, and a checkpoint was saved; the same call resumes from it."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message, number)  # both, so that it can be pickled
        self.signal = number

    def __str__(self) -> str:
        return str(self.args[0])


@contextlib.contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM in a list; a SIGINT after either of them leaves at once.

    In a script it ends the process; in a notebook, whose process has to live on, it raises
    KeyboardInterrupt. A SIGINT that is ignored stays ignored, as under `nohup`. Only the main
    thread of a process can collect signals; in another one the list stays empty.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    is_script = hasattr(sys.modules["__main__"], "__file__")

    def receive(number: int, frame: object) -> None:
        if received and number == signal.SIGINT and not is_script:
            raise KeyboardInterrupt
        received.append(number)

    # A Python handler has to wait until a call into compiled code ends, which may be a
    # compilation; a thread can read what the system writes into a pipe at once.
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    threading.Thread(target=_answer, args=(reader, is_script), daemon=True).start()
    numbers = [signal.SIGTERM]
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        numbers.append(signal.SIGINT)
    handlers = {number: signal.signal(number, receive) for number in numbers}
    wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    try:
        yield received
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        os.close(writer)


def _answer(reader: int, may_leave: bool) -> None:
    """Answers the first Ctrl-C, and may leave at the second; ends when the pipe is closed."""
    asked = False
    while number := os.read(reader, 1):
        if number[0] == signal.SIGINT:
            if asked and may_leave:
                os._exit(128 + signal.SIGINT)
            if not asked:
                os.write(2, _ANSWER)
        asked = asked or number[0] in (signal.SIGINT, signal.SIGTERM)
    os.close(reader)
