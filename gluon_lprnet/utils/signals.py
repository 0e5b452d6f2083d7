"""How a process reacts to signals: SIGTERM and SIGHUP end it as Ctrl-C does, after it has cleaned up."""
import contextlib
import signal
import sys
import threading


@contextlib.contextmanager
def exit_on_sigterm():
    """Make SIGTERM and SIGHUP raise SystemExit (128 + signal), so that what is done is kept and the rest removed.

    A SIGHUP that is ignored, as under ``nohup``, stays so.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set a handler
        return
    numbers = [number for number in (signal.SIGTERM, signal.SIGHUP)
               if number == signal.SIGTERM or signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, lambda number, frame: sys.exit(128 + number)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
