#!/usr/bin/env python
"""A network in the paper's own form begun from a trained MobileNetV1: what equation (6) costs beside `compress`.

    python benchmarks/paper_form.py mobilenetv1_x1.0.npz:128 --rank 1/4 --calibrate photos.rec --images 500 \\
        --tune-epochs 1 --lr 1e-4 --rec-train photos.rec --held-out photos-held-out.rec --rec-val test.rec --out paper

The original is the arrays of `import` and an input size; all flags are those of `compress`. Each of the eight pairs of
equal width becomes an LPR module, `ReLU(L2norm(P2 P1 d) + d)` with `d = BN(D x)`, which has no activation between D and
P1. One after the other they are matched to what the original's pair puts out; then the network is tuned without labels.
"""
import os
import sys
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault('OMP_NUM_THREADS', '1')
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import gluon_lprnet  # noqa: F401  before MXNet
import mxnet as mx
import numpy as np
from mxnet.gluon import nn
from scipy import linalg

from gluon_lprnet.__main__ import make_parser
from gluon_lprnet.blocks import LPR, resolve_rank
from gluon_lprnet.complexity import count
from gluon_lprnet.compression import import_mobilenetv1
from gluon_lprnet.compression.command import _tuned, _tuning_config
from gluon_lprnet.compression.factorize import factorize
from gluon_lprnet.compression.originals import BLOCKS
from gluon_lprnet.compression.refit import RIDGE
from gluon_lprnet.compression.tasks import Classification
from gluon_lprnet.paper.closed_form import away_from_0, set_norm, set_pointwise
from gluon_lprnet.train.config import check_same_curve, checkpoint_to_resume

_ROUNDS = 8
_POSITIONS = 20_000


class Matched(NamedTuple):
    """``targets ~ norm (L2norm(p2 p1 d) + d)`` with ``d = gamma (z - mean) / deviation + beta``.

    Attributes
    ----------
    mean, deviation, gamma, beta : ndarray (m,)
    p1 : ndarray (rank, m)
    p2 : ndarray (m, rank)
    norm : float
        By how much the module's outputs are smaller than the targets: its normalization is to 1.
    error : float
        Squared, relative to the variation of the targets.
    """

    mean: np.ndarray
    deviation: np.ndarray
    gamma: np.ndarray
    beta: np.ndarray
    p1: np.ndarray
    p2: np.ndarray
    norm: float
    error: float


def match(z, targets, rank):
    """The LPR module of small error for inputs of its BatchNorm and targets before its ReLU: (m, positions) each.

    The residual is that of the best product of this rank plus a diagonal. Then, in turn, P2 P1 is the least squares of
    what the residual leaves over, and the norm and the mean of what is normalized are measured.
    """
    mean, deviation = z.mean(axis=1), z.std(axis=1)
    deviation[deviation == 0] = 1
    x = (z - mean[:, None]) / deviation[:, None]
    level = targets.mean(axis=1)
    varying = targets - level[:, None]
    count = z.shape[1]
    covariance, cross = x @ x.T / count, varying @ x.T / count
    penalty = RIDGE * np.eye(len(x))
    residual = away_from_0(factorize(_solve(covariance + penalty, cross), rank, covariance).scale)
    left_over = varying - residual[:, None] * x
    norm, normal_mean = np.sqrt(np.square(left_over).sum(axis=0).mean()), np.zeros(len(x))
    best = None
    for _ in range(_ROUNDS):
        # d in units of its residual: P1 and P2 have no bias, so that its mean counts.
        offset = (level - norm * normal_mean) / residual
        second = covariance + np.outer(offset, offset)
        wanted = (cross - residual[:, None] * covariance) / norm + np.outer(normal_mean, offset)
        factors = factorize(_solve(second + penalty, wanted), rank, second, residual=False)
        normal = factors.p2 @ (factors.p1 @ (x + offset[:, None]))
        normal /= np.linalg.norm(normal, axis=0) + 1e-12
        error = (np.square(left_over - norm * (normal - normal_mean[:, None])).sum()
                 / np.square(varying).sum())
        if best is None or error < best.error:
            best = Matched(mean, deviation, residual / norm, level / norm - normal_mean,
                           factors.p1 * (norm / residual), factors.p2, norm, error)
        normal_mean = normal.mean(axis=1)
        centered = normal - normal_mean[:, None]
        norm = max((centered * left_over).sum() / np.square(centered).sum(), 1e-3 * norm)
    return best


def _solve(system, cross):
    return linalg.solve(system, cross.T, assume_a='pos').T


def lpr_of(matched, kernel):
    """The LPR module with these values and a depthwise kernel, (m, 1, 3, 3)."""
    rank, channels = matched.p1.shape
    module = LPR(channels, rank)
    module.initialize()
    module.depthwise[0].weight.set_data(kernel)
    set_norm(module.depthwise, matched.mean, np.square(matched.deviation), matched.gamma, matched.beta)
    set_pointwise(module.p1, matched.p1)
    set_pointwise(module.p2, matched.p2)
    return module


def in_paper_form(original, own, images, rank_of):
    """The network in the paper's form, and the error of each LPR module.

    Parameters
    ----------
    original, own : HybridBlock
        The same network of the zoo, twice; the modules that stay are taken from ``own`` and changed.
    images : list of NDArray
        Batches.
    rank_of : callable
        From a width to a rank.
    """
    net, errors, norm = nn.HybridSequential(), [], 1.0
    theirs = [original.features[0](batch) for batch in images]
    mine = list(theirs)
    net.add(own.features[0])
    for number in range(1, BLOCKS + 1):
        reference, module = original.features[number], own.features[number]
        kernel = module[0][0].weight.data()
        channels, width = reference[1][0].weight.shape[:2]
        before_relu = [reference[1][1](reference[1][0](reference[0](batch))) for batch in theirs]
        if channels == width:
            z = [mx.nd.Convolution(batch, kernel, kernel=(3, 3), pad=(1, 1), num_filter=width, num_group=width,
                                   no_bias=True) for batch in mine]
            matched = match(positions(z), positions(before_relu), rank_of(width))
            errors.append(matched.error)
            module, norm = lpr_of(matched, kernel), matched.norm
        else:
            # Behind a module whose outputs are smaller than the original's.
            module[0][0].weight.set_data(kernel * norm)
            norm = 1.0
        theirs = [reference[1][2](batch) for batch in before_relu]
        mine = [module(batch) for batch in mine]
        net.add(module)
    for layer in list(own.features)[BLOCKS + 1:]:
        net.add(layer)
    own.output.weight.set_data(own.output.weight.data() * norm)
    net.add(own.output)
    net.hybridize(static_alloc=True, static_shape=True)
    return net, errors


def positions(batches):
    """Some positions of feature maps, evenly spread: (channels, positions), float64."""
    per_batch = -(-_POSITIONS // len(batches))
    found = []
    for batch in batches:
        columns = batch.asnumpy().transpose(1, 0, 2, 3).reshape(batch.shape[1], -1)
        found.append(columns[:, ::max(columns.shape[1] // per_batch, 1)])
    return np.concatenate(found, axis=1).astype('float64')


def main():
    place, *flags = sys.argv[1:] or ['--help']
    if place.startswith('-'):
        sys.exit(__doc__)
    path, _, size = place.rpartition(':')
    if not (path and size.isdecimal()):
        sys.exit(f'{sys.argv[0]}: {place} is not a file of arrays with an input size: give FILE.npz:SIZE.')
    args = make_parser().parse_args(['compress', '--network', path, *flags])
    (original, description), (own, _) = (import_mobilenetv1(path, int(size)) for _ in range(2))
    task = Classification(original, description, args)
    config = _tuning_config(args, {})
    found = args.tune_epochs and checkpoint_to_resume(Path(config.save_dir), args.resume)
    if found:
        check_same_curve(config, found)
    with task.calibration() as batches:
        images = [batch[0].copy() for batch in batches]
    share = dict(args.rank or [('*', 1 / 8)]).get('*')
    if share is None:
        sys.exit(f'{sys.argv[0]}: --rank takes no names of layers here: give one for all modules.')
    net, errors = in_paper_form(original, own, images, lambda width: resolve_rank(share, width))
    print('errors', ' '.join(f'{error:.3f}' for error in errors), flush=True)
    print(f'{count(net, task.input_shape).multiply_adds:,} multiply-adds')
    print('original', task.measured(original), flush=True)
    numbers = task.measured(net)
    print('matched', numbers, flush=True)
    if args.tune_epochs:
        print('tuned', _tuned(net, numbers, task, config, found))


if __name__ == '__main__':
    main()
