"""Images per second and bytes of a training step in several processes on this machine, and on paper on many.

    python benchmarks/distributed.py --models lprnet_mobilenet_x1.0 mobilenetv1_x1.0 --workers 1 2

Each worker has one thread and a batch of its own (weak scaling). Images come from memory: this is about the exchange.
Bytes are what the loopback device counts during the steps in a network of its own (``unshare --net``, of util-linux),
where nothing else is among them, per worker: pushes and pulls together.

On paper, workers exchange as many bytes each, with as many servers on the same hosts, so that what a host sends and
receives does not depend on their number. The exchange is hidden behind the gradients that are still computed, or all of
it comes after them: the two columns of each kind of worker. The first kind computes as fast as one worker did here, the
second as `--stated` says.
"""
import argparse
import json
import logging
import math
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import gluon_lprnet
import mxnet as mx
import numpy as np
from mxnet import gluon

from gluon_lprnet.train.config import DEVICE, DIST_SYNC, TrainingConfig
from gluon_lprnet.train.distributed import workers_of
from gluon_lprnet.train.loop import Run, TrainingTask
from gluon_lprnet.utils.text import render_table

ROOT = Path(__file__).resolve().parents[1]
CLASSES = 1000
ON_PAPER = (8, 16, 32, 64, 128, 256)


def train(model, size, batch, steps, threshold, kvstore):
    """One worker: prints parameters, the median of seconds a step and bytes a step as JSON, if it is the first."""
    config = TrainingConfig(batch_size=batch, lr=1e-3, kvstore=kvstore, compress_gradients=threshold,
                            save_dir=tempfile.mkdtemp(prefix='distributed-'))
    workers = workers_of(config)
    net = gluon_lprnet.get_model(model, classes=CLASSES)
    net.initialize(mx.init.MSRAPrelu())
    net.hybridize(static_alloc=True, static_shape=True)
    random = np.random.default_rng(workers.rank)
    images = mx.nd.array(random.normal(0, 1, (batch, 3, size, size)))
    labels = mx.nd.array(random.integers(0, CLASSES, batch))
    run = Run(TrainingTask(net=net, contexts=[mx.cpu()], batches=None, batches_per_epoch=steps,
                           loss=gluon.loss.SoftmaxCrossEntropyLoss(), count=lambda output, label: {},
                           evaluate=None, workers=workers), config, logging.getLogger())
    seconds = []
    for step in range(steps + 3):
        if step == 3:
            workers.barrier()
            before = loopback_bytes()
        begin = time.perf_counter()
        run.update([(images, labels)])
        mx.nd.waitall()
        seconds.append(time.perf_counter() - begin)
    workers.barrier()
    if workers.writes:
        parameters = sum(math.prod(parameter.shape) for parameter in net.collect_params().values()
                         if parameter.grad_req != 'null')
        print(json.dumps([parameters, statistics.median(seconds[3:]),
                          (loopback_bytes() - before) / steps / workers.count]))


def loopback_bytes():
    return int(re.search(r'lo: *(\d+)', Path('/proc/net/dev').read_text())[1])


def measure(model, workers, threshold, args):
    """(parameters, seconds a step, bytes a step and worker) of a number of workers."""
    worker = [str(Path(__file__).resolve()), '--worker', model, str(args.input_size), str(args.batch_size),
              str(args.steps), str(threshold), DIST_SYNC if workers > 1 else DEVICE]
    command = ['-m', 'gluon_lprnet', 'launch', '--workers', str(workers), '--', *worker] if workers > 1 else worker
    alone = ['unshare', '--map-root-user', '--net', 'sh', '-c', 'ip link set lo up && exec "$@"', 'sh']
    done = subprocess.run([*alone, sys.executable, *command], cwd=ROOT, env={**os.environ, 'OMP_NUM_THREADS': '1'},
                          capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def on_paper(exchanged, alone, args):
    """Images a second of each of many workers, computing as here and as stated, each with both ways of exchange."""
    images, milliseconds = args.stated
    # Pushes and pulls go opposite ways, and a host is a worker and a server: each way it has both in full.
    transfer = 8 * exchanged / (1e9 * args.gigabits)
    for batch, seconds in ((args.batch_size, alone), (images, milliseconds / 1000)):
        yield batch / max(seconds, transfer)
        yield batch / (seconds + transfer)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--models', nargs='+', default=['lprnet_mobilenet_x1.0', 'mobilenetv1_x1.0'])
    parser.add_argument('--workers', type=int, nargs='+', default=[1, 2])
    parser.add_argument('--compress-gradients', type=float, nargs='+', default=[0.0, 0.5], metavar='THRESHOLD')
    parser.add_argument('--batch-size', type=int, default=16, help='of each worker (default: %(default)s)')
    parser.add_argument('--input-size', type=int, default=64)
    parser.add_argument('--steps', type=int, default=20)
    parser.add_argument('--gigabits', type=float, default=10.0,
                        help='a second and direction of a host on paper (default: %(default)s)')
    parser.add_argument('--stated', type=float, nargs=2, default=(256, 250), metavar=('IMAGES', 'MILLISECONDS'),
                        help='of a step of a worker on paper (default: 256 in 250)')
    args = parser.parse_args()
    rows, paper = [], []
    for model in args.models:
        for workers in args.workers:
            for threshold in args.compress_gradients if workers > 1 else [0.0]:
                parameters, seconds, exchanged = measure(model, workers, threshold, args)
                rows.append([model, workers, threshold or '', f'{workers * args.batch_size / seconds:.1f}',
                             f'{parameters:,}', f'{exchanged:,.0f}', f'{exchanged / (4 * parameters):.2f}'])
                print('.', end='', file=sys.stderr, flush=True)
                if workers == 1:
                    alone = seconds
                elif workers == args.workers[-1]:
                    rates = list(on_paper(exchanged, alone, args))
                    paper += [[model, threshold or '', count, *(f'{count * rate:,.0f}' for rate in rates)]
                              for count in ON_PAPER]
    print(render_table(['network', 'workers', '2 bits from', 'images/s', 'parameters', 'bytes a step and worker',
                        'of 4 bytes a parameter'], rows, 'markdown'))
    print()
    print(render_table(['network', '2 bits from', 'workers', 'images/s as here, hidden', 'after', 'as stated, hidden',
                        'after'], paper, 'markdown'))


if __name__ == '__main__':
    if sys.argv[1:2] == ['--worker']:
        name, *numbers, store = sys.argv[2:]
        train(name, *(int(number) for number in numbers[:3]), float(numbers[3]), store)
    else:
        main()
