"""A library for MXNet that runs a deployed network as one operator: the backend ``LPRNet`` of ``optimize_for``.

MXNet runs an LPR module as five operators, each of which reads and writes its feature map, and oneDNN and
L2Normalization want it in different layouts; at small widths the calls of the operators take longer than their
arithmetic. ``operators.cc`` says what the backend does instead. MXNet loads the library through its extension
interface, ``mx.library.load``. After that

- ``block.optimize_for(x, backend='LPRNet', static_alloc=True, static_shape=True)`` turns any exported deployed network
  into one operator, or its largest parts into one operator each where there are layers that the library does not know;
- ``symbol.optimize_for('LPRNet', args=ARRAYS)`` does so with a symbol, whose parameters stay as they are. Without the
  arrays, by name, MXNet knows no shapes and fails where a part has two outputs.

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
        a digest of source, compiler, flags and processor, so a change of any of these gives another file.

    Raises
    ------
    InputError
        If there is no compiler, if it fails, or if the folder cannot be written to.
    """
    program, *flags = shlex.split(os.environ.get('CXX', 'g++'))
    compiler = [program, *FLAGS, *flags]
    mxnet = Path(mx.__file__).parent
    interface = mxnet / 'src' / 'lib_api.cc'
    try:
        # What -march=native resolves to identifies the processor.
        target = subprocess.run([*compiler, '-Q', '--help=target'], stdout=subprocess.PIPE,
                                stderr=subprocess.STDOUT, check=True).stdout
        version = subprocess.run([*compiler, '--version'], stdout=subprocess.PIPE, check=True).stdout
        made_of = [target, version, shlex.join(compiler).encode(),
                   *(path.read_bytes() for path in (*SOURCES, interface))]
        digest = hashlib.sha256(b''.join(made_of)).hexdigest()[:16]
        folder = Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'gluon_lprnet'
        library = folder / f'operators-{digest}.so'
        if not library.exists():
            with whole(library) as built:
                subprocess.run([*compiler, f'-I{mxnet / "include"}', str(SOURCES[0]), str(interface), '-o', str(built)],
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=True)
    except subprocess.CalledProcessError as error:
        raise InputError(f'{shlex.join(compiler)} cannot compile the operator library:\n'
                         f'{(error.stdout or b"").decode(errors="replace")[-2000:]}') from error
    except OSError as error:
        raise InputError(f'the operator library cannot be built ({error.filename}: {error.strerror}). It needs g++ (or '
                         'the compiler in CXX) and a cache folder; the standard form needs neither.') from error
    return library


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
