"""How a process reacts to signals: SIGTERM and SIGHUP end it as Ctrl-C does, after it has cleaned up."""
import contextlib
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from typing import Any, Callable


@contextlib.contextmanager
def exit_on_sigterm() -> Iterator[None]:
    """Make SIGTERM and SIGHUP raise SystemExit (128 + signal), so that what is done is kept and the rest removed.

    A SIGHUP that is ignored, as under ``nohup``, stays so.
    """
    with _handled((signal.SIGTERM, signal.SIGHUP), lambda number, _: sys.exit(128 + number)):
        yield


@contextlib.contextmanager
def noted() -> Iterator[list[int]]:
    """Collect the first signal, Ctrl-C too, in the list that it yields, for a job that ends where it chooses.

    A second one acts at once, as it would have without this.
    """
    received: list[int] = []
    with contextlib.ExitStack() as handlers:
        def note(number: int, _: Any) -> None:
            received.append(number)
            handlers.close()
        handlers.enter_context(_handled((signal.SIGINT, signal.SIGTERM, signal.SIGHUP), note))
        yield received


@contextlib.contextmanager
def _handled(numbers: Iterable[int], handler: Callable[[int, Any], object]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set a handler
        return
    before = {number: signal.signal(number, handler) for number in numbers
              if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)
