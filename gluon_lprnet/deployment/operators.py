"""A library for MXNet that runs a deployed network as one operator: the backend ``LPRNet`` of ``optimize_for``.

MXNet runs an LPR module as five operators, each of which reads and writes its feature map, and oneDNN and
L2Normalization want it in different layouts; at small widths the calls of the operators take longer than their
arithmetic. ``operators.cc`` says what the backend does instead. MXNet loads the library through its extension
interface, ``mx.library.load``. After that

- ``block.optimize_for(x, backend='LPRNet', static_alloc=True, static_shape=True)`` turns any exported deployed network
  into one operator, or its largest parts into one operator each where there are layers that the library does not know;
- ``symbol.optimize_for('LPRNet', args=ARRAYS)`` does so with a symbol, whose parameters stay as they are. Without the
  arrays, by name and with ``data`` among them, MXNet knows no shapes and fails where a part has two outputs.

Call ``mx.nd.waitall()`` before ``optimize_for``, so that all arrays are computed. While MXNet computes one,
``optimize_for`` may allocate its memory a second time, and the values are lost.

Without ``static_alloc`` MXNet makes the operator again for each pass, out of the graph as JSON, and sends it there:
this takes milliseconds, and the interface has no way around it.

The library is compiled once on the machine it runs on, for its processor, by g++ (or the compiler in ``CXX``, whose
flags come last: ``CXX='g++ -march=x86-64'`` compiles for any x86-64).
"""
import hashlib
import os
import shlex
import subprocess
from pathlib import Path

import mxnet as mx

from ..utils.errors import InputError
from ..utils.files import whole

__all__ = ['BACKEND', 'build_library', 'load_library']

# The name of the library for ``optimize_for``.
BACKEND = 'LPRNet'

SOURCES = [Path(__file__).with_name(name) for name in ('operators.cc', 'kernels.h')]
# -Bsymbolic: the library calls its own functions. Horovod's, which is loaded for all to see, has some of the same names
# with other classes behind them. --exclude-libs: nor does it share the standard library's objects with others where a
# compiler links that one in, and half of its functions would find them elsewhere.
FLAGS = ['-std=c++17', '-O3', '-march=native', '-fopenmp', '-shared', '-fPIC', '-Wl,-Bsymbolic',
         '-Wl,--exclude-libs,ALL']


def build_library() -> Path:
    """Compile the operator library unless it has been compiled before.

    Returns
    -------
    Path
        The shared object, in ``gluon_lprnet`` below ``XDG_CACHE_HOME`` (by default ``~/.cache``). Its name contains
        digests of source and processor and of compiler and flags, so a change of any of these gives another file.
        Without a compiler, the last one that was built of the source on such a processor.

    Raises
    ------
    InputError
        If there is no compiler and no library built before, if the compiler fails, or if the folder cannot be written
        to.
    """
    program, *flags = shlex.split(os.environ.get('CXX', 'g++'))
    compiler = [program, *FLAGS, *flags]
    mxnet = Path(mx.__file__).parent
    interface = mxnet / 'src' / 'lib_api.cc'
    try:
        folder = Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'gluon_lprnet'
    except RuntimeError as error:
        raise InputError('the operator library has no place to be built in: this user has no home folder. Set '
                         'XDG_CACHE_HOME to a folder.') from error
    sources = [path.read_bytes() for path in (*SOURCES, interface)]
    name = f'operators-{_digest(_processor(), *sources)}'
    try:
        # What -march=native resolves to identifies the processor.
        target = subprocess.run([*compiler, '-Q', '--help=target'], stdout=subprocess.PIPE,
                                stderr=subprocess.STDOUT, check=True).stdout
        version = subprocess.run([*compiler, '--version'], stdout=subprocess.PIPE, check=True).stdout
        library = folder / f'{name}-{_digest(target, version, shlex.join(compiler).encode())}.so'
        if not library.exists():
            with whole(library) as built:
                subprocess.run([*compiler, f'-I{mxnet / "include"}', str(SOURCES[0]), str(interface), '-o', str(built)],
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=True)
    except subprocess.CalledProcessError as error:
        raise InputError(f'{shlex.join(compiler)} cannot compile the operator library:\n'
                         f'{(error.stdout or b"").decode(errors="replace")[-2000:]}') from error
    except OSError as error:
        # Where it was built, the compiler may be gone, as in an image that is made in stages.
        built_before = sorted(folder.glob(f'{name}-*.so'), key=os.path.getmtime)
        if built_before:
            return built_before[-1]
        raise InputError(f'the operator library cannot be built ({error.filename}: {error.strerror}). It needs g++ (or '
                         'the compiler in CXX) and a cache folder; the standard form needs neither.') from error
    return library


def _digest(*parts):
    return hashlib.sha256(b'\0'.join(parts)).hexdigest()[:16]


def _processor():
    """What tells processors apart that a library runs on, without a compiler's help."""
    try:
        lines = Path('/proc/cpuinfo').read_bytes().splitlines()
    except OSError:
        return b''
    return b''.join(sorted({line for line in lines if line.startswith((b'model name', b'flags', b'Features'))}))


def load_library() -> None:
    """Load the library into MXNet, compiling it if necessary: before ``optimize_for``, or before a symbol that was
    saved after it is loaded.

    Raises
    ------
    InputError
        As of :func:`build_library`.
    """
    if not hasattr(mx.sym, 'lprnet_network'):
        mx.library.load(str(build_library()), verbose=False)
