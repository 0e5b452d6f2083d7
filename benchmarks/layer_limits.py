#!/usr/bin/env python
"""The operator library by kind of layer, against the limits of arithmetic and memory of the machine.

    python benchmarks/layer_limits.py
    python benchmarks/layer_limits.py --width 0.5

LPRNet-MobileNet deployed, one thread, batch 1, float32. The library's kernels are compiled as the library is, and each
layer is run alone, on zeros and in strips of rows as in the library (layer_limits.cc). The limit of a layer is the
longer of two times: that of its multiply-adds at the speed of a loop of multiply-adds in registers, and that of what
it reads and writes at the speed of a copy of a feature map's size. What one layer of a module leaves to the next is
not counted, since it stays in the cache. All times are processor time, the fastest of the rounds, those of the machine
too. Last, the whole network as MXNet calls it.
"""
import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

KINDS = {'first': 'first convolution', 'depthwise': 'depthwise', 'P1': 'P1', 'normalization': 'normalization',
         'P2': 'P2, with the residual sum', 'pointwise': 'pointwise', 'average': 'global average pooling',
         'dense': 'dense'}


class Layer(NamedTuple):
    """One of the kernels' layers; height and width are those of the input."""
    kind: str
    inputs: int
    outputs: int
    height: int
    width: int
    stride: int

    @property
    def pixels(self):
        return (1 + (self.height - 1) // self.stride) * (1 + (self.width - 1) // self.stride)

    @property
    def multiply_adds(self):
        """Of the normalization two for each value, of the average none: an addition for each value."""
        taps = {'first': 9 * self.inputs, 'depthwise': 9, 'normalization': 2, 'average': 0}.get(self.kind, self.inputs)
        return taps * self.outputs * self.pixels

    @property
    def bytes(self):
        """What is read and written of feature maps between modules, and of weights."""
        inputs, outputs = self.inputs * self.height * self.width, self.outputs * self.pixels
        weights = {'first': 9 * self.inputs * self.outputs, 'depthwise': 9 * self.outputs, 'normalization': 0,
                   'average': 0}.get(self.kind, self.inputs * self.outputs)
        maps = {'first': inputs + outputs, 'depthwise': inputs, 'P2': 2 * outputs, 'pointwise': outputs,
                'average': inputs}.get(self.kind, 0)
        return 4 * (maps + weights)


def layers(symbol, size):
    """The layers of a deployed LPRNet-MobileNet, in order."""
    from gluon_lprnet.graph import node_shapes
    shapes = node_shapes(symbol, (1, 3, size, size))
    nodes = json.loads(symbol.tojson())['nodes']

    def shape(index):
        return shapes[nodes[index]['name']]

    found = []
    for index, node in enumerate(nodes):
        if node['op'] == 'Convolution':
            weight = shape(node['inputs'][1][0])
            if weight[2:] == (3, 3):
                kind = 'depthwise' if weight[1] == 1 else 'first'
            else:
                is_low_rank = node['attrs'].get('no_bias') == 'True'
                kind = 'pointwise' if not is_low_rank else 'P1' if weight[0] < weight[1] else 'P2'
        else:
            kind = {'L2Normalization': 'normalization', 'Pooling': 'average', 'FullyConnected': 'dense'}.get(node['op'])
        if kind:
            before, after = shape(node['inputs'][0][0]), shape(index)
            # Of a vector the height and width are 1.
            height, width = (*before[2:], 1, 1)[:2]
            stride = height // after[2] if kind in ('first', 'depthwise') else 1
            found.append(Layer(kind, before[1], after[1], height, width, stride))
    return found


def measure(of, rounds):
    """Multiply-adds and copied bytes a second, and the seconds of each layer."""
    from gluon_lprnet.deployment.operators import SOURCES
    compiler, *flags = shlex.split(os.environ.get('CXX', 'g++'))
    source = Path(__file__).with_suffix('.cc')
    with tempfile.TemporaryDirectory() as folder:
        program = f'{folder}/layer_limits'
        subprocess.run([compiler, '-std=c++17', '-O3', '-march=native', *flags, f'-I{SOURCES[0].parent}', str(source),
                        '-o', program], check=True)
        lines = '\n'.join(' '.join(map(str, layer)) for layer in of)
        answer = subprocess.run([program, str(rounds)], input=lines, stdout=subprocess.PIPE, text=True, check=True)
    speed, bandwidth, *nanoseconds = map(float, answer.stdout.split())
    return speed, bandwidth, [each / 1e9 for each in nanoseconds]


def main():
    os.environ.update(OMP_NUM_THREADS='1', MXNET_ENGINE_TYPE='NaiveEngine')
    from gluon_lprnet.utils.flags import positive_float, positive_int
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--width', type=positive_float, default=1.0)
    parser.add_argument('--input-size', type=positive_int, default=224)
    parser.add_argument('--rounds', type=positive_int, default=100)
    args = parser.parse_args()

    import gluon_lprnet  # before MXNet
    import mxnet as mx
    from tabulate import tabulate

    from gluon_lprnet.deployment.operators import BACKEND, load_library
    from gluon_lprnet.deployment.reparametrize import reparametrize
    from gluon_lprnet.graph import as_block, trace
    from gluon_lprnet.utils.timing import interleaved_milliseconds

    net = gluon_lprnet.get_model('lprnet_mobilenet', width=args.width)
    net.initialize(mx.init.MSRAPrelu())
    image = mx.nd.random.normal(shape=(1, 3, args.input_size, args.input_size))
    net(image)
    symbol, params = reparametrize(*trace(net))
    load_library()
    block = as_block(symbol, params)
    block.optimize_for(image, backend=BACKEND, static_alloc=True, static_shape=True)

    def whole():
        return min(interleaved_milliseconds([lambda: block(image).wait_to_read()], args.rounds,
                                           clock=time.thread_time)[0])

    found = layers(symbol, args.input_size)
    first = whole()
    speed, bandwidth, seconds = measure(found, args.rounds)
    pass_ = min(first, whole())
    print(f'One thread: {speed / 1e9:.0f}G multiply-adds a second, {bandwidth / 1e9:.0f} GB/s of reading and writing\n')
    rows, total, limits = [], 0, 0
    for kind, name in KINDS.items():
        chosen = [(layer, taken) for layer, taken in zip(found, seconds) if layer.kind == kind]
        taken, arithmetic, memory, limit = (1e3 * sum(part) for part in zip(*(
            (taken, layer.multiply_adds / speed, layer.bytes / bandwidth,
             max(layer.multiply_adds / speed, layer.bytes / bandwidth)) for layer, taken in chosen)))
        rows.append((name, len(chosen), *(f'{each:.2f}' for each in (taken, arithmetic, memory, limit)),
                     f'{taken / limit:.2f}'))
        total, limits = total + taken, limits + limit
    for name, taken in (('all layers, each alone', total), ('the whole network', pass_)):
        rows.append((name, len(found), f'{taken:.2f}', '', '', f'{limits:.2f}', f'{taken / limits:.2f}'))
    print(tabulate(rows, ('', 'layers', 'ms', 'arithmetic', 'memory', 'limit', 'time / limit'), tablefmt='github',
                   disable_numparse=True))


if __name__ == '__main__':
    main()
