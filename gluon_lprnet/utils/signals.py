"""How a process reacts to signals."""
import contextlib
import signal
import sys
import threading


@contextlib.contextmanager
def exit_on_sigterm():
    """Make SIGTERM raise SystemExit, so that incomplete output is removed."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set a handler
        return
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
