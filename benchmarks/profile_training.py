#!/usr/bin/env python
"""Where the time of a training step goes: kinds of operators of LPRNet-MobileNet beside those of MobileNetV1.

    python benchmarks/profile_training.py
    python benchmarks/profile_training.py --width 0.5 --batch-size 32

One thread, forward, backward and update on one fixed batch. The networks take turns; the table shows, for each kind of
operator, the milliseconds of a step as MXNet's profiler reports them, medians of the steps, in wall time: on a busy
machine their shares say more. Kinds that take less than a hundredth of either network's step are one row.
"""
import argparse
import json
import os
import statistics
import sys
import tempfile
from collections import Counter
from pathlib import Path

os.environ.update(OMP_NUM_THREADS='1', MXNET_ENGINE_TYPE='NaiveEngine',
                  # An operator at a time, so that the profiler sees each.
                  MXNET_EXEC_BULK_EXEC_TRAIN='0')
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import gluon_lprnet  # before MXNet
import mxnet as mx
from mxnet import autograd, gluon
from tabulate import tabulate

from gluon_lprnet.blocks import normalize_in_rank_space
from gluon_lprnet.utils.timing import interleaved_milliseconds

WAYS = 'forward', 'backward'
_REST = 'the rest'
NETWORKS = {'MobileNetV1': 'mobilenetv1', 'LPRNet': 'lprnet_mobilenet'}


class Training:
    """A network with its steps: called, it does one."""

    def __init__(self, name, args):
        self.net = gluon_lprnet.get_model(name, width=args.width)
        self.net.initialize(mx.init.MSRAPrelu())
        normalize_in_rank_space(self.net, True)
        self.net.hybridize(static_alloc=True, static_shape=True)
        self._trainer = gluon.Trainer(self.net.collect_params(), 'sgd', {'learning_rate': 0.01, 'momentum': 0.9},
                                      kvstore=None)
        self._loss = gluon.loss.SoftmaxCrossEntropyLoss()
        self._data = mx.nd.random.normal(shape=(args.batch_size, 3, args.input_size, args.input_size))
        self._label = mx.nd.random.randint(0, 1000, shape=args.batch_size).astype('float32')

    def __call__(self):
        with autograd.record():
            value = self._loss(self.net(self._data), self._label)
        value.backward()
        self._trainer.step(len(self._data))
        mx.nd.waitall()

    def convolutions(self):
        """The kind of each convolution, in the order of a forward pass."""
        symbol = self.net(mx.sym.var('data'))
        shapes = dict(zip(symbol.list_arguments(), symbol.infer_shape(data=self._data.shape)[0]))
        nodes = json.loads(symbol.tojson())['nodes']
        return [self._kind(node, nodes[node['inputs'][1][0]], shapes)
                for node in nodes if node['op'] == 'Convolution']

    @staticmethod
    def _kind(node, weight, shapes):
        if weight['op'] != 'null':
            return 'norm: convolutions with the Gram matrix and with ones'
        shape = shapes[weight['name']]
        if shape[2:] == (1, 1):
            return 'low-rank P1, P2' if 'lpr' in weight['name'] else 'pointwise'
        return 'depthwise' if shape[1] == 1 else 'first convolution'


def profile(steps, rounds):
    """The steps in turns; of each step made, the (name, milliseconds) of its operators, in their order."""
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / 'trace.json'
        mx.profiler.set_config(profile_symbolic=True, profile_imperative=True, filename=str(trace))
        mx.profiler.set_state('run')
        for _ in range(rounds):
            for step in steps:
                step()
        mx.profiler.set_state('stop')
        mx.profiler.dump()
        events = [event for event in json.loads(trace.read_text())['traceEvents'] if event.get('cat') == 'operator']
    spans = sorted(((begin['ts'], -end['ts'], begin['name']) for begin, end in zip(events[::2], events[1::2])))
    # Most operators are reported twice, one span in the other: the inner one counts.
    inner = [span for span, following in zip(spans, spans[1:] + [(0, -float('inf'), '')]) if -following[1] > -span[1]]
    found, was_update = [], True
    for begin, end, name in inner:
        is_update = 'sgd' in name
        if was_update and not is_update:
            found.append([])
        was_update = is_update
        found[-1].append((name, (-end - begin) / 1e3))
    return found


def by_kind(operators, convolutions):
    """Milliseconds by kind and direction. A backward pass has the convolutions of its forward pass in reverse."""
    forward, backward = iter(convolutions), iter(convolutions[::-1])
    taken = Counter()
    for name, milliseconds in operators:
        if name == 'Convolution':
            kind = next(forward)
        elif name == '_backward_Convolution':
            kind = next(backward)
        elif 'sgd' in name:
            kind = 'update'
        else:
            kind = name.removeprefix('_backward_')
        taken[kind, 'backward' if name.startswith('_backward') else 'forward'] += milliseconds
    assert next(forward, None) is None and next(backward, None) is None
    return taken


def merged(taken, small):
    """The same by kind and direction, with the small kinds in one."""
    found = Counter()
    for (kind, way), milliseconds in taken.items():
        found[_REST if kind in small else kind, way] += milliseconds
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--width', type=float, default=1.0)
    parser.add_argument('--input-size', type=int, default=224)
    parser.add_argument('--batch-size', type=int, default=16)
    parser.add_argument('--rounds', type=int, default=7)
    args = parser.parse_args()
    steps = {name: Training(model, args) for name, model in NETWORKS.items()}
    whole = interleaved_milliseconds(list(steps.values()), args.rounds, warm_up=1)
    found = iter(profile(list(steps.values()), args.rounds))
    profiles = {name: [] for name in steps}
    for _ in range(args.rounds):
        for name, step in steps.items():
            profiles[name].append(by_kind(next(found), step.convolutions()))
    medians = {name: {kind: statistics.median(each[kind] for each in found) for kind in found[0]}
               for name, found in profiles.items()}
    sums = {name: sum(found.values()) for name, found in medians.items()}
    shares = Counter()
    for name, found in medians.items():
        for (kind, _), taken in found.items():
            shares[kind, name] += taken / sums[name]
    small = {kind for kind, _ in shares} - {kind for (kind, _), share in shares.items() if share >= 0.01}
    medians = {name: merged(found, small) for name, found in medians.items()}
    kinds = sorted({kind for found in medians.values() for kind, _ in found},
                   key=lambda kind: (kind == _REST, -sum(found[kind, way] for found in medians.values()
                                                         for way in WAYS)))
    print(f'x{args.width:g}, {args.input_size}x{args.input_size}, batch {args.batch_size}, one thread; images/s: '
          + ', '.join(f'{name} {1000 * args.batch_size / statistics.median(times):.1f}'
                      for name, times in zip(steps, whole))
          + f'; ratio of the rounds {statistics.median(base / lpr for base, lpr in zip(*whole)):.2f}\n')
    rows = [(kind, *(f'{found[kind, way]:.0f}' if (kind, way) in found else '' for found in medians.values()
                     for way in WAYS),
             *(f'{sum(found[kind, way] for way in WAYS) / sums[name]:.0%}' for name, found in medians.items()))
            for kind in kinds]
    print(tabulate([*rows, ('all', *(f'{sum(found[kind, way] for kind in kinds):.0f}' for found in medians.values()
                                     for way in WAYS), '', '')],
                   ('ms a step', *(f'{name}, {way}' for name in medians for way in WAYS),
                    *(f'{name}, share' for name in medians)), tablefmt='github', disable_numparse=True))



if __name__ == '__main__':
    main()
