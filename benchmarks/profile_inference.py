#!/usr/bin/env python
"""Where the time of a pass goes: operators of a runtime, against the arithmetic and bandwidth of the machine.

    python benchmarks/profile_inference.py
    python benchmarks/profile_inference.py --width 0.5 --networks deployed --runtimes onnxruntime

One thread, batch 1. First the machine: multiply-adds of a matrix product, bytes of a triad in memory and in cache.
Then, for each kind of operator, its time as the runtime's own profiler reports it (median of the passes, operator by
operator), what its multiply-adds take at the speed of the matrix product, and what its inputs, outputs and weights
take at the bandwidth of the cache. `between` is what a pass takes beside its operators, without the profiler.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

os.environ.update(OMP_NUM_THREADS='1', OPENBLAS_NUM_THREADS='1', MXNET_ENGINE_TYPE='NaiveEngine',
                  # An operator at a time, so that the profiler sees each.
                  MXNET_EXEC_BULK_EXEC_INFERENCE='0')

import inference
import numpy as np

from gluon_lprnet.graph import node_shapes
from gluon_lprnet.utils.timing import interleaved_milliseconds

RUNTIMES = ('fused', 'operators', 'onnxruntime')
NETWORKS = ('mobilenetv1', 'deployed')
PASSES = 100


def machine_limits():
    """Multiply-adds a second of oneDNN's matrix product; bytes a second of a triad in memory, and in 512 KiB."""
    import mxnet as mx

    def fastest(step):
        return min(interleaved_milliseconds([step], 9, warm_up=0)[0]) / 1e3

    def bandwidth(length, repeats):
        x, y, z = (np.ones(length, 'float32') for _ in range(3))
        return repeats * 12 * length / fastest(lambda: [np.add(x, y, out=z) for _ in range(repeats)])

    # As it is called by a dense layer; NumPy's and MXNet's own BLAS may not know the processor.
    a, b = (mx.nd.random.normal(shape=(1024, 1024)) for _ in range(2))
    dense = fastest(lambda: mx.nd.FullyConnected(a, b, no_bias=True, num_hidden=1024).wait_to_read())
    return 1024 ** 3 / dense, bandwidth(2 ** 24, 1), bandwidth(2 ** 19 // 12, 200)


def layers(symbol, size):
    """(kind, multiply-adds, bytes) of each convolution and dense layer of a deployed or trained network, in order."""
    shapes = node_shapes(symbol, (1, 3, size, size))
    nodes = json.loads(symbol.tojson())['nodes']

    def shape(index):
        return shapes[nodes[index]['name']]

    found = []
    for index, node in enumerate(nodes):
        if node['op'] not in ('Convolution', 'FullyConnected'):
            continue
        data, weight = (shape(entry[0]) for entry in node['inputs'][:2])
        output = shape(index)
        multiply_adds = np.prod(weight) * np.prod(output[2:])
        if node['op'] == 'FullyConnected':
            kind = 'dense'
        elif weight[1] == 1:
            kind = 'depthwise'
        elif weight[2:] != (1, 1):
            kind = 'first convolution'
        else:
            low_rank = 'lpr' in node['name'] and node['attrs'].get('no_bias') == 'True'
            kind = 'low-rank P1, P2' if low_rank else 'pointwise'
        found.append((kind, multiply_adds, 4 * (np.prod(data) + np.prod(weight) + np.prod(output))))
    return found


def by_operator(events):
    """From (name, milliseconds) of some passes, one after the other, to the median of each operator of a pass."""
    count = len(events) // PASSES
    names = [name for name, _ in events[:count]]
    assert len(events) == count * PASSES and names == [name for name, _ in events[-count:]]
    return [(name, statistics.median(time for _, time in events[index::count])) for index, name in enumerate(names)]


def profile_mxnet(step, folder):
    import mxnet as mx
    trace = f'{folder}/trace.json'
    mx.profiler.set_config(profile_symbolic=True, filename=trace)
    mx.profiler.set_state('run')
    for _ in range(PASSES):
        step()
    mx.profiler.set_state('stop')
    mx.profiler.dump()
    events = [event for event in json.loads(Path(trace).read_text())['traceEvents']
              if event.get('cat') == 'operator' and event['name'] not in ('DeleteVariable', 'Reorder')]
    spans = sorted(((begin['ts'], -end['ts'], begin['name']) for begin, end in zip(events[::2], events[1::2])))
    # Most operators are reported twice, one span in the other: the inner one counts.
    inner = [span for span, following in zip(spans, spans[1:] + [(0, -float('inf'), '')]) if -following[1] > -span[1]]
    return by_operator([(name, (-end - begin) / 1e3) for begin, end, name in inner])


def profile_onnxruntime(prefix, data, folder):
    import onnxruntime
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.enable_profiling = True
    options.profile_file_prefix = f'{folder}/trace'
    session = onnxruntime.InferenceSession(f'{prefix}.onnx', options, providers=['CPUExecutionProvider'])
    for _ in range(PASSES):
        session.run(None, {'data': data})
    events = json.loads(Path(session.end_profiling()).read_text())
    return by_operator([(event['args']['op_name'], event['dur'] / 1e3) for event in events
                        if event.get('cat') == 'Node' and event['name'].endswith('kernel_time')])


def work(runtime, prefix, size):
    """Milliseconds of a pass, and those of its operators, as JSON; the process of a runtime."""
    data = np.random.default_rng(0).normal(0, 1, (1, 3, size, size)).astype('float32')
    step = inference.LOADERS[runtime](prefix, data)
    # Of the thread, so that other processes count no more here than in the short spans of the operators.
    times, = interleaved_milliseconds([step], PASSES, warm_up=PASSES, clock=time.thread_time)
    with tempfile.TemporaryDirectory() as folder:
        operators = (profile_onnxruntime(prefix, data, folder) if runtime == 'onnxruntime'
                     else profile_mxnet(step, folder))
    print(json.dumps([statistics.median(times), operators]))


def kinds(operators, symbol, size):
    """The operators' kinds: dict to [operators, milliseconds, multiply-adds, bytes]."""
    rest = layers(symbol, size)
    totals = defaultdict(lambda: [0, 0.0, 0, 0])
    for name, milliseconds in operators:
        if name == 'lprnet_network':
            kind = 'whole network'
            multiply_adds, size_of = (sum(layer[position] for layer in rest) for position in (1, 2))
            rest = []
        elif 'conv' in name.lower() or name in ('Gemm', 'FullyConnected', '_sg_mkldnn_fully_connected'):
            kind, multiply_adds, size_of = rest.pop(0)
        else:
            kind, multiply_adds, size_of = name, 0, 0
        for position, value in enumerate((1, milliseconds, multiply_adds, size_of)):
            totals[kind][position] += value
    assert not rest
    return totals


def main():
    if sys.argv[1:2] == ['--worker']:
        return work(*sys.argv[2:4], int(sys.argv[4]))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--networks', nargs='+', choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument('--runtimes', nargs='+', choices=RUNTIMES, default=list(RUNTIMES))
    parser.add_argument('--width', type=float, default=1.0)
    parser.add_argument('--input-size', type=int, default=224)
    args = parser.parse_args()
    import gluon_lprnet  # noqa: F401  before MXNet
    import mxnet as mx
    from tabulate import tabulate

    multiply_adds, memory, cache = machine_limits()
    print(f'One thread: {multiply_adds / 1e9:.0f}G multiply-adds a second, {memory / 1e9:.0f} GB/s in memory, '
          f'{cache / 1e9:.0f} GB/s in cache')
    with tempfile.TemporaryDirectory() as folder:
        prefixes = inference.write_networks(folder, args.width, args)
        for runtime in args.runtimes:
            for network in args.networks:
                answer = subprocess.run([sys.executable, __file__, '--worker', runtime, prefixes[runtime, network],
                                         str(args.input_size)], check=True, stdout=subprocess.PIPE, text=True).stdout
                whole, operators = json.loads(answer.splitlines()[-1])
                totals = kinds(operators, mx.sym.load(f'{folder}/{network}-symbol.json'), args.input_size)
                rows = [(kind, count, f'{milliseconds:.2f}', f'{milliseconds / whole:.0%}',
                         *(f'{1e3 * part / limit:.2f}' if part else ''
                           for part, limit in ((work, multiply_adds), (size, cache))))
                        for kind, (count, milliseconds, work, size)
                        in sorted(totals.items(), key=lambda item: -item[1][1])]
                between = whole - sum(total[1] for total in totals.values())
                rows.append(('between', '', f'{between:.2f}', f'{between / whole:.0%}', '', ''))
                print(f'\n### {inference.NETWORKS[network][0]} x{args.width:g}, {inference.RUNTIMES[runtime][0]}: '
                      f'{whole:.2f} ms\n')
                print(tabulate(rows, ('', 'operators', 'ms', 'share', 'ms by arithmetic', 'ms by bandwidth'),
                               tablefmt='github', disable_numparse=True))


if __name__ == '__main__':
    main()
