#!/usr/bin/env python
"""Images per second in training with MXNet's memory in pages of the system's usual size, and in huge pages.

    OMP_NUM_THREADS=1 python benchmarks/huge_pages.py
    OMP_NUM_THREADS=1 python benchmarks/huge_pages.py lprnet_mobilenet_x0.25 --batch-size 64 --rounds 7

Forward, backward and update on one fixed batch at 224x224. glibc reads its settings as a process starts, so that each
measurement is a process of its own; the two kinds take turns, medians of the rounds. For Linux with glibc 2.35 or
later, where /sys/kernel/mm/transparent_hugepage/enabled says [madvise]: with [always] all memory is in huge pages
already, and with [never] none.
"""
import argparse
import os
import statistics
import subprocess
import sys
import time

from tabulate import tabulate

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from gluon_lprnet.utils.flags import positive_int

MODELS = 'lprnet_mobilenet_x0.5', 'lprnet_mobilenet_x1.0', 'mobilenetv1_x1.0'
HUGE = {'GLIBC_TUNABLES': 'glibc.malloc.hugetlb=1'}
WARM_UP, STEPS = 2, 8


def images_per_second(model, batch_size):
    """Of this process: the median of some steps."""
    import mxnet as mx
    from mxnet import autograd, gluon

    from gluon_lprnet import get_model
    from gluon_lprnet.blocks import normalize_in_rank_space
    net = get_model(model)
    net.initialize(mx.init.MSRAPrelu())
    normalize_in_rank_space(net, True)
    net.hybridize(static_alloc=True, static_shape=True)
    images = mx.nd.random.uniform(-1, 1, (batch_size, 3, 224, 224))
    labels = mx.nd.zeros(batch_size)
    entropy = gluon.loss.SoftmaxCrossEntropyLoss()
    trainer = gluon.Trainer(net.collect_params(), 'sgd', {'learning_rate': 0.01, 'momentum': 0.9}, kvstore=None)
    times = []
    for _ in range(WARM_UP + STEPS):
        begin = time.perf_counter()
        with autograd.record():
            loss = entropy(net(images), labels)
        loss.backward()
        trainer.step(batch_size)
        mx.nd.waitall()
        times.append(time.perf_counter() - begin)
    return batch_size / statistics.median(times[WARM_UP:])


def in_a_process(model, batch_size, variables):
    command = [sys.executable, __file__, model, '--batch-size', str(batch_size), '--alone']
    return float(subprocess.run(command, env={**os.environ, **variables}, check=True, stdout=subprocess.PIPE).stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('models', nargs='*', default=MODELS, metavar='MODEL')
    parser.add_argument('--batch-size', type=positive_int, default=32)
    parser.add_argument('--rounds', type=positive_int, default=5)
    parser.add_argument('--alone', action='store_true', help='measure one model in this process')
    args = parser.parse_args()
    if args.alone:
        print(images_per_second(args.models[0], args.batch_size))
        return
    rows = []
    for model in args.models:
        rounds = [[in_a_process(model, args.batch_size, variables) for variables in ({}, HUGE)]
                  for _ in range(args.rounds)]
        usual, huge = (statistics.median(found) for found in zip(*rounds))
        rows.append((model, f'{usual:.1f}', f'{huge:.1f}', f'{huge / usual:.2f}'))
    print(tabulate(rows, ('images/s', 'usual pages', 'huge pages', 'ratio'), tablefmt='github', disable_numparse=True))


if __name__ == '__main__':
    main()
