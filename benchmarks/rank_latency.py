#!/usr/bin/env python
"""What a module of one rank takes, over the pointwise convolution that it stands for: ranks that are no multiples of 8.

    python benchmarks/rank_latency.py --widths 256:10 512:14 --ranks 32 64 65 72 96 128 129 136 170 192

Eight of them in series, each with its ReLU, fused by MXNet, take turns on one thread. The table shows the median, and
the ratio to the convolutions of full rank.
"""
import argparse
import os
import statistics
import sys

os.environ.setdefault('OMP_NUM_THREADS', '1')
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import gluon_lprnet  # noqa: F401  before MXNet
import mxnet as mx

from gluon_lprnet.utils.flags import positive_int
from gluon_lprnet.utils.text import render_table
from gluon_lprnet.utils.timing import interleaved_milliseconds

COPIES = 8


def convolution(data, width, rank, residual, name):
    if rank is None:
        return mx.sym.Convolution(data, kernel=(1, 1), num_filter=width, name=name)
    low_rank = mx.sym.Convolution(data, kernel=(1, 1), num_filter=rank, no_bias=True, name=f'{name}_p1')
    output = mx.sym.Convolution(low_rank, kernel=(1, 1), num_filter=width, no_bias=residual, name=f'{name}_p2')
    if not residual:
        return output
    return output + mx.sym.Convolution(data, kernel=(1, 1), num_filter=width, num_group=width, name=f'{name}_residual')


def series(width, size, rank, residual):
    """A pass of the copies, as a function."""
    symbol = mx.sym.var('data')
    for number in range(COPIES):
        symbol = mx.sym.Activation(convolution(symbol, width, rank, residual, f'layer{number}'), act_type='relu')
    block = mx.gluon.SymbolBlock(symbol, mx.sym.var('data', dtype='float32'))
    block.initialize()
    data = mx.nd.random.normal(shape=(1, width, size, size))
    block.optimize_for(data, backend='MKLDNN', static_alloc=True, static_shape=True)
    return lambda: block(data).wait_to_read()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--widths', nargs='+', default=['256:10', '512:14'], metavar='WIDTH:SIZE',
                        help='of the feature map (default: %(default)s)')
    parser.add_argument('--ranks', nargs='+', type=positive_int, default=[32, 64, 65, 72, 96, 128, 129, 136, 170, 192])
    parser.add_argument('--rounds', type=positive_int, default=30)
    args = parser.parse_args()
    rows = []
    for text in args.widths:
        width, size = map(int, text.split(':'))
        cases = [(None, None), *((rank, residual) for rank in args.ranks if 2 * rank < width
                                  for residual in (True, False))]
        times = interleaved_milliseconds([series(width, size, *case) for case in cases], args.rounds)
        medians = [statistics.median(each) / COPIES for each in times]
        rows += [(width, f'{size}x{size}', rank, residual and 'yes', f'{median:.3f}',
                  f'{median / medians[0]:.2f}') for (rank, residual), median in zip(cases, medians)]
    print(render_table(('width', 'map', 'rank', 'residual', 'ms', 'ratio'), rows, 'markdown'))


if __name__ == '__main__':
    main()
