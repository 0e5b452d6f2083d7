"""Makes MXNet 1.9.1 importable with current versions of NumPy and Python, and sets its number of threads.

MXNet 1.9.1 was released against NumPy 1.19 and reads aliases that NumPy has since removed
(``np.bool`` and its siblings). They are restored before MXNet is imported; this module is
imported by ``gluon_lprnet/__init__.py`` before anything else in the package.
"""
import importlib
import os
import sys
import warnings
from types import ModuleType

import numpy as np

# In the environment of processes that the package starts for work on files. MXNet takes 260 MB and 1.6 s in each, and
# most of that work does without it: what needs it there imports it by `import_mxnet`.
WITHOUT_MXNET = 'GLUON_LPRNET_WITHOUT_MXNET'

_REMOVED_ALIASES = {'bool': bool, 'int': int, 'float': float, 'object': object}


def default_threads(processes: int = 1) -> int:
    """OpenMP threads for each of several processes that train at the same time.

    They share all cores but one, which is left for decoding images: OpenMP's threads spin while they wait for each
    other, and training becomes several times slower as soon as one of them has to share its core.
    """
    return max(1, (len(os.sched_getaffinity(0)) - 1) // processes)


def import_mxnet() -> ModuleType:
    """Import MXNet and return its module.

    Unless the environment has ``OMP_NUM_THREADS``, it is set to :func:`default_threads` first. MXNet that was imported
    before keeps its threads.

    Raises
    ------
    ImportError
        If MXNet cannot work, with one sentence that says what to do: NumPy 2, MXNet not
        installed, or a missing system library that MXNet is linked with.
    """
    if int(np.__version__.split('.')[0]) >= 2:
        raise ImportError(f'MXNet 1.9.1 cannot work with NumPy {np.__version__}: '
                          'install "numpy<2" (pip install "numpy==1.26.4").')
    for alias, builtin in _REMOVED_ALIASES.items():
        # In vars() and not hasattr(): asking NumPy for a removed alias raises or warns.
        if alias not in vars(np):
            setattr(np, alias, builtin)
    if 'mxnet' not in sys.modules:
        # OpenMP reads this once, when MXNet is loaded, so it is decided here for every script and command.
        os.environ.setdefault('OMP_NUM_THREADS', str(default_threads()))
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        try:
            return importlib.import_module('mxnet')
        except ModuleNotFoundError as error:
            if error.name != 'mxnet':
                raise
            raise ImportError('MXNet is not installed: pip install "mxnet==1.9.1".') from error
        except OSError as error:
            raise ImportError(f'MXNet cannot load a system library it needs ({error}): install it '
                              '(on Debian: apt-get install libgomp1 libquadmath0).') from error
