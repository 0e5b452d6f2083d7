import json
import os
from pathlib import Path

# Networks of the tests are too small for more, and sums are then the same everywhere.
os.environ.setdefault('OMP_NUM_THREADS', '1')

import gluon_lprnet  # noqa: F401  before MXNet, for NumPy's sake
import cv2
import numpy as np
import pytest

from gluon_lprnet.data.pack import write_records

SHARED_DATA = Path(__file__).resolve().parents[2] / 'shared' / 'data'


@pytest.fixture(scope='session')
def shared_data():
    """Folder of real data beside the checkout."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f'no real data at {SHARED_DATA}')
    return SHARED_DATA


def encode(pixels):
    """RGB pixels as a PNG, so that reading gives the very pixels back."""
    return cv2.imencode('.png', np.ascontiguousarray(pixels[..., ::-1]))[1].tobytes()


@pytest.fixture(scope='session')
def tiny_records(tmp_path_factory):
    """50 images of 16x16 in three classes that differ in colour: prefix, and the images and labels."""
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
