import functools
import json
import os
import subprocess
import sys
from pathlib import Path

# Networks of the tests are too small for more, and sums are then the same everywhere.
os.environ.setdefault('OMP_NUM_THREADS', '1')

import cv2
import numpy as np
import pytest

import gluon_lprnet  # noqa: F401  before MXNet, for NumPy's sake
import mxnet as mx
from gluon_lprnet.data.batches import Batch, ImageBatches
from gluon_lprnet.data.recordio import write_records

# Real data, beside the checkout unless this names another folder.
SHARED_DATA = Path(os.environ.get('GLUON_LPRNET_TEST_DATA', Path(__file__).resolve().parents[2] / 'shared' / 'data'))


def pytest_runtest_setup(item):
    """Random weights are not to depend on the tests before, which the workers share out differently every time."""
    mx.random.seed(0)
    np.random.seed(0)


@pytest.fixture(scope='session')
def shared_data():
    """Folder of real data."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f'no real data at {SHARED_DATA}')
    return SHARED_DATA


@pytest.fixture(scope='session', autouse=True)
def batches_end_with_the_next():
    """Every batch becomes NaN as soon as the next one is asked for, so that no code can use it by mistake.

    MXNet does so too, but later, as its threads find time: it writes another batch into the same memory.
    """
    epoch = ImageBatches.epoch

    @functools.wraps(epoch)
    def epoch_of_copies(*args, **kwargs):
        for batch in epoch(*args, **kwargs):
            batch = Batch(*(array.copy() for array in batch))
            yield batch
            for array in batch:
                array[:] = np.nan
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ImageBatches, 'epoch', epoch_of_copies)
        yield


def encode(pixels):
    """RGB pixels as a PNG, so that reading gives the very pixels back."""
    return cv2.imencode('.png', np.ascontiguousarray(pixels[..., ::-1]))[1].tobytes()


@pytest.fixture(scope='session')
def tiny_records(tmp_path_factory):
    """50 images of 16x16 in three classes that differ in color: prefix, and the images and labels."""
    rng = np.random.default_rng(7)
    labels = np.arange(50) % 3
    images = rng.integers(0, 120, (50, 16, 16, 3), dtype=np.uint8)
    images[np.arange(50), :, :, labels] += 100
    prefix = tmp_path_factory.mktemp('tiny') / 'tiny'
    write_records(prefix, [(int(label), encode(image)) for label, image in zip(labels, images)],
                  classes=['red', 'green', 'blue'])
    return prefix, images, labels


@pytest.fixture
def training_flags(tiny_records, tmp_path):
    """Flags of a training of seconds; the run's folder is ``tmp_path / 'run'``."""
    prefix, _, _ = tiny_records
    return ['--preset', 'cifar10', '--model', 'lprnet_mobilenet_x0.25', '--num-classes', '3', '--input-size', '16',
            '--batch-size', '16', '--num-epochs', '3', '--tuning-epochs', '1', '--lr', '0.05', '-j', '1', '--pad', '2',
            '--rec-train', f'{prefix}.rec', '--rec-val', f'{prefix}.rec', '--save-dir', str(tmp_path / 'run')]


def epoch_records(run_dir):
    lines = (Path(run_dir) / 'metrics.jsonl').read_text().splitlines()
    return [record for record in map(json.loads, lines) if record['kind'] == 'epoch']


@pytest.fixture(scope='session')
def artifacts(tmp_path_factory):
    """See ``reference.artifacts.make_artifacts``."""
    # Here, since other tests do not need what it imports.
    from reference.artifacts import make_artifacts
    return make_artifacts(tmp_path_factory.mktemp('artifacts'))


@pytest.fixture(scope='session')
def photos():
    """See ``reference.artifacts.make_photos``."""
    from reference.artifacts import make_photos
    return make_photos()


_STOCK_MXNET = '''
import sys, numpy as np
for name, builtin in {'bool': bool, 'int': int, 'float': float, 'object': object}.items():
    setattr(np, name, builtin)
import mxnet as mx
prefix, folder = sys.argv[1:3]
x = mx.nd.array(np.load(folder + '/x.npy'))
block = mx.gluon.SymbolBlock.imports(prefix + '-symbol.json', ['data'], prefix + '-0000.params')
np.save(folder + '/block.npy', block(x).asnumpy())
symbol, arguments, auxiliary = mx.model.load_checkpoint(prefix, 0)
for size in sys.argv[3:]:
    batch = x[:int(size)]
    module = mx.mod.Module(symbol, label_names=None)
    module.bind([('data', batch.shape)], for_training=False)
    module.set_params(arguments, auxiliary)
    module.forward(mx.io.DataBatch([batch]), is_train=False)
    np.save(folder + '/module' + size + '.npy', module.get_outputs()[0].asnumpy())
assert 'gluon_lprnet' not in sys.modules
'''


def outputs_in_stock_mxnet(prefix, images, batch_sizes, folder):
    """Outputs of symbol and params in a process that has nothing of this package but its patch of NumPy.

    Those of Gluon's SymbolBlock for ``images``, and of Module for the first of them, by each of ``batch_sizes``.
    """
    np.save(folder / 'x.npy', images)
    subprocess.run([sys.executable, '-c', _STOCK_MXNET, str(prefix), str(folder), *map(str, batch_sizes)], check=True,
                   cwd=folder, stderr=subprocess.DEVNULL)
    return [np.load(folder / f'{name}.npy') for name in ('block', *(f'module{size}' for size in batch_sizes))]
