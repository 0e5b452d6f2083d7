import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def run(code, stand_ins=None, flags=('-W', 'error'), threads='1'):
    """Run code in a fresh Python, where the packages in folder ``stand_ins`` come before the real ones."""
    path = os.pathsep.join(str(folder) for folder in (stand_ins, ROOT) if folder)
    environment = {name: value for name, value in os.environ.items() if name != 'OMP_NUM_THREADS'}
    return subprocess.run([sys.executable, *flags, '-c', code], capture_output=True, text=True, cwd='/',
                          env=dict(environment, PYTHONPATH=path, **({'OMP_NUM_THREADS': threads} if threads else {})))


def test_importing_the_package_first_is_enough_and_silent():
    result = run('import gluon_lprnet, mxnet; print(mxnet.nd.ones((2,)).sum().asscalar())')
    assert (result.returncode, result.stdout, result.stderr) == (0, '2.0\n', '')


def test_public_names():
    result = run('import gluon_lprnet, sys; light = "gluon_lprnet.train" not in sys.modules; '
                 'print(light, *(getattr(gluon_lprnet, name).__name__ for name in gluon_lprnet.__all__[:-1]))')
    assert result.stdout == 'True LPR get_model list_models load FaceAligner compress deploy\n'


@pytest.mark.parametrize('package, content, said', [
    ('numpy', '__version__ = "2.1.0"', 'numpy==1.26.4'),
    ('mxnet', 'raise OSError("libgomp.so.1: cannot open shared object file")', 'apt-get install libgomp1'),
    ('mxnet', 'raise ModuleNotFoundError("No module named \'mxnet\'", name="mxnet")', 'pip install "mxnet==1.9.1"'),
])
def test_where_mxnet_cannot_work_one_sentence_says_what_to_do(tmp_path, package, content, said):
    (tmp_path / package).mkdir()
    (tmp_path / package / '__init__.py').write_text(content)
    result = run('import gluon_lprnet', tmp_path, flags=())
    last = result.stderr.strip().splitlines()[-1]
    assert result.returncode == 1 and last.startswith('ImportError: ') and said in last


@pytest.mark.parametrize('threads, cores, script, expected', [
    (None, 4, None, '3'), (None, 1, None, '1'), ('2', 4, None, '2'), (None, 4, 'train_imagenet.py', '3'),
    (None, 4, 'train_face.py', '3')])
def test_openmp_has_all_cores_but_one_unless_told_otherwise(threads, cores, script, expected):
    start = f'import runpy; runpy.run_path({str(ROOT / script)!r})' if script else 'import gluon_lprnet'
    result = run(f'import os; os.sched_getaffinity = lambda _: set(range({cores})); {start}; import ctypes; '
                 'print(os.environ["OMP_NUM_THREADS"], ctypes.CDLL("libgomp.so.1").omp_get_max_threads())',
                 flags=(), threads=threads)
    assert result.stdout.split() == [expected, expected], result.stderr


def test_mxnet_that_is_loaded_already_keeps_its_threads():
    result = run('import os, warnings; warnings.simplefilter("ignore"); import numpy as np\n'
                 'for name in ("bool", "int", "float", "object"): vars(np).setdefault(name, __builtins__.object)\n'
                 'import mxnet, gluon_lprnet; print("OMP_NUM_THREADS" in os.environ)', flags=(), threads=None)
    assert result.stdout == 'False\n', result.stderr
