#!/usr/bin/env python
"""Compressed networks beside originals that are narrower or for smaller pictures: accuracy against measured latency.

    python benchmarks/compressed_beside_originals.py --originals mobilenetv1_x0.25.npz:224 mobilenetv1_x0.5.npz:128 \\
        mobilenetv1_x0.5.npz:160 --compressed compressed/mobilenetv1_x0.5-compressed-symbol.json --test test.rec

Each original is the arrays of `import` and an input size; what `compress` wrote is named by its folder. --test are
labeled photos as `pack images` packs them. All networks take turns in one run, in the deployed form, fused by MXNet,
one photo at a time on one thread. `above` is the distance in points from the line through the originals that no other
one beats, at the network's latency and at its multiply-adds.
"""
import argparse
import csv
import os
import statistics
import sys
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import gluon_lprnet  # noqa: F401  before MXNet
import mxnet as mx
import numpy as np

from gluon_lprnet.artifact import load_network
from gluon_lprnet.complexity import count
from gluon_lprnet.compression import import_mobilenetv1
from gluon_lprnet.data.batches import validation_batches
from gluon_lprnet.data.integrity import check_records
from gluon_lprnet.deployment import deploy
from gluon_lprnet.evaluate.classification import evaluate_classification
from gluon_lprnet.utils.text import render_table
from gluon_lprnet.utils.timing import interleaved_milliseconds


def fused_pass(net, shape):
    """One pass of a network in the deployed form, as a function."""
    data = mx.nd.array(np.random.default_rng(0).normal(0, 1, shape))
    deployed = deploy(net)
    deployed.optimize_for(data, backend='MKLDNN', static_alloc=True, static_shape=True)
    return lambda: deployed(data).wait_to_read()


def above(row, originals, cost):
    """Points of accuracy above the originals' line at a cost; None left of it."""
    frontier = [each for each in sorted(originals, key=lambda each: each[cost])
                if all(other['top1'] < each['top1'] for other in originals if other[cost] < each[cost])]
    if not frontier[0][cost] <= row[cost]:
        return None
    line = np.interp(row[cost], [each[cost] for each in frontier], [each['top1'] for each in frontier])
    return 100 * (row['top1'] - line)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--originals', nargs='+', required=True, metavar='NPZ:SIZE')
    parser.add_argument('--compressed', nargs='+', required=True, metavar='NETWORK')
    parser.add_argument('--test', required=True, metavar='REC')
    parser.add_argument('--rounds', type=int, default=60)
    parser.add_argument('--out', metavar='CSV')
    args = parser.parse_args()
    networks = []
    for text in args.originals:
        path, _, size = text.rpartition(':')
        networks.append(('original', f'{Path(path).stem}@{size}', *import_mobilenetv1(path, int(size))))
    for path in args.compressed:
        net, description = load_network(path)
        # All that compress writes of one original have the same name.
        name = Path(path).parent.name if path.endswith('-symbol.json') else path
        networks.append(('compressed', f'{name}@{description["input_size"]}', net, description))
    records, rows, passes = check_records(args.test), [], []
    for kind, name, net, description in networks:
        net.hybridize(static_alloc=True, static_shape=True)
        shape = (1, 3, description['input_size'], description['input_size'])
        complexity = count(net, shape)
        top1 = evaluate_classification(net, validation_batches(records, description, 50, 1), mx.cpu())['top1']
        rows.append({'kind': kind, 'network': name, 'multiply_adds': complexity.multiply_adds,
                     'params': complexity.params, 'top1': top1})
        print(name, f'{top1:.4f}', flush=True)
        passes.append(fused_pass(net, shape))
    for row, times in zip(rows, interleaved_milliseconds(passes, args.rounds)):
        low, row['milliseconds'], high = statistics.quantiles(times, n=4)
        row.update(quartile1=low, quartile3=high)
    originals = [row for row in rows if row['kind'] == 'original']
    for row in rows:
        for cost in ('milliseconds', 'multiply_adds'):
            row[f'above_by_{cost}'] = above(row, originals, cost) if row['kind'] == 'compressed' else None
    if args.out:
        with open(args.out, 'w', newline='') as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)

    def points(value):
        return '' if value is None else f'{value:+.1f}'

    print(render_table(
        ('network', 'top-1 %', 'multiply-adds', 'ms', 'quartiles', 'above, by time', 'above, by multiply-adds'), [
            (row['network'], f'{100 * row["top1"]:.1f}', f'{row["multiply_adds"] / 1e6:.1f}M',
             f'{row["milliseconds"]:.2f}', f'{row["quartile1"]:.2f} to {row["quartile3"]:.2f}',
             points(row['above_by_milliseconds']), points(row['above_by_multiply_adds'])) for row in rows], 'markdown'))


if __name__ == '__main__':
    main()
