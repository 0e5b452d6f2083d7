#!/usr/bin/env python
"""Latency in 8 bits, in ONNX Runtime and in the operator library: MobileNetV1 and LPRNet deployed.

    python benchmarks/int8.py
    python benchmarks/int8.py --widths 0.5 --networks lprnet_mobilenet

One thread, batch 1. For each width: milliseconds in float32 and in 8 bits, medians of passes that take turns, all in
one process and in CPU time of the thread. In ONNX Runtime 8 bits are all layers, or all but those kinds that the rule
of `export --int8` leaves in float32 on this machine, whichever is faster; in the library they are all layers. Last, for
each width, the time of MobileNetV1 in ONNX Runtime, in 8 bits, over that of each network in its faster form of 8 bits,
the median of the rounds. Networks have random weights, of which time does not depend.
"""
import argparse
import os
import statistics
import sys
import time

os.environ.update(OMP_NUM_THREADS='1', MXNET_ENGINE_TYPE='NaiveEngine')
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

BASE = 'mobilenetv1'
NETWORKS = (BASE, 'lprnet_mobilenet')
FORMS = ('ONNX Runtime, float32', 'ONNX Runtime, 8 bits', 'ONNX Runtime, by the rule', 'library, float32',
         'library, 8 bits')


def load(name, width, size):
    """The forms of a network, functions in the order of FORMS, and the kinds that the rule leaves out.

    Each has the image as its runtime takes it: an ndarray, or one of MXNet's.
    """
    import gluon_lprnet  # before MXNet
    import mxnet as mx
    import numpy as np

    from gluon_lprnet.deployment.quantize import LibraryQuantizer, OnnxQuantizer, slow_layers
    from gluon_lprnet.deployment.reparametrize import reparametrize
    from gluon_lprnet.graph import as_block, trace

    images = np.random.default_rng(0).normal(0, 1, (2, 3, size, size)).astype('float32')
    net = gluon_lprnet.get_model(name, width=width)
    net.initialize(mx.init.MSRAPrelu())
    net(mx.nd.array(images))
    form = reparametrize(*trace(net))
    onnx, library = (quantizer_of(*form, images, 'naive') for quantizer_of in (OnnxQuantizer, LibraryQuantizer))
    slow = slow_layers(onnx, images[:1])
    kinds = list(dict.fromkeys(onnx.kinds[layer] for layer in slow))
    sessions = [onnx.floating, onnx.function(onnx.quantize(list(onnx.layers))),
                onnx.function(onnx.quantize([layer for layer in onnx.layers if layer not in slow]))]
    image = mx.nd.array(images[:1])
    blocks = [as_block(*library.quantize(chosen)) for chosen in ([], list(library.layers))]
    for block in blocks:
        block.hybridize(static_alloc=True, static_shape=True)
    return [*(lambda run=run: run(images[:1]) for run in sessions),
            *(lambda block=block: block(image).wait_to_read() for block in blocks)], kinds


def measure(networks, width, size, rounds):
    """Rows of the table for a width."""
    from gluon_lprnet.utils.timing import interleaved_milliseconds
    loaded = {name: load(name, width, size) for name in networks}
    taken = interleaved_milliseconds([run for forms, _ in loaded.values() for run in forms], rounds,
                                     clock=time.thread_time)
    times = {name: taken[index * len(FORMS):(index + 1) * len(FORMS)] for index, name in enumerate(networks)}

    def fastest(*forms):
        return min(forms, key=statistics.median)

    for name, (float_onnx, *int8_onnx, float_library, int8_library) in times.items():
        speed = '-'
        if BASE in times:
            base = fastest(*times[BASE][1:3])
            best = fastest(*int8_onnx, int8_library)
            speed = f'{statistics.median(a / b for a, b in zip(base, best)):.2f}'
        yield [f'{name} x{width:g}',
               *(f'{statistics.median(each):.2f}' for each in (float_onnx, *int8_onnx, float_library, int8_library)),
               speed, ', '.join(loaded[name][1]) or 'none']


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    from gluon_lprnet.utils.flags import positive_float, positive_int
    parser.add_argument('--networks', nargs='+', choices=NETWORKS, default=NETWORKS)
    parser.add_argument('--widths', nargs='+', type=positive_float, default=[0.25, 0.5, 1.0])
    parser.add_argument('--input-size', type=positive_int, default=224)
    parser.add_argument('--rounds', type=positive_int, default=60)
    args = parser.parse_args()
    from tabulate import tabulate
    rows = [row for width in args.widths for row in measure(args.networks, width, args.input_size, args.rounds)]
    print(tabulate(rows, ['', *FORMS, 'speed', 'left in float32 by the rule'], tablefmt='github',
                   disable_numparse=True))


if __name__ == '__main__':
    main()
