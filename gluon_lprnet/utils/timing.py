"""Interleaved timing of several functions."""
import time

from tqdm import tqdm

# Default number of timed passes, and of the warm-up passes before them.
PASSES = 60
WARM_UP = 10


def interleaved_milliseconds(functions, passes=PASSES):
    """Time functions in turns, so that other load on the machine affects all of them equally.

    Parameters
    ----------
    functions : sequence of callable
        Without arguments; each must have finished its work when it returns.
    passes : int
        Timed calls of each function, after some warm-up calls.

    Returns
    -------
    list of list of float
        Milliseconds of each function's calls.
    """
    times = [[] for _ in functions]
    for _ in tqdm(range(WARM_UP + passes), 'latency', leave=False, disable=None):
        for function, taken in zip(functions, times):
            begin = time.perf_counter()
            function()
            taken.append(1000 * (time.perf_counter() - begin))
    return [taken[WARM_UP:] for taken in times]
