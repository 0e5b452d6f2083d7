"""The benchmarks of compression: what they choose and compute, in small."""
import sys
from pathlib import Path

import mxnet as mx
import numpy as np
import pytest
from test_originals import SIZE, random_arrays

from gluon_lprnet.compression import import_mobilenetv1

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / 'benchmarks'))
import compressed_beside_originals
import rank_sensitivity


@pytest.fixture(scope='module')
def original(tmp_path_factory):
    path = tmp_path_factory.mktemp('arrays') / 'original.npz'
    np.savez(path, **random_arrays())
    return import_mobilenetv1(path, SIZE)[0]


def test_the_originals_line():
    """Through those that no cheaper one beats, straight between them; none left of the first."""
    originals = [dict(cost=cost, top1=top1) for cost, top1 in ((4, 0.7), (1, 0.5), (3, 0.45), (2, 0.6))]
    for cost, top1, points in ((3, 0.66, 1), (1.5, 0.5, -5), (5, 0.7, 0), (0.9, 0.9, None)):
        found = compressed_beside_originals.above(dict(cost=cost, top1=top1), originals, 'cost')
        assert found is points if points is None else found == pytest.approx(points)


def test_errors_and_ranks(original):
    images = [mx.nd.array(np.random.default_rng(2).uniform(-1, 1, (280, 3, SIZE, SIZE)))]
    spectra = rank_sensitivity.spectra_of(original, images)
    assert len(spectra) == 8
    # The share that the spectrum leaves is the error that compress reports for a layer that is replaced alone.
    name = list(spectra)[3]
    rank = len(spectra[name]) // 4
    measured = rank_sensitivity.Measured(original, images, images, residual=False)
    error, agreement, report = measured.of(rank_sensitivity.ByLayer({name: rank}))
    layer, = (layer for layer in report.layers if layer.rank)
    assert layer.error == pytest.approx(spectra[name][rank:].sum(), rel=1e-2)
    assert 0 < error < 1 and 0 < agreement <= 1
    rng = np.random.default_rng(0)
    for _ in range(20):
        ranks = rank_sensitivity.random_ranks(spectra, rng)
        assert len(ranks) >= 2
        assert all(rank / len(spectra[name]) in (1 / 8, 1 / 4, 3 / 8) for name, rank in ranks.items())
