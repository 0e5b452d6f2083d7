#!/usr/bin/env python
"""Channels taken out of a trained ShiftResNet-20: by their terms, by magnitude and at random, each tuned alike.

    python benchmarks/prune_shifts.py runs/shiftresnet20 --shares 0.5 --preset cifar10 --model shiftresnet20_x3.0 \\
        --num-epochs 2 --lr 0.05 --rec-train cifar10/train.rec --rec-val cifar10/test.rec --save-dir runs/pruned

The first argument is the run or exported network to begin with. All flags but --shares are those of `train-imagenet`,
and say how each network is tuned. The first row is the whole network, tuned the same. With --resume finished tunings
are not done again, and the last one goes on from its checkpoint.
"""
import argparse
import dataclasses
import itertools
import os
import sys
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import gluon_lprnet  # noqa: F401  before MXNet

from gluon_lprnet.complexity import count
from gluon_lprnet.compression.shift_pruning import CRITERIA, prune_shifts
from gluon_lprnet.data.batches import validation_batches
from gluon_lprnet.data.integrity import check_records
from gluon_lprnet.evaluate.classification import evaluate_classification
from gluon_lprnet.train.command import fit
from gluon_lprnet.train.config import add_flags, check_same_curve, checkpoint_to_resume, configure
from gluon_lprnet.train.imagenet import ClassificationConfig, build_task
from gluon_lprnet.utils.errors import InputError
from gluon_lprnet.utils.text import render_table

# Of the training, for the terms and the means. Not a flag: resumed with others, a network could keep other channels.
IMAGES = 1024


def tuned(args, config, share, criterion):
    """A row of the table: the network pruned by a criterion, before and after its tuning."""
    folder = Path(config.save_dir) / f'{criterion}-{share:g}'
    config = dataclasses.replace(config, save_dir=str(folder))
    task = build_task(config)
    images = [data.as_in_context(task.contexts[0])
              for data, _ in itertools.islice(task.batches(0, 0), -(-IMAGES // config.batch_size))]
    net = prune_shifts(task.net, share, criterion, images, config.seed)
    net.hybridize(static_alloc=True, static_shape=True)
    records = check_records(config.rec_val, config.rec_val_idx, num_classes=config.num_classes)
    validation = validation_batches(records, config.to_dict(), config.batch_size, config.num_data_workers)

    def evaluate():
        return evaluate_classification(net, validation, task.contexts[0], config.input_dtype)

    before = evaluate()
    found = checkpoint_to_resume(folder, 'auto' if args.resume else False)
    if found:
        check_same_curve(config, found)
    after = fit(dataclasses.replace(task, net=net, evaluate=evaluate), config, found)
    cost = count(net, (1, 3, config.input_size, config.input_size))
    return (criterion if share else 'whole', f'{share:g}', cost.params, cost.multiply_adds,
            *(f'{100 * metrics["top1"]:.2f}' for metrics in (before, after)))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     argument_default=argparse.SUPPRESS)
    parser.add_argument('network')
    parser.add_argument('--shares', nargs='+', type=float, default=[0.5], help='of the channels, that are taken out')
    add_flags(parser, ClassificationConfig)
    args = parser.parse_args()
    args.resume = getattr(args, 'resume', False)
    try:
        flags = {name: value for name, value in vars(args).items() if name not in ('network', 'shares', 'resume')}
        config, _ = configure(ClassificationConfig, {**flags, 'init_from': args.network, 'tuning_epochs': 0})
        rows = []
        for share, criterion in [(0.0, 'term'), *itertools.product(args.shares, CRITERIA)]:
            rows.append(tuned(args, config, share, criterion))
            print(*rows[-1], flush=True)
        print(render_table(('channels that stay', 'share taken out', 'parameters', 'multiply-adds', 'untuned top-1 %',
                            'top-1 %'), rows, 'markdown'))
    except InputError as error:
        sys.exit(f'{sys.argv[0]}: {error}')


if __name__ == '__main__':
    main()
