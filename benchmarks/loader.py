#!/usr/bin/env python
"""What `prefetch_buffer` of ImageRecordIter costs: memory that each epoch's iterator loses, and images a second.

    OMP_NUM_THREADS=1 python benchmarks/loader.py data/samples.rec --batch-size 256

Buffers of 4 (MXNet's default) and of 1 (this package's) in processes of their own; the rates in turns, as medians.
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
from gluon_lprnet.data.batches import IMAGENET_MEAN, IMAGENET_STD, ImageBatches, Normalization, paper_augmentation
from gluon_lprnet.data.integrity import check_records

BUFFERS = (4, 1)
WARM_UP = 2


def read_epochs(args):
    """Read epochs, one for each line of standard input; answers with seconds and resident bytes."""
    batches = ImageBatches(check_records(args.rec, data_check='structure'), args.input_size, args.batch_size,
                           Normalization(IMAGENET_MEAN, IMAGENET_STD), shuffle=True, threads=args.num_data_workers,
                           augmentation=paper_augmentation())
    # Not an option: only this benchmark needs another one.
    batches._arguments['prefetch_buffer'] = args.buffer
    for epoch, _ in enumerate(sys.stdin):
        begin = time.perf_counter()
        for data, _ in batches.epoch(epoch):
            data.wait_to_read()
        print(json.dumps([time.perf_counter() - begin, psutil.Process().memory_info().rss]), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('rec', help='RecordIO file of photos larger than the input')
    parser.add_argument('--batch-size', type=int, default=256)
    parser.add_argument('--input-size', type=int, default=224)
    parser.add_argument('--epochs', type=int, default=12)
    parser.add_argument('-j', '--num-data-workers', type=int, default=1)
    parser.add_argument('--buffer', type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.buffer:
        read_epochs(args)
        return
    count = check_records(args.rec, data_check='structure').count
    readers = {buffer: subprocess.Popen([sys.executable, __file__, *sys.argv[1:], '--buffer', str(buffer)], text=True,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE) for buffer in BUFFERS}
    found = {buffer: [] for buffer in BUFFERS}
    for _ in range(WARM_UP + args.epochs):
        for buffer, reader in readers.items():
            reader.stdin.write('\n')
            reader.stdin.flush()
            found[buffer].append(json.loads(reader.stdout.readline()))
    for reader in readers.values():
        reader.stdin.close()
        reader.wait()
    rows = []
    for buffer in BUFFERS:
        seconds, memory = zip(*found[buffer][WARM_UP:])
        rows.append((buffer, f'{count / statistics.median(seconds):.0f}',
                     f'{(memory[-1] - memory[0]) / (args.epochs - 1) / 1e6:.1f}', f'{memory[-1] / 1e6:.0f}'))
    print(tabulate(rows, ('prefetch_buffer', 'images/s', 'MB lost an epoch', 'MB at the end')))
    first, second = ([seconds for seconds, _ in found[buffer][WARM_UP:]] for buffer in BUFFERS)
    print(f'images/s, buffer {BUFFERS[1]} over {BUFFERS[0]}, median of {args.epochs} pairs: '
          f'{statistics.median(one / other for one, other in zip(first, second)):.3f}')


if __name__ == '__main__':
    main()
