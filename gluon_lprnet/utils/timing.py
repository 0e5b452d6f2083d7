"""Times of several functions beside each other."""
import time

from tqdm import tqdm

# Passes that count, unless a caller says otherwise, and those before them that do not.
PASSES = 60
WARM_UP = 10


def interleaved_milliseconds(functions, passes=PASSES):
    """The times of calls, in turns, so that whatever else the machine does slows all functions.

    Parameters
    ----------
    functions : sequence of callable
        Without arguments; each has done its work when it returns.
    passes : int
        Calls of each, beside some that warm up.

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
