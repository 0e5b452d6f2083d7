#!/usr/bin/env python
"""What the L2 normalization of LPR costs in training: images per second by the form of the normalization.

    OMP_NUM_THREADS=1 python benchmarks/l2_norm.py --width 0.5 --input-size 32 --small-image --batch-size 128

The forms are interleaved over rounds, forward, backward and update on one fixed batch; the table shows medians
with the smallest and the largest, and the median of the ratios to the plain form, round by round.
"""
import argparse
import os
import statistics
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import gluon_lprnet  # before MXNet
import mxnet as mx
from mxnet import autograd, gluon
from tabulate import tabulate

from gluon_lprnet.blocks import normalize_in_rank_space
from gluon_lprnet.utils.timing import interleaved_milliseconds

ROUNDS = 7


def make_step(name, args, rank_space=False, **kwargs):
    """A function that does one update of a fresh network."""
    net = gluon_lprnet.get_model(name, width=args.width, small_image=args.small_image, **kwargs)
    net.initialize(mx.init.MSRAPrelu())
    normalize_in_rank_space(net, rank_space)
    net.hybridize(static_alloc=True, static_shape=True)
    trainer = gluon.Trainer(net.collect_params(), 'sgd', {'learning_rate': 0.01, 'momentum': 0.9}, kvstore=None)
    loss = gluon.loss.SoftmaxCrossEntropyLoss()
    data = mx.nd.random.normal(shape=(args.batch_size, 3, args.input_size, args.input_size))
    label = mx.nd.random.randint(0, 1000, shape=args.batch_size).astype('float32')

    def step():
        with autograd.record():
            value = loss(net(data), label)
        value.backward()
        trainer.step(args.batch_size)
        mx.nd.waitall()
    return step


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--width', type=float, default=0.5)
    parser.add_argument('--input-size', type=int, default=224)
    parser.add_argument('--small-image', action='store_true')
    parser.add_argument('--batch-size', type=int, default=32)
    args = parser.parse_args()
    steps = {
        'LPRNet, over the channels (plain)': make_step('lprnet_mobilenet', args),
        'LPRNet, in rank space': make_step('lprnet_mobilenet', args, rank_space=True),
        'LPRNet, in rank space, learned scale': make_step('lprnet_mobilenet', args, rank_space=True,
                                                          l2_norm_scale='one'),
        'LPRNet, no normalization': make_step('lprnet_mobilenet', args, l2_norm=False),
        'MobileNetV1': make_step('mobilenetv1', args),
    }
    times = interleaved_milliseconds(list(steps.values()), ROUNDS, warm_up=1)
    speeds = {form: [1000 * args.batch_size / taken for taken in by_round] for form, by_round in zip(steps, times)}
    plain = next(iter(speeds.values()))
    print(f'x{args.width}, {args.input_size}x{args.input_size}, batch {args.batch_size}, '
          f'{os.environ["OMP_NUM_THREADS"]} OpenMP threads')
    print(tabulate([(form, f'{statistics.median(values):.0f}', f'{min(values):.0f}', f'{max(values):.0f}',
                     f'{statistics.median(value / base for value, base in zip(values, plain)):.2f}')
                    for form, values in speeds.items()],
                   ('images/s', 'median', 'min', 'max', 'ratio'), tablefmt='github', disable_numparse=True))


if __name__ == '__main__':
    main()
