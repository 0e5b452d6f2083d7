#!/usr/bin/env python
"""Images per second of the loader alone, of the network's training alone, and of both together.

    python benchmarks/training.py imagenet --rec-train train.rec --rec-val val.rec --model lprnet_mobilenet_x0.5
    python benchmarks/training.py face --rec-train faces.rec --rec-val faces.rec

takes the flags of train_imagenet.py or of train_face.py. The three are interleaved over rounds; the table shows
medians with the smallest and the largest. Nothing of the training is kept.
"""
import argparse
import itertools
import os
import statistics
import sys
import tempfile
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

# isort: off
import gluon_lprnet  # noqa: F401  before MXNet
# isort: on
import mxnet as mx
from tabulate import tabulate

from gluon_lprnet.data.batches import Batch
from gluon_lprnet.train import face, imagenet
from gluon_lprnet.train.config import make_parser, parse
from gluon_lprnet.train.fast_form import with_form_to_train
from gluon_lprnet.train.journal import start_log
from gluon_lprnet.train.loop import Run
from gluon_lprnet.utils.flags import positive_int

TRAININGS = {'imagenet': (imagenet.ClassificationConfig, imagenet.build_task),
             'face': (face.LandmarkConfig, face.build_task)}
ROUNDS = 5


def images_per_second(steps):
    """Speed of a generator that yields how many images each of its steps took."""
    begin, images = time.perf_counter(), 0
    for count in steps:
        images += count
    mx.nd.waitall()
    return images / (time.perf_counter() - begin)


def main():
    if len(sys.argv) < 2 or sys.argv[1] not in TRAININGS:
        sys.exit(f'{sys.argv[0]}: the first argument is one of {", ".join(TRAININGS)}.')
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument('--steps', type=positive_int, default=10, help='batches a round (default: %(default)s)')
    args, flags = parser.parse_known_args(sys.argv[2:])
    config_class, build_task = TRAININGS[sys.argv[1]]
    with tempfile.TemporaryDirectory() as folder:
        config, _ = parse(make_parser(config_class, __doc__), config_class, [*flags, '--save-dir', folder])
        task = with_form_to_train(build_task(config), config)
        run = Run(task, config, start_log(folder))
        batches = itertools.chain.from_iterable(task.batches(0, 0) for _ in itertools.count())
        # Copied, since the loader uses its memory again.
        fixed = Batch(*(array.copy() for array in next(batches)))

        def load():
            # From the start of an epoch, and far more than the loader holds in advance.
            for data, _ in itertools.islice(task.batches(0, 0), 10 * args.steps):
                data.wait_to_read()
                yield len(data)

        def train():
            for _ in range(args.steps):
                run.update([fixed])
                yield len(fixed.data)

        def both():
            for batch in itertools.islice(batches, args.steps):
                run.update([batch])
                yield len(batch.data)

        speeds = {'loader alone': (load, []), 'network alone': (train, []), 'both': (both, [])}
        images_per_second(both())
        for _ in range(ROUNDS):
            for measured, results in speeds.values():
                results.append(images_per_second(measured()))
    print(f'{config.model}, {config.input_size}x{config.input_size}, batch {config.batch_size}, '
          f'{os.environ["OMP_NUM_THREADS"]} OpenMP threads, {config.num_data_workers} decoding threads, '
          f'{config.dtype}')
    print(tabulate([(name, f'{statistics.median(results):.0f}', f'{min(results):.0f}', f'{max(results):.0f}')
                    for name, (_, results) in speeds.items()],
                   ('images/s', 'median', 'min', 'max'), tablefmt='github', disable_numparse=True))


if __name__ == '__main__':
    main()
