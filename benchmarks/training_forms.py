#!/usr/bin/env python
"""Images per second in training: networks in their own operators beside their form for training.

    OMP_NUM_THREADS=1 python benchmarks/training_forms.py
    OMP_NUM_THREADS=1 DNNL_MAX_CPU_ISA=AVX2 python benchmarks/training_forms.py mobilenetv2_x0.5 --rounds 7

Forward and backward on one fixed batch at 32x32; the two take turns, medians of the rounds. A network that no rule of
gluon_lprnet/train/fast_form.py is about has one form.
"""
import argparse
import os
import statistics
import sys
from functools import partial

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

# isort: off
import gluon_lprnet  # noqa: F401  before MXNet
# isort: on
import mxnet as mx
from mxnet import autograd, gluon
from tabulate import tabulate

from gluon_lprnet import get_model
from gluon_lprnet.train.fast_form import rewrite
from gluon_lprnet.utils.flags import positive_int
from gluon_lprnet.utils.timing import interleaved_milliseconds

MODELS = ('mobilenetv2_x0.5', 'igcv3_x0.5', 'espnetv2_x1.0', 'mnasnet_x0.5', 'shufflenetv1_x0.5', 'condensenet_x1.0',
          'densenet40_x1.0', 'irregular_densenet40_x1.0', 'mobilenetv1_x0.5', 'lprnet_mobilenet_x0.5')
# Of networks that learn in a layout of their own.
LAYOUTS = {'condensenet_x1.0': {'condensing': True}, 'irregular_densenet40_x1.0': {'relaxed': True}}
CLASSES, SIDE = 10, 32


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('models', nargs='*', default=MODELS, metavar='MODEL')
    parser.add_argument('--batch-size', type=positive_int, default=64)
    parser.add_argument('--rounds', type=positive_int, default=5)
    args = parser.parse_args()
    images = mx.nd.random.uniform(-1, 1, (args.batch_size, 3, SIDE, SIDE))
    labels = mx.nd.array(range(args.batch_size)) % CLASSES
    entropy = gluon.loss.SoftmaxCrossEntropyLoss()

    def step(block):
        with autograd.record():
            loss = entropy(block(images), labels)
        loss.backward()
        mx.nd.waitall()

    rows = []
    for model in args.models:
        net = get_model(model, classes=CLASSES, small_image=True, **LAYOUTS.get(model, {}))
        net.initialize(mx.init.MSRAPrelu())
        net.hybridize(static_alloc=True, static_shape=True)
        forms = [net, rewrite(net, (1, *images.shape[1:]), every_rule=True)]
        times = interleaved_milliseconds([partial(step, form) for form in forms], args.rounds, warm_up=2)
        own, form = (1000 * args.batch_size / statistics.median(each) for each in times)
        rows.append((model, f'{own:.0f}', f'{form:.0f}', f'{form / own:.2f}'))
    print(tabulate(rows, ('images/s', 'own operators', 'form for training', 'ratio'), tablefmt='github',
                   disable_numparse=True))


if __name__ == '__main__':
    main()
