#!/usr/bin/env python
"""What `prefetch_buffer` of ImageRecordIter costs: memory that each epoch's iterator loses, and images a second.

    OMP_NUM_THREADS=1 python benchmarks/loader.py data/samples.rec --batch-size 256
    OMP_NUM_THREADS=1 python benchmarks/loader.py data/samples.rec --batch-size 256 --data-loader

Buffers of 4 (MXNet's default) and of 1 (this package's) in processes of their own; the rates in turns, as medians. With
`--data-loader` Gluon's DataLoader over the index in place of the first: random crop, flip and normalization as well,
with as many worker processes as ImageRecordIter has threads.
"""
import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import psutil
from tabulate import tabulate

import gluon_lprnet  # noqa: F401  before MXNet
import numpy as np
from mxnet import gluon

from gluon_lprnet.data.batches import IMAGENET_MEAN, IMAGENET_STD, ImageBatches, Normalization, paper_augmentation
from gluon_lprnet.data.integrity import check_records

MXNETS_BUFFER, OWN_BUFFER, DATA_LOADER = 'buffer 4', 'buffer 1', 'DataLoader'
WARM_UP = 2


def epochs_of(args):
    """From the number of an epoch to its batches."""
    if args.reader == DATA_LOADER:
        loader = gluon.data.DataLoader(gluon.data.vision.ImageRecordDataset(args.rec).transform(Augmentation(args)),
                                       args.batch_size, shuffle=True, num_workers=args.num_data_workers)
        return lambda epoch: loader
    batches = ImageBatches(check_records(args.rec, data_check='structure'), args.input_size, args.batch_size,
                           Normalization(IMAGENET_MEAN, IMAGENET_STD), shuffle=True, threads=args.num_data_workers,
                           augmentation=paper_augmentation())
    # Not an option: only this benchmark needs another one.
    batches._arguments['prefetch_buffer'] = int(args.reader.split()[1])
    return batches.epoch


class Augmentation:
    """A random crop, flip and normalization of (image, label)."""

    def __init__(self, args):
        self.size = args.input_size
        self.mean, self.std = np.float32(IMAGENET_MEAN), np.float32(IMAGENET_STD)

    def __call__(self, image, label):
        pixels = image.asnumpy()
        top, left = (np.random.randint(0, side - self.size + 1) for side in pixels.shape[:2])
        crop = pixels[top:top + self.size, left:left + self.size]
        if np.random.random() < 0.5:
            crop = crop[:, ::-1]
        return ((crop - self.mean) / self.std).transpose(2, 0, 1), np.float32(label)


def read_epochs(args):
    """Read epochs, one for each line of standard input; answers with seconds and resident bytes."""
    batches = epochs_of(args)
    for epoch, _ in enumerate(sys.stdin):
        begin = time.perf_counter()
        for data, _ in batches(epoch):
            data.wait_to_read()
        print(json.dumps([time.perf_counter() - begin, psutil.Process().memory_info().rss]), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('rec', help='RecordIO file of photos larger than the input')
    parser.add_argument('--batch-size', type=int, default=256)
    parser.add_argument('--input-size', type=int, default=224)
    parser.add_argument('--epochs', type=int, default=12)
    parser.add_argument('-j', '--num-data-workers', type=int, default=1)
    parser.add_argument('--data-loader', action='store_true', help="Gluon's DataLoader in place of the buffer of 4")
    parser.add_argument('--reader', help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.reader:
        read_epochs(args)
        return
    names = (DATA_LOADER if args.data_loader else MXNETS_BUFFER), OWN_BUFFER
    count = check_records(args.rec, data_check='structure').count
    readers = {name: subprocess.Popen([sys.executable, __file__, *sys.argv[1:], '--reader', name], text=True,
                                      stdin=subprocess.PIPE, stdout=subprocess.PIPE) for name in names}
    found = {name: [] for name in names}
    for _ in range(WARM_UP + args.epochs):
        for name, reader in readers.items():
            reader.stdin.write('\n')
            reader.stdin.flush()
            found[name].append(json.loads(reader.stdout.readline()))
    for reader in readers.values():
        reader.stdin.close()
        reader.wait()
    rows = []
    for name in names:
        seconds, memory = zip(*found[name][WARM_UP:])
        rows.append((name, f'{count / statistics.median(seconds):.0f}',
                     f'{(memory[-1] - memory[0]) / (args.epochs - 1) / 1e6:.1f}', f'{memory[-1] / 1e6:.0f}'))
    print(tabulate(rows, ('reader', 'images/s', 'MB lost an epoch', 'MB at the end')))
    first, second = ([seconds for seconds, _ in found[name][WARM_UP:]] for name in names)
    print(f'images/s, {names[1]} over {names[0]}, median of {args.epochs} pairs: '
          f'{statistics.median(one / other for one, other in zip(first, second)):.3f}')


if __name__ == '__main__':
    main()
