#!/usr/bin/env python
"""How well the error of a compressed network can be told from its ranks, before it is fitted.

    python benchmarks/rank_sensitivity.py mobilenetv1_x0.5.npz --input-size 128 --calibrate photos.rec \\
        --held-out photos-held-out.rec

Each pointwise convolution of equal width is first replaced alone, at rank m/4, and all others are fitted behind it: the
error at the output over that of the layer is its sensitivity. Then networks of random ranks are fitted, and their
errors on photos that were not calibrated on are compared with two predictions from the ranks alone: the sum of the
layers' relative errors, which `Budget` uses, and the same sum weighted by the sensitivities. `error` is the mean
squared error of the outputs over their variance. At last, one fraction for all layers beside a budget of the same
multiply-adds.
"""
import argparse
import itertools
import os
import sys

os.environ.setdefault('OMP_NUM_THREADS', '1')
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import gluon_lprnet  # noqa: F401  before MXNet
import mxnet as mx
import numpy as np
from scipy import stats

from gluon_lprnet.compression import Budget, ByLayer, compress, import_mobilenetv1
from gluon_lprnet.compression.factorize import spectrum
from gluon_lprnet.compression.modules import PointwiseGraph
from gluon_lprnet.compression.refit import moments_of
from gluon_lprnet.data.batches import validation_batches
from gluon_lprnet.data.integrity import check_records
from gluon_lprnet.graph import trace
from gluon_lprnet.utils.flags import positive_int
from gluon_lprnet.utils.text import render_table

BATCH = 50
SHARES = (1 / 8, 1 / 4, 3 / 8, None)


def photos_of(path, description, number):
    batches = validation_batches(check_records(path), description, BATCH, 1).epoch(0)
    return [batch.data.copyto(mx.cpu()) for batch in itertools.islice(batches, max(1, number // BATCH))]


class Measured:
    """Networks with other ranks, fitted on some photos and measured on others."""

    def __init__(self, net, photos, held_out, residual):
        self._net, self._photos, self._held_out, self._residual = net, photos, held_out, residual
        self._expected = self._outputs(net)

    def of(self, ranks):
        """Error and agreement with the original, and the report, for ranks as compress takes them."""
        compressed, report = compress(self._net, ranks, residual=self._residual, calibration=self._photos)
        found, expected = self._outputs(compressed), self._expected
        error = np.square(found - expected).sum() / np.square(expected - expected.mean(axis=0)).sum()
        return error, (found.argmax(axis=1) == expected.argmax(axis=1)).mean(), report

    def _outputs(self, net):
        return np.concatenate([net(batch).asnumpy() for batch in self._held_out])


def spectra_of(net, photos):
    """Of each layer that can be replaced, by name: what each rank takes off its relative error."""
    graph = PointwiseGraph(*trace(net))
    layers = graph.pointwise()
    wanted = [layer for layer in layers if not layer.skipped]
    moments = moments_of(graph, [layer for layer in layers if layer.plain], [layer.name for layer in wanted], photos)
    return {layer.name: spectrum(graph.folded(layer)[0], moments[layer.name].covariance) for layer in wanted}


def random_ranks(spectra, rng):
    """Of each layer a share of SHARES of its width, by chance; of at least two of them."""
    while True:
        shares = [SHARES[number] for number in rng.integers(len(SHARES), size=len(spectra))]
        if sum(share is not None for share in shares) >= 2:
            return {name: int(share * len(spectral)) for (name, spectral), share in zip(spectra.items(), shares)
                    if share}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('arrays')
    parser.add_argument('--input-size', type=positive_int, required=True)
    parser.add_argument('--calibrate', required=True, metavar='REC')
    parser.add_argument('--photos', type=positive_int, default=300)
    parser.add_argument('--held-out', required=True, metavar='REC')
    parser.add_argument('--networks', type=positive_int, default=12)
    parser.add_argument('--residual', action='store_true')
    args = parser.parse_args()
    net, description = import_mobilenetv1(args.arrays, args.input_size)
    net.hybridize(static_alloc=True)
    photos = photos_of(args.calibrate, description, args.photos)
    measured = Measured(net, photos, photos_of(args.held_out, description, args.photos), args.residual)
    spectra = spectra_of(net, photos)

    def relative_errors(ranks):
        return {name: spectra[name][rank:].sum() for name, rank in ranks.items()}

    sensitivities = {}
    for name, spectral in spectra.items():
        alone = {name: len(spectral) // 4}
        error = measured.of(ByLayer(alone))[0]
        sensitivities[name] = error / relative_errors(alone)[name]
        print(f'{name}: error {error:.4f}, of the layer {relative_errors(alone)[name]:.4f}, sensitivity '
              f'{sensitivities[name]:.3f}', flush=True)

    rng, rows = np.random.default_rng(0), []
    for _ in range(args.networks):
        ranks = random_ranks(spectra, rng)
        errors = relative_errors(ranks)
        error, agreement, report = measured.of(ByLayer(ranks))
        rows.append((report.after.multiply_adds / 1e6, sum(errors.values()),
                     sum(sensitivities[name] * value for name, value in errors.items()), error, agreement))
        print(' '.join(f'{value:.3f}' for value in rows[-1]), list(ranks.values()), flush=True)
    _, plain, weighted, errors, _ = np.array(rows).T
    print(render_table(('multiply-adds (M)', 'sum of relative errors', 'weighted', 'error', 'agreement'),
                       [[f'{value:.3f}' for value in row] for row in rows], 'markdown'))
    for name, predicted in (('sum of relative errors', plain), ('weighted by sensitivity', weighted)):
        print(f'{name}: correlation with the error {np.corrcoef(predicted, errors)[0, 1]:.3f}, of ranks '
              f'{stats.spearmanr(predicted, errors)[0]:.3f}')
    error, agreement, report = measured.of(1 / 8)
    print(f'm/8 for all: {report.after.multiply_adds / 1e6:.1f}M, error {error:.3f}, agreement {agreement:.3f}')
    error, agreement, other = measured.of(Budget(report.after.multiply_adds))
    print(f'budget: {other.after.multiply_adds / 1e6:.1f}M, error {error:.3f}, agreement {agreement:.3f}, ranks '
          f'{[layer.rank for layer in other.layers if layer.rank]}')


if __name__ == '__main__':
    main()
