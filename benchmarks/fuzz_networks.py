"""Damaged files of networks: each must be refused in one sentence, or give the answers of the sound file.

Files of a small network are damaged in a seeded way, bytes and JSON alike, and each case is loaded and run in a process
of its own. A network with a description is protected by its SHA-256. In files of other programs a changed weight cannot
be told from a trained one: such cases are counted, and are no finding.

Example: ``python benchmarks/fuzz_networks.py --cases 10000``. Exit status 1 if there is a finding.
"""
import argparse
import copy
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import traceback
from collections import Counter
from pathlib import Path

# No threads of MXNet's, which a child would lack; before it is imported.
os.environ['MXNET_ENGINE_TYPE'] = 'NaiveEngine'
os.environ.setdefault('OMP_NUM_THREADS', '1')
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import gluon_lprnet  # before MXNet
import mxnet as mx
import numpy as np
from tqdm import tqdm

from gluon_lprnet.artifact import export_network, load_network
from gluon_lprnet.deployment.onnx import write_onnx
from gluon_lprnet.graph import trace
from gluon_lprnet.utils.errors import InputError
from gluon_lprnet.utils.flags import positive_int

SIZE = 32
SECONDS = 60
MODEL = 'lprnet_mobilenet_x0.25'
FINDINGS = ('death by signal', 'traceback', 'hang', 'another answer')
# What a field may be by mistake.
VALUES = (None, True, -1, 0, 1, 2 ** 31, 2 ** 63, 10 ** 30, 0.5, float('nan'), float('inf'), '', '0', '-1', '(0, 0)',
          '()', 'None', 'x' * 1000, '99999999', [], {}, [[]], [[0, 1, 0]])


def write_network(folder):
    """A network of random weights in ``folder``: symbol, params and a description of them; its symbol file."""
    mx.random.seed(0)
    net = gluon_lprnet.get_model(MODEL, classes=3, small_image=True)
    net.initialize(mx.init.Xavier())
    config = {'task': 'classification', 'model': MODEL, 'num_classes': 3, 'input_size': SIZE, 'small_image': True,
              'rank': None, 'no_residual': False, 'no_l2_norm': False, 'crop_ratio': 0.875, 'rgb_mean': [120.0] * 3,
              'rgb_std': [60.0] * 3, 'class_names': ['a', 'b', 'c']}
    return export_network(net, config, folder)


def trace_and_write_onnx(symbol, path):
    """The same network as an ONNX file, without a description."""
    write_onnx(*trace(load_network(symbol)[0]), (3, SIZE, SIZE), path)


def damaged_bytes(data, chance):
    """Cut off, lengthened, or with some bytes changed; or another file altogether."""
    data = bytearray(data)
    kind = chance.randrange(6)
    if kind == 0:
        return bytes(data[:chance.randrange(len(data))])
    if kind == 1:
        return bytes(data) + chance.randbytes(chance.choice([1, 8, 100]))
    if kind == 2:
        return chance.choice([b'', b'\0' * 100, b'{}', chance.randbytes(1000)])
    if kind == 3:
        begin = chance.randrange(len(data))
        del data[begin:begin + chance.choice([1, 4, 100])]
        return bytes(data)
    # Structure is at the front.
    reach = len(data) if kind == 4 else min(200, len(data))
    for _ in range(chance.choice([1, 1, 4])):
        data[chance.randrange(reach)] ^= 1 << chance.randrange(8)
    return bytes(data)


def damaged_json(data, chance):
    """With one value, at any depth, replaced, removed or put in twice."""
    content = json.loads(data)
    places = []

    def visit(value):
        entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for key, each in entries:
            places.append((value, key))
            visit(each)

    visit(content)
    parent, key = chance.choice(places)
    kind = chance.randrange(4)
    if kind == 0:
        del parent[key]
    elif kind == 1 and isinstance(parent, list):
        parent.insert(key, copy.deepcopy(parent[key]))
    elif kind == 2 and isinstance(parent[key], str) and parent[key]:
        text = list(parent[key])
        text[chance.randrange(len(text))] = chance.choice('0123456789-,() xe')
        parent[key] = ''.join(text)
    else:
        parent[key] = chance.choice(VALUES)
    return json.dumps(content).encode()


def outcome(path, images, expected):
    """What comes of a case, in a process of its own: a word, and details of a finding."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        # Finds hangs, and kills the process.
        signal.alarm(SECONDS)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        os.write(writer, json.dumps(_attempt(path, images, expected)).encode()[:4000])
        os._exit(0)
    os.close(writer)
    with open(reader, 'rb') as pipe:
        said = pipe.read()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        return ('hang' if number == signal.SIGALRM else 'death by signal'), signal.Signals(number).name
    # MXNet may catch a signal, and end the process.
    return json.loads(said) if said else ('death by signal', f'exit status {os.WEXITSTATUS(status)}')


def _attempt(path, images, expected):
    try:
        net, _ = load_network(path)
        found = net(mx.nd.array(images)).asnumpy()
    except InputError as error:
        return ('refused', '') if '\n' not in str(error) else ('traceback', f'several lines: {error}')
    except BaseException:
        return 'traceback', traceback.format_exc()[-1500:]
    same = found.shape == expected.shape and np.allclose(found, expected, rtol=0, atol=1e-5 * abs(expected).max())
    return ('the same answer' if same else 'another answer'), ''


def run(cases, seed, report=print):
    """Run ``cases``; a Counter of outcomes by file, and the findings as (case, file, outcome, details)."""
    counts, findings = Counter(), []
    with tempfile.TemporaryDirectory() as scratch:
        sound = Path(scratch) / 'sound'
        symbol = write_network(sound)
        trace_and_write_onnx(symbol, sound / f'{MODEL}.onnx')
        images = np.random.default_rng(0).normal(0, 1, (2, 3, SIZE, SIZE)).astype('float32')
        expected = load_network(symbol)[0](mx.nd.array(images)).asnumpy()
        files = {f'{MODEL}-symbol.json': (damaged_bytes, damaged_json), f'{MODEL}-0000.params': (damaged_bytes,),
                 f'{MODEL}.json': (damaged_bytes, damaged_json), f'{MODEL}.onnx': (damaged_bytes,)}
        folder = Path(scratch) / 'case'
        for case in tqdm(range(cases), 'cases', disable=None, leave=False):
            chance = random.Random(f'{seed} {case}')
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(sound, folder)
            name = chance.choice(list(files))
            described = name == f'{MODEL}.json' or not name.endswith('.onnx') and chance.random() < 0.3
            if not described:
                (folder / f'{MODEL}.json').unlink()
            content = (sound / name).read_bytes()
            (folder / name).write_bytes(chance.choice(files[name])(content, chance))
            found, details = outcome(folder / (name if name.endswith('.onnx') else symbol.name), images, expected)
            if found == 'another answer' and not described:
                found = 'another network'
            counts[f'{name[len(MODEL):]}, {"with" if described else "without"} a description', found] += 1
            if found in FINDINGS:
                findings.append((case, name, found, details))
                report(f'case {case}: {name}: {found} {details}')
    return counts, findings


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--cases', type=positive_int, default=10000)
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args(argv)
    counts, findings = run(args.cases, args.seed)
    for (what, found), count in sorted(counts.items()):
        print(f'{what}: {found}: {count}')
    print(f'{args.cases} cases, {len(findings)} findings')
    return 1 if findings else 0


if __name__ == '__main__':
    sys.exit(main())
