"""Times of several functions beside each other."""
import time
from collections.abc import Sequence
from typing import Callable

from tqdm import tqdm

# That count, unless a caller says otherwise, and those before them that do not.
ROUNDS = 60
WARM_UP = 10


def interleaved_milliseconds(functions: Sequence[Callable[[], object]], rounds: int = ROUNDS, passes: int = 1,
                             warm_up: int = WARM_UP, clock: Callable[[], float] = time.perf_counter
                             ) -> list[list[float]]:
    """The times of calls, in turns, so that whatever else the machine does slows all functions.

    Parameters
    ----------
    functions : sequence of callable
        Without arguments; each has done its work when it returns.
    rounds : int
        In each of which every function has its turn.
    passes : int
        Calls in a turn: with more than one, most find in the processor's cache what the call before them left there.
    warm_up : int
        Rounds before these.
    clock : callable
        To seconds; ``time.thread_time`` leaves out what other processes take from this thread.

    Returns
    -------
    list of list of float
        Milliseconds of a call, the mean of each round, by function.
    """
    times: list[list[float]] = [[] for _ in functions]
    for _ in tqdm(range(warm_up + rounds), 'latency', leave=False, disable=None):
        for function, taken in zip(functions, times):
            begin = clock()
            for _ in range(passes):
                function()
            taken.append(1000 * (clock() - begin) / passes)
    return [taken[warm_up:] for taken in times]
