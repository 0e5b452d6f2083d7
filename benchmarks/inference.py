#!/usr/bin/env python
"""Latency of inference: LPRNet as trained and deployed beside the other networks, in every runtime, in one run.

    python benchmarks/inference.py
    python benchmarks/inference.py --widths 0.5 1.0 --batch-sizes 1 --runtimes fused operators onnxruntime

A runtime with a number of threads is a process of its own, since threads and engine are read when it starts. The
processes take turns: a round has a visit to each network in each of them, and a visit is one pass that does not count
and some that do. The tables show the median of the rounds, with the first and third quartile; ratios are taken within
a round. Networks have random weights, of which time does not depend.
"""
import argparse
import importlib.util
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

CORES = len(os.sched_getaffinity(0))

# Name: what the table calls it, and the package that it needs.
RUNTIMES = {
    'hybridized': ('MXNet hybridized', 'mxnet'),
    'fused': ('MXNet fused', 'mxnet'),
    'operators': ('MXNet, operator library', 'mxnet'),
    'onnxruntime': ('ONNX Runtime', 'onnxruntime'),
    'openvino': ('OpenVINO', 'openvino'),
    'pytorch': ('PyTorch', 'onnx2torch'),
}
# Name: what the table calls it, the family, and whether it is in the deployed form.
NETWORKS = {
    'mobilenetv1': ('MobileNetV1', 'mobilenetv1', False),
    'mobilenetv2': ('MobileNetV2', 'mobilenetv2', False),
    'shufflenetv2': ('ShuffleNetV2', 'shufflenetv2', False),
    'trained': ('LPRNet as trained', 'lprnet_mobilenet', False),
    'deployed': ('LPRNet deployed', 'lprnet_mobilenet', True),
}
# The operator library is for the deployed form, which MobileNetV1 has too; onnx2torch does not convert ShuffleNetV2.
NETWORKS_OF = {'operators': ('mobilenetv1', 'deployed'),
               'pytorch': ('mobilenetv1', 'mobilenetv2', 'trained', 'deployed')}

BASE, OURS = 'mobilenetv1', 'deployed'
LIBRARY, ITS_RIVAL = 'operators', 'onnxruntime'
# Of one thread. By width, the speed of LPRNet in the operator library over the fastest MobileNetV1, at batch 1; and the
# library's time over ONNX Runtime's, of LPRNet at any batch.
SPEED_AIMS = {0.25: 1.5, 0.5: 1.8, 1.0: 2.0}
LIBRARY_OVER_RIVAL = 1.0

# Milliseconds of measured passes in a visit, about; one pass at least.
VISIT = 20


# What a process of a runtime does: a loader takes the prefix of a network's files and an input, and gives a pass.

def load_mxnet(prefix, data):
    import gluon_lprnet  # noqa: F401  before MXNet
    import mxnet as mx
    block = mx.gluon.SymbolBlock.imports(f'{prefix}-symbol.json', ['data'], f'{prefix}-0000.params')
    return block, mx.nd.array(data)


def load_hybridized(prefix, data):
    block, data = load_mxnet(prefix, data)
    block.hybridize(static_alloc=True, static_shape=True)
    return lambda: block(data).wait_to_read()


def load_fused(prefix, data):
    block, data = load_mxnet(prefix, data)
    block.optimize_for(data, backend='MKLDNN', static_alloc=True, static_shape=True)
    return lambda: block(data).wait_to_read()


def load_operators(prefix, data):
    import mxnet as mx
    block, data = load_mxnet(prefix, data)
    from gluon_lprnet.deployment.operators import BACKEND, load_library
    load_library()
    mx.nd.waitall()
    block.optimize_for(data, backend=BACKEND, static_alloc=True, static_shape=True)
    return lambda: block(data).wait_to_read()


def load_onnxruntime(prefix, data):
    import onnxruntime
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(os.environ['OMP_NUM_THREADS'])
    session = onnxruntime.InferenceSession(f'{prefix}.onnx', options, providers=['CPUExecutionProvider'])
    return lambda: session.run(None, {'data': data})


def load_openvino(prefix, data):
    import openvino
    core = openvino.Core()
    model = core.read_model(f'{prefix}.onnx')
    model.reshape(data.shape)
    # float32, as everywhere else: the default is bfloat16 where the processor has it.
    compiled = core.compile_model(model, 'CPU', {'INFERENCE_NUM_THREADS': os.environ['OMP_NUM_THREADS'],
                                                 'PERFORMANCE_HINT': 'LATENCY', 'INFERENCE_PRECISION_HINT': 'f32'})
    request = compiled.create_infer_request()
    return lambda: request.infer({'data': data}, share_inputs=True)


def load_pytorch(prefix, data):
    import onnx2torch
    import torch
    torch.set_num_threads(int(os.environ['OMP_NUM_THREADS']))
    data = torch.from_numpy(data)
    with torch.no_grad():
        traced = torch.jit.trace(onnx2torch.convert(f'{prefix}.onnx').eval(), data)
        compiled = torch.jit.optimize_for_inference(torch.jit.freeze(traced))

    def run():
        with torch.inference_mode():
            compiled(data)
    return run


LOADERS = {'hybridized': load_hybridized, 'fused': load_fused, 'operators': load_operators,
           'onnxruntime': load_onnxruntime, 'openvino': load_openvino, 'pytorch': load_pytorch}


def work(runtime, clock):
    """Load networks and time passes, as the lines of standard input say; answers in JSON."""
    import numpy as np
    from gluon_lprnet.utils.timing import interleaved_milliseconds
    answers = os.fdopen(os.dup(1), 'w')
    # For all else that a library prints.
    os.dup2(2, 1)
    passes = {}
    for line in sys.stdin:
        order, *arguments = json.loads(line)
        answer = None
        if order == 'load':
            name, prefix, shape = arguments
            data = np.random.default_rng(0).normal(0, 1, shape).astype('float32')
            step = LOADERS[runtime](prefix, data)
            fastest = min(interleaved_milliseconds([step], 3, warm_up=1, clock=clock)[0])
            passes[name] = step, max(1, round(VISIT / fastest))
        elif order == 'clear':
            passes.clear()
        else:
            (step, rounds), = (passes[name] for name in arguments)
            answer = statistics.median(interleaved_milliseconds([step], rounds, warm_up=1, clock=clock)[0])
        answers.write(json.dumps(answer) + '\n')
        answers.flush()


class Worker:
    """The process of a runtime with a number of threads."""

    def __init__(self, runtime, threads, engine, clock):
        environment = dict(os.environ, OMP_NUM_THREADS=str(threads), MXNET_ENGINE_TYPE=engine)
        # In a session of its own, so that Ctrl-C is for the parent.
        self.process = subprocess.Popen([sys.executable, __file__, '--worker', runtime, clock], env=environment,
                                        text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        stderr=subprocess.DEVNULL, start_new_session=True)

    def ask(self, *order):
        print(json.dumps(order), file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f'the process for {order} ended')
        return json.loads(answer)

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def write_networks(folder, width, args):
    """The files of each network at a width; dict from (runtime, network) to their prefix."""
    import gluon_lprnet  # before MXNet
    import mxnet as mx
    from gluon_lprnet.deployment.onnx import write_onnx
    from gluon_lprnet.deployment.reparametrize import reparametrize
    from gluon_lprnet.graph import trace
    from gluon_lprnet.utils.errors import InputError
    image = (3, args.input_size, args.input_size)

    def save(symbol, params, prefix):
        auxiliary = set(symbol.list_auxiliary_states())
        symbol.save(f'{prefix}-symbol.json')
        mx.nd.save(f'{prefix}-0000.params', {('aux:' if name in auxiliary else 'arg:') + name: value
                                             for name, value in params.items()})

    prefixes = {}
    for network in args.networks:
        _, family, deployed = NETWORKS[network]
        try:
            net = gluon_lprnet.get_model(family, width=width)
        except InputError:
            continue
        net.initialize(mx.init.MSRAPrelu())
        net(mx.nd.zeros((1, *image)))
        trained = trace(net)
        written = reparametrize(*trained) if deployed else trained
        prefix = f'{folder}/{network}'
        save(*written, prefix)
        if {'onnxruntime', 'openvino', 'pytorch'} & set(args.runtimes):
            write_onnx(*written, image, f'{prefix}.onnx')
        for runtime in args.runtimes:
            if network in NETWORKS_OF.get(runtime, NETWORKS):
                prefixes[runtime, network] = prefix
        if ('operators', network) in prefixes and not deployed:
            prefix = prefixes['operators', network] = f'{prefix}-deployed'
            save(*reparametrize(*trained), prefix)
    return prefixes


def measure(workers, prefixes, batch_size, seconds, args):
    """Rounds of visits to every network of every worker: dict from (runtime, threads, network) to milliseconds."""
    cells = [(worker, network) for worker in workers for network in args.networks if (worker[0], network) in prefixes]
    for worker, network in cells:
        workers[worker].ask('load', network, prefixes[worker[0], network],
                            [batch_size, 3, args.input_size, args.input_size])
    times = {(*worker, network): [] for worker, network in cells}
    end = time.monotonic() + seconds
    for done in range(args.rounds):
        # Backwards every other round, so that nobody has always the same one before it.
        for worker, network in cells[::-1] if done % 2 else cells:
            times[(*worker, network)].append(workers[worker].ask('run', network))
        if done >= 2 and time.monotonic() > end:
            break
    for worker in workers.values():
        worker.ask('clear')
    return times


def median_of_ratios(numerator, denominator):
    return statistics.median(a / b for a, b in zip(numerator, denominator))


def latency_tables(times, args):
    from tabulate import tabulate
    for batch_size in args.batch_sizes:
        for threads in args.threads:
            rows = []
            for runtime in args.runtimes:
                for network in args.networks:
                    cells = [times.get((width, batch_size, runtime, threads, network)) for width in args.widths]
                    if any(cells):
                        rows.append([RUNTIMES[runtime][0], NETWORKS[network][0], *map(_cell, cells)])
                if {BASE, OURS} <= set(args.networks):
                    rows.append([RUNTIMES[runtime][0], '**MobileNetV1 / LPRNet deployed**',
                                 *(_ratio(times, (width, batch_size, runtime, threads)) for width in args.widths)])
            yield (f'{threads} thread{"s" * (threads > 1)}, batch {batch_size}, {args.input_size}x{args.input_size}; '
                   'milliseconds a pass, median (quartiles)',
                   tabulate(rows, ['', '', *(f'x{width:g}' for width in args.widths)], tablefmt='github'))


def _cell(values):
    if not values:
        return '-'
    low, high = _quartiles(values)
    digits = 2 if low < 10 else 1
    return f'{statistics.median(values):.{digits}f} ({low:.{digits}f}-{high:.{digits}f})'


def _quartiles(values):
    low, _, high = statistics.quantiles(values, n=4, method='inclusive')
    return low, high


def _ratio(times, key):
    if (*key, BASE) not in times:
        return '-'
    return f'**{median_of_ratios(times[(*key, BASE)], times[(*key, OURS)]):.2f}**'


def aims(times, args):
    """Rows of ratio, width, batch, aim, measured, met or missed."""
    for width in args.widths:
        ours = times.get((width, 1, LIBRARY, 1, OURS))
        bases = list(filter(None, (times.get((width, 1, runtime, 1, BASE)) for runtime in args.runtimes)))
        if width in SPEED_AIMS and ours and bases:
            yield _judged('speed of LPRNet in the operator library over the fastest MobileNetV1', width, 1,
                          SPEED_AIMS[width], median_of_ratios(min(bases, key=statistics.median), ours), 1)
    for batch_size in args.batch_sizes:
        for width in args.widths:
            ours, other = (times.get((width, batch_size, runtime, 1, OURS)) for runtime in (LIBRARY, ITS_RIVAL))
            if ours and other:
                yield _judged("time of LPRNet in the operator library over ONNX Runtime's", width, batch_size,
                              LIBRARY_OVER_RIVAL, median_of_ratios(ours, other), -1)
    for runtime in ('hybridized', 'fused', LIBRARY):
        for width in args.widths:
            one, every = (times.get((width, 1, runtime, threads, OURS)) for threads in (1, CORES))
            if one and every and CORES > 1:
                yield _judged(f"{RUNTIMES[runtime][0]}: time on {CORES} threads over one thread's", width, 1, 1.0,
                              median_of_ratios(every, one), -1)


def _judged(what, width, batch_size, aim, value, sign):
    return [what, f'x{width:g}', batch_size, f'{"at least" if sign > 0 else "at most"} {aim}', f'{value:.2f}',
            'met' if sign * value >= sign * aim else 'missed']


def write_csv_files(prefix, times, args):
    """``PREFIX.csv``, a median with its quartiles a line, ``PREFIX_ratios.csv`` and ``PREFIX_aims.csv``."""
    from gluon_lprnet.evaluate.figures import write_csv
    keys = [(width, batch_size, runtime, threads, network) for threads in args.threads
            for batch_size in args.batch_sizes for runtime in args.runtimes for network in args.networks
            for width in args.widths]
    write_csv(prefix, ('threads', 'batch', 'runtime', 'network', 'width', 'median_ms', 'lower_quartile_ms',
                       'upper_quartile_ms'),
              [(threads, batch_size, RUNTIMES[runtime][0], NETWORKS[network][0], width,
                *(f'{value:.3g}' for value in (statistics.median(found), *_quartiles(found))))
               for width, batch_size, runtime, threads, network in keys
               if (found := times.get((width, batch_size, runtime, threads, network)))])
    write_csv(f'{prefix}_ratios', ('threads', 'batch', 'runtime', 'width', 'mobilenetv1_over_lprnet_deployed'),
              [(threads, batch_size, RUNTIMES[runtime][0], width, f'{median_of_ratios(found, ours):.2f}')
               for width, batch_size, runtime, threads, network in keys if network == BASE
               if (found := times.get((width, batch_size, runtime, threads, BASE)))
               if (ours := times.get((width, batch_size, runtime, threads, OURS)))])
    write_csv(f'{prefix}_aims', ('ratio', 'width', 'batch', 'aim', 'measured', 'verdict'), list(aims(times, args)))


def versions(args):
    from importlib import metadata
    packages = {'mxnet': 'mxnet', 'onnxruntime': 'onnxruntime', 'openvino': 'openvino', 'onnx2torch': 'torch'}
    used = {RUNTIMES[runtime][1] for runtime in args.runtimes}
    return ', '.join(f'{name} {metadata.version(name)}' for package, name in packages.items() if package in used)


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    from gluon_lprnet.utils.flags import positive_float, positive_int
    parser.add_argument('--networks', nargs='+', choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument('--widths', nargs='+', type=positive_float, default=[0.25, 0.5, 0.75, 1.0, 1.25, 1.5])
    parser.add_argument('--batch-sizes', nargs='+', type=positive_int, default=[1, 32])
    parser.add_argument('--threads', nargs='+', type=positive_int, default=sorted({1, CORES}),
                        help='default: one and all cores')
    parser.add_argument('--runtimes', nargs='+', choices=RUNTIMES, default=None,
                        help='default: those whose package is installed')
    parser.add_argument('--input-size', type=positive_int, default=224)
    parser.add_argument('--engine', default='NaiveEngine', help="MXNet's engine (default: %(default)s)")
    parser.add_argument('--rounds', type=positive_int, default=41, help='at most (default: %(default)s)')
    parser.add_argument('--minutes', type=positive_float, default=30, help='for all rounds, roughly, of which there '
                        'are at least three (default: %(default)s)')
    parser.add_argument('--csv', metavar='PREFIX', help='write PREFIX.csv, PREFIX_ratios.csv and PREFIX_aims.csv')
    parser.add_argument('--cpu-time', action='store_true', help='CPU time of the thread that calls, for a machine on '
                        'which other jobs run; needs --threads 1')
    args = parser.parse_args()
    if args.cpu_time and args.threads != [1]:
        parser.error('--cpu-time needs --threads 1: it is that of one thread.')
    missing = [runtime for runtime, (_, package) in RUNTIMES.items() if importlib.util.find_spec(package) is None]
    if args.runtimes is None:
        args.runtimes = [runtime for runtime in RUNTIMES if runtime not in missing]
        for runtime in missing:
            print(f'{RUNTIMES[runtime][0]} is left out: {RUNTIMES[runtime][1]} is not installed.', file=sys.stderr)
    elif set(missing) & set(args.runtimes):
        parser.error(f'not installed: {", ".join(RUNTIMES[runtime][1] for runtime in missing)}.')
    return args


def main():
    if sys.argv[1:2] == ['--worker']:
        return work(sys.argv[2], getattr(time, sys.argv[3]))
    args = parse_args()
    from tabulate import tabulate
    from tqdm import tqdm
    # One thread and all side by side where they are compared; else one after the other, to hold fewer networks.
    groups = [(batch_size, width, threads) for batch_size in args.batch_sizes for width in args.widths
              for threads in ([args.threads] if batch_size == 1 else [[count] for count in args.threads])]
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    load_before = os.getloadavg()[0]
    clock = 'thread_time' if args.cpu_time else 'perf_counter'
    workers = {(runtime, threads): Worker(runtime, threads, args.engine, clock)
               for runtime in args.runtimes for threads in args.threads}
    times = {}
    try:
        for batch_size, width, threads in tqdm(groups, unit='group'):
            with tempfile.TemporaryDirectory() as folder:
                found = measure({worker: workers[worker] for worker in workers if worker[1] in threads},
                                write_networks(folder, width, args), batch_size, 60 * args.minutes / len(groups), args)
            times.update({(width, batch_size, *key): values for key, values in found.items()})
    except KeyboardInterrupt:
        print('interrupted: the tables have the groups that are whole', file=sys.stderr)
    finally:
        for worker in workers.values():
            worker.close()
    if not times:
        return
    rounds = [len(values) for values in times.values()]
    print(f'{versions(args)}; {args.engine}; {"CPU time; " if args.cpu_time else ""}{min(rounds)} to {max(rounds)} '
          f'rounds; load average {load_before:.1f} '
          f'before, {os.getloadavg()[0]:.1f} after')
    for title, table in latency_tables(times, args):
        print(f'\n### {title}\n\n{table}')
    rows = list(aims(times, args))
    if rows:
        print('\n### Aims\n')
        print(tabulate(rows, ['', 'width', 'batch', 'aim', 'measured', ''], tablefmt='github', disable_numparse=True))
    if args.csv:
        write_csv_files(args.csv, times, args)


if __name__ == '__main__':
    main()
