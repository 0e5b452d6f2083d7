"""The operator library against the standard deployed form and against float64 NumPy."""
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import mxnet as mx
import numpy as np
import pytest
from mxnet import autograd
from mxnet.gluon import nn
from reference.networks import X, lpr_network, operators, random_images, random_network, reference, relative_error

from gluon_lprnet import blocks
from gluon_lprnet.deployment.operators import build_library, load_library, with_operators
from gluon_lprnet.deployment.reparametrize import deploy, reparametrize
from gluon_lprnet.graph import trace
from gluon_lprnet.utils.errors import InputError

pytestmark = pytest.mark.skipif(shutil.which('g++') is None, reason='no g++')

ENVIRONMENT = dict(os.environ, PYTHONPATH=str(Path(__file__).resolve().parents[2]))

# Network, keywords, and what of the library is in it.
NETWORKS = {
    'LPRNet-MobileNet': ('lprnet_mobilenet_x0.25', {}, {'convolution': 1, 'separable': 13, 'pool': 1}),
    'channels beside blocks': ('lprnet_mobilenet_x0.6', {'rank': 1 / 12},
                               {'convolution': 1, 'separable': 13, 'pool': 1}),
    'small images': ('lprnet_mobilenet_x0.25', {'small_image': True},
                     {'convolution': 1, 'separable': 13, 'pool': 1}),
    'MobileNetV1': ('mobilenetv1_x0.25', {}, {'convolution': 1, 'separable': 13, 'pool': 1}),
    'LPRNet-ShuffleNetV2': ('lprnet_shufflenetv2_x0.5', {}, {'block': 3, 'separable': 13, 'unblock': 3}),
    'no residual': ('lprnet_mobilenet_x0.25', {'residual': False},
                    {'convolution': 1, 'block': 3, 'separable': 5, 'unblock': 4}),
    'MobileNetV2': ('mobilenetv2_x0.5', {}, {}),
}


@pytest.mark.parametrize('case', NETWORKS)
def test_network_is_the_same_function(case):
    name, keywords, expected_operators = NETWORKS[case]
    net = random_network(name, **keywords)
    deployed = deploy(net, operators=True)
    found = operators(trace(deployed)[0])
    assert {name[7:]: count for name, count in found.items() if name.startswith('lprnet_')} == expected_operators
    for images in (random_images(3, 64), random_images(1, 33)):
        assert relative_error(deployed(images).asnumpy(), net(images).asnumpy()) <= 1e-5


def test_height_and_width_of_any_size():
    net = random_network('lprnet_mobilenet_x0.25')
    deployed = deploy(net, operators=True)
    for shape in ((1, 3, 40, 97), (2, 3, 97, 40), (1, 3, 1, 1), (1, 3, 2, 130)):
        x = mx.nd.array(np.random.default_rng(4).normal(0, 1, shape))
        assert relative_error(deployed(x).asnumpy(), net(x).asnumpy()) <= 1e-5


@pytest.mark.parametrize('scale', [1e-18, 1e-9, 1e-6, 1e-5, 1e-3, 1.0, 1e6, 1e16])
def test_module_of_small_and_large_norm(scale):
    net = lpr_network(scale)
    expected = reference(net, X.astype('float64'))
    net.cast('float32')
    assert relative_error(deploy(net, operators=True)(mx.nd.array(X)).asnumpy(), expected) <= 1e-5


@pytest.mark.parametrize('channels, rank', [(16, 16), (40, 5), (72, 36), (200, 33)])
def test_module_of_other_widths_and_ranks(channels, rank):
    net = nn.HybridSequential()
    net.add(blocks.LPR(channels, rank))
    net.initialize(mx.init.Normal(0.3))
    x = mx.nd.random.normal(shape=(2, channels, 9, 14))
    deployed = deploy(net, operators=True)
    assert operators(trace(deployed)[0]) == {'lprnet_block': 1, 'lprnet_separable': 1, 'lprnet_unblock': 1}
    assert relative_error(deployed(x).asnumpy(), net(x).asnumpy()) <= 1e-5


def test_nan_is_not_hidden():
    deployed = deploy(random_network('lprnet_mobilenet_x0.25'), operators=True)
    x = random_images(1, 32)
    x[0, 0, 0, 0] = np.nan
    assert np.isnan(deployed(x).asnumpy()).any()


def test_other_types_are_refused():
    load_library()
    with pytest.raises(mx.MXNetError, match='float32'):
        mx.nd.lprnet_block(mx.nd.zeros((1, 16, 4, 4), dtype='float64')).wait_to_read()


def test_no_gradient():
    deployed = deploy(random_network('lprnet_mobilenet_x0.25'), operators=True)
    x = random_images(1, 32)
    x.attach_grad()
    with pytest.raises(mx.MXNetError):  # noqa: PT012  MXNet runs later than it is called
        with autograd.record():
            y = deployed(x)
        y.backward()
        mx.nd.waitall()


def test_functions_of_other_libraries_are_not_taken_for_its_own(tmp_path):
    """A library with functions of the same names was loaded before, for all to see, as Horovod's is."""
    symbols = subprocess.run(['nm', '-D', '--defined-only', str(build_library())], check=True, capture_output=True,
                             text=True).stdout
    names = set(re.findall(r' W (_ZN5mxnet\w+)', symbols))
    assert any('CustomOp' in name for name in names)
    (tmp_path / 'other.c').write_text(
        'void abort(void);\n' + ''.join(f'void {name}(void) {{ abort(); }}\n' for name in sorted(names)))
    subprocess.run(['g++', '-x', 'c', '-shared', '-fPIC', str(tmp_path / 'other.c'), '-o', str(tmp_path / 'other.so')],
                   check=True)
    program = ('import ctypes, sys; import gluon_lprnet; from gluon_lprnet.deployment.operators import load_library\n'
               'ctypes.CDLL(sys.argv[1], ctypes.RTLD_GLOBAL)\n'
               'load_library()')
    subprocess.run([sys.executable, '-c', program, str(tmp_path / 'other.so')], check=True, env=ENVIRONMENT)


@pytest.mark.parametrize('threads', ['1', '3'])
def test_files_need_the_library_alone(threads, tmp_path):
    """Saved, and loaded by MXNet in another process with another number of threads."""
    net = random_network('lprnet_mobilenet_x0.25')
    symbol, params = with_operators(*reparametrize(*trace(net)))
    images = random_images(2, 64)
    symbol.save(str(tmp_path / 'net-symbol.json'))
    mx.nd.save(str(tmp_path / 'net-0000.params'), {f'arg:{name}': value for name, value in params.items()})
    np.save(tmp_path / 'images.npy', images.asnumpy())
    program = (
        'import sys; from gluon_lprnet._compat import import_mxnet; mx = import_mxnet(); import numpy as np\n'
        'mx.library.load(sys.argv[1], verbose=False)\n'
        "net = mx.gluon.SymbolBlock.imports('net-symbol.json', ['data'], 'net-0000.params')\n"
        "np.save('outputs.npy', net(mx.nd.array(np.load('images.npy'))).asnumpy())\n"
        "assert 'gluon_lprnet.deployment' not in sys.modules")
    subprocess.run([sys.executable, '-c', program, str(build_library())], cwd=tmp_path, check=True,
                   env=dict(ENVIRONMENT, OMP_NUM_THREADS=threads))
    assert relative_error(np.load(tmp_path / 'outputs.npy'), net(images).asnumpy()) <= 1e-5


def test_built_once(tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    library = build_library()
    written = library.stat().st_mtime_ns
    assert build_library() == library and library.stat().st_mtime_ns == written
    assert [path.name for path in library.parent.iterdir()] == [library.name]


def test_no_compiler(tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    monkeypatch.setenv('CXX', str(tmp_path / 'missing-g++'))
    with pytest.raises(InputError, match='missing-g.*standard form needs neither'):
        build_library()


def test_compiler_that_fails(tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    monkeypatch.setenv('CXX', 'g++ -DBLOCK=')
    with pytest.raises(InputError, match='cannot compile'):
        build_library()
    assert not list((tmp_path / 'gluon_lprnet').iterdir())


def test_cache_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / 'file').touch()
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'file'))
    with pytest.raises(InputError, match='file'):
        build_library()
