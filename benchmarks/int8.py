#!/usr/bin/env python
"""Latency in 8 bits in ONNX Runtime, and which kinds of layers lose time there: MobileNetV1 and LPRNet deployed.

    python benchmarks/int8.py
    python benchmarks/int8.py --widths 0.5 --networks lprnet_mobilenet

One thread, batch 1. For each width: milliseconds in float32, with all layers in 8 bits, and with those kinds of layers
in float32 that the rule of `export --int8` leaves out on this machine; medians of interleaved passes, in CPU time of
the thread. Networks have random weights, of which time does not depend.
"""
import argparse
import os
import statistics
import sys
import time

os.environ.update(OMP_NUM_THREADS='1', MXNET_ENGINE_TYPE='NaiveEngine')
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

NETWORKS = ('mobilenetv1', 'lprnet_mobilenet')


def measure(name, width, size, rounds):
    """Row of the table for a network."""
    import gluon_lprnet  # before MXNet
    import mxnet as mx
    import numpy as np

    from gluon_lprnet.deployment.quantize import OnnxQuantizer, slow_layers
    from gluon_lprnet.deployment.reparametrize import reparametrize
    from gluon_lprnet.graph import trace
    from gluon_lprnet.utils.timing import interleaved_milliseconds

    images = np.random.default_rng(0).normal(0, 1, (2, 3, size, size)).astype('float32')
    net = gluon_lprnet.get_model(name, width=width)
    net.initialize(mx.init.MSRAPrelu())
    net(mx.nd.array(images))
    quantizer = OnnxQuantizer(*reparametrize(*trace(net)), images, 'naive')
    slow = slow_layers(quantizer, images[:1])
    models = [quantizer.quantize([layer for layer in quantizer.layers if layer not in left_out])
              for left_out in ((), slow)]
    functions = [quantizer.floating, *map(quantizer.function, models)]
    taken = interleaved_milliseconds([lambda run=run: run(images[:1]) for run in functions], rounds,
                                     clock=time.thread_time)
    shares = [statistics.median(a / b for a, b in zip(times, taken[0])) for times in taken[1:]]
    kinds = list(dict.fromkeys(quantizer.kinds[layer] for layer in slow))
    return [f'{name} x{width:g}', *(f'{statistics.median(times):.2f}' for times in taken),
            *(f'{share:.2f}' for share in shares), ', '.join(kinds) or 'none']


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    from gluon_lprnet.utils.flags import positive_float, positive_int
    parser.add_argument('--networks', nargs='+', choices=NETWORKS, default=NETWORKS)
    parser.add_argument('--widths', nargs='+', type=positive_float, default=[0.25, 0.5, 1.0])
    parser.add_argument('--input-size', type=positive_int, default=224)
    parser.add_argument('--rounds', type=positive_int, default=60)
    args = parser.parse_args()
    from tabulate import tabulate
    rows = [measure(name, width, args.input_size, args.rounds) for width in args.widths for name in args.networks]
    print(tabulate(rows, ['', 'float32', 'all in 8 bits', 'by the rule', 'all / float32', 'rule / float32',
                          'left in float32'], tablefmt='github', disable_numparse=True))


if __name__ == '__main__':
    main()
