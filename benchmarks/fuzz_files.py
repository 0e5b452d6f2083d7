"""Damaged files of every kind: each must be refused in one sentence, or give the answers of the sound file.

Networks (symbol, params, description, ONNX), records (.rec, .idx, manifest), pictures, annotations of faces (.t7,
.npz, .mat, .pts, XML), checkpoints and model archives are damaged in a seeded way, bytes and structure alike. Cases run
in a worker that lives on from case to case; one that dies or hangs is a finding, and the next case gets a new one.
Files with checksums must not give other answers. In those without, a changed number cannot be told from a true one:
such cases are counted, and are no finding.

Example: ``python benchmarks/fuzz_files.py --cases 10000``. Exit status 1 if there is a finding.
"""
import argparse
import copy
import io
import json
import os
import random
import select
import shutil
import signal
import sys
import tempfile
import traceback
import zipfile
from collections import Counter
from pathlib import Path
from typing import Callable, NamedTuple

# No threads of MXNet's, which a child would lack; before it is imported.
os.environ['MXNET_ENGINE_TYPE'] = 'NaiveEngine'
os.environ.setdefault('OMP_NUM_THREADS', '1')
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import gluon_lprnet  # before MXNet
import mxnet as mx
import numpy as np
import scipy.io
from mxnet import autograd, gluon
from PIL import Image
from tqdm import tqdm

from gluon_lprnet import checkpoint
from gluon_lprnet.artifact import export_network, load_network
from gluon_lprnet.data.batches import ImageBatches, Normalization
from gluon_lprnet.data.faces.datasets import read_faces
from gluon_lprnet.data.images import ImageError, read_image
from gluon_lprnet.data.integrity import check_records
from gluon_lprnet.data.recordio import write_records
from gluon_lprnet.deployment.onnx import write_onnx
from gluon_lprnet.graph import trace
from gluon_lprnet.serving.archive import archive, unpack_archive
from gluon_lprnet.utils.errors import InputError
from gluon_lprnet.utils.flags import positive_int

SIZE = 32
SECONDS = 120
# Of a worker, so that what one case leaves in memory does not add up.
CASES = 500
MODEL = 'lprnet_mobilenet_x0.25'
FINDINGS = ('death by signal', 'traceback', 'hang', 'another answer')
# What a field may be by mistake.
VALUES = (None, True, -1, 0, 1, 2 ** 31, 2 ** 63, 10 ** 30, 0.5, float('nan'), float('inf'), '', '0', '-1', '(0, 0)',
          '()', 'None', 'x' * 1000, '99999999', [], {}, [[]], [[0, 1, 0]])
# Entities that grow to more than a machine has.
XML_BOMB = ('<!DOCTYPE x [<!ENTITY a0 "aaaaaaaaaa">'
            + ''.join(f'<!ENTITY a{number + 1} "{f"&a{number};" * 10}">' for number in range(12))
            + ']><dataset><images><image file="&a12;"/></images></dataset>').encode()


# --- sound files

def write_network(folder):
    """A network of random weights in ``folder``: symbol, params and a description of them; its symbol file."""
    mx.random.seed(0)
    net = gluon_lprnet.get_model(MODEL, classes=3, small_image=True)
    net.initialize(mx.init.Xavier())
    config = {'task': 'classification', 'model': MODEL, 'num_classes': 3, 'input_size': SIZE, 'small_image': True,
              'rank': None, 'no_residual': False, 'no_l2_norm': False, 'crop_ratio': 0.875, 'rgb_mean': [120.0] * 3,
              'rgb_std': [60.0] * 3, 'class_names': ['a', 'b', 'c']}
    return export_network(net, config, folder)


def _pixels(number, side=20):
    return np.random.default_rng(number).integers(0, 255, (side, side, 3), dtype='uint8')


def _encoded(pixels, kind):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def _write_t7(path, points):
    def text(value):
        return len(value).to_bytes(4, 'little') + value
    path.write_bytes(b'\4\0\0\0\1\0\0\0' + text(b'V 1') + text(b'torch.DoubleTensor') + b'\2\0\0\0'
                     + np.array([68, 2, 2, 1, 1], '<i8').tobytes() + b'\4\0\0\0\2\0\0\0' + text(b'V 1')
                     + text(b'torch.DoubleStorage') + np.array([136], '<i8').tobytes() + points.astype('<f8').tobytes())


def write_sound_files(folder):
    """A file of each kind, each in the folder of its kind."""
    symbol = write_network(folder / 'network')
    write_onnx(*trace(load_network(symbol)[0]), (3, SIZE, SIZE), folder / 'network' / f'{MODEL}.onnx')
    write_records(folder / 'records' / 'set', [(number % 3, _encoded(_pixels(number), 'PNG')) for number in range(7)],
                  classes=['a', 'b', 'c'])
    for kind in ('PNG', 'JPEG', 'GIF', 'WEBP', 'TIFF', 'BMP'):
        (folder / kind).mkdir()
        (folder / kind / 'picture').write_bytes(_encoded(_pixels(0), kind))
    points = np.random.default_rng(0).uniform(2, 18, (68, 2)).round(2)
    for layout in ('ls3d-w', 'aflw2000-3d', 'pts', 'dlib', 'ytf68/set'):
        (folder / layout).mkdir(parents=True)
        (folder / layout / 'a.jpg').write_bytes(_encoded(_pixels(0), 'JPEG'))
    _write_t7(folder / 'ls3d-w' / 'a.t7', points.T)
    scipy.io.savemat(folder / 'aflw2000-3d' / 'a.mat', {'pt3d_68': np.column_stack([points, points[:, 0]]).T,
                                                        'Pose_Para': np.full((1, 7), 0.1)})
    (folder / 'pts' / 'a.pts').write_text('version: 1\nn_points: 68\n{\n' + ''.join(
        f'{x} {y}\n' for x, y in points) + '}\n')
    (folder / 'dlib' / 'set.xml').write_text(
        '<dataset><images><image file="a.jpg"><box top="1" left="1" width="9" height="9">' + ''.join(
            f'<part name="{number:02}" x="{x}" y="{y}"/>' for number, (x, y) in enumerate(points))
        + '</box></image></images></dataset>')
    np.savez(folder / 'ytf68' / 'set.npz', names=np.array(['a.jpg']), landmarks=points[None], identity=np.array(['x']))
    net, trainer = _training()
    for step in (1, 2):
        with autograd.record():
            loss = net(mx.nd.ones((4, 3))).square().sum()
        loss.backward()
        trainer.step(4)
        checkpoint.save(folder / 'checkpoint', net, trainer, {'step': step, 'epoch': step, 'sums': {'loss': 0.5},
                                                             'config': {'lr': 0.1, 'rec_train': 'a.rec'}})
    archive(symbol, folder / 'archive')


# --- what is done with them: each gives arrays, or raises an error of its user's

def _training():
    net = gluon.nn.Dense(2, in_units=3)
    net.initialize(mx.init.One())
    return net, gluon.Trainer(net.collect_params(), 'adam', {'learning_rate': 0.1})


def run_network(path):
    images = np.random.default_rng(0).normal(0, 1, (2, 3, SIZE, SIZE)).astype('float32')
    return [load_network(path)[0](mx.nd.array(images)).asnumpy()]


def read_batches(path):
    """As a training: after the check, by MXNet."""
    batches = ImageBatches(check_records(path, num_classes=3, workers=1), 16, 4, Normalization((0.0,) * 3, (1.0,) * 3),
                           threads=1)
    return [array.asnumpy() for batch in batches.epoch(0) for array in batch]


def read_picture(path):
    return [read_image(path)]


def read_points(path, layout):
    faults = []
    faces = list(read_faces(path, layout, faults))
    if faults:
        raise InputError(' '.join(faults[0]))
    return [array for face in faces for array in (face.landmarks, face.box)]


def resume(path):
    """The step, and what a training goes on from; an earlier checkpoint is a way of refusing the newest."""
    found = checkpoint.newest(path, lambda line: None)
    if found is None:
        raise InputError('no whole checkpoint')
    net, trainer = _training()
    found.load(net, trainer, [mx.cpu()])
    state = {key: value for key, value in found.state.items() if key != 'step'}
    return [np.array(found.state['step']), net.weight.data().asnumpy(), trainer._updaters[0].states[0][0].asnumpy(),
            np.frombuffer(json.dumps(state, sort_keys=True).replace('2', '1').encode(), 'uint8')]


def unpack(path):
    with tempfile.TemporaryDirectory() as folder:
        unpack_archive(path, folder)
        return [np.frombuffer(file.read_bytes(), 'uint8') for file in sorted(Path(folder).rglob('*')) if file.is_file()]


# --- damage

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


def damaged_text(data, chance):
    """With a character replaced by one that numbers may have, or put in."""
    text = bytearray(data)
    place = chance.randrange(len(text))
    text[place:place + chance.randrange(2)] = chance.choice([b'_', b'-', b'+', b'.', b'e', b'0', b'9' * 30, b' ', b'\t',
                                                              b'\n', b'nan', b'inf', b'\0', b'\xff', b'<', b'&', b'"'])
    return bytes(text)


def damaged_xml(data, chance):
    return XML_BOMB if chance.randrange(10) == 0 else damaged_text(data, chance)


def damaged_member(data, chance, damage=damaged_bytes):
    """An archive with a damaged file in it, whose checksum is right."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as before, zipfile.ZipFile(file, 'w') as after:
        changed = chance.choice(before.namelist())
        for name in before.namelist():
            content = before.read(name)
            after.writestr(name, damage(content, chance) if name == changed else content)
    return file.getvalue()


def damaged_manifest(data, chance):
    """An archive whose manifest is damaged, or that lacks it."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as before, zipfile.ZipFile(file, 'w') as after:
        for name in before.namelist():
            content = before.read(name)
            if not name.endswith('MANIFEST.json'):
                after.writestr(name, content)
            elif chance.randrange(10):
                after.writestr(name, chance.choice([damaged_json, damaged_bytes])(content, chance))
    return file.getvalue()


# --- kinds and cases

class Kind(NamedTuple):
    """Files that are damaged in one folder.

    ``attempt`` is called with the path ``opened``. ``protected``: no damage may give another answer, but by the ways in
    ``unprotected``. Files in ``without`` are taken away.
    """

    folder: str
    file: str
    opened: str
    attempt: Callable
    damages: tuple
    protected: bool = False
    without: tuple = ()
    unprotected: tuple = ()
    lines: int = 1


def _kinds():
    symbol, params, described = f'{MODEL}-symbol.json', f'{MODEL}-0000.params', f'{MODEL}.json'
    both = (damaged_bytes, damaged_json)
    kinds = {
        'description': Kind('network', described, symbol, run_network, both, True),
        'ONNX': Kind('network', f'{MODEL}.onnx', f'{MODEL}.onnx', run_network, (damaged_bytes,), without=(described,)),
        '.rec with a manifest': Kind('records', 'set.rec', 'set.rec', read_batches, (damaged_bytes,), True, lines=99),
        '.rec': Kind('records', 'set.rec', 'set.rec', read_batches, (damaged_bytes,), without=('set.json',), lines=99),
        '.idx': Kind('records', 'set.idx', 'set.rec', read_batches, (damaged_bytes, damaged_text), True,
                     without=('set.json',), lines=99),
        'manifest of records': Kind('records', 'set.json', 'set.rec', read_batches, both, True, lines=99),
        '.t7': Kind('ls3d-w', 'a.t7', '', lambda path: read_points(path, 'ls3d-w'), (damaged_bytes,)),
        '.mat': Kind('aflw2000-3d', 'a.mat', '', lambda path: read_points(path, 'aflw2000-3d'), (damaged_bytes,)),
        '.pts': Kind('pts', 'a.pts', '', lambda path: read_points(path, 'pts'), (damaged_bytes, damaged_text)),
        'XML': Kind('dlib', 'set.xml', 'set.xml', lambda path: read_points(path, 'dlib'), (damaged_bytes, damaged_xml)),
        '.npz': Kind('ytf68', 'set.npz', 'set.npz', lambda path: read_points(path, 'ytf68'),
                     (damaged_bytes, damaged_member), True, unprotected=(damaged_member,)),
        '.mar': Kind('archive', f'{MODEL}.mar', f'{MODEL}.mar', unpack, (damaged_bytes, damaged_manifest), True,
                     unprotected=(damaged_manifest,)),
    }
    for name, file, damages in (('symbol', symbol, both), ('params', params, (damaged_bytes,))):
        kinds[f'{name} with a description'] = Kind('network', file, symbol, run_network, damages, True)
        kinds[name] = Kind('network', file, symbol, run_network, damages, without=(described,))
    for kind in ('PNG', 'JPEG', 'GIF', 'WEBP', 'TIFF', 'BMP'):
        kinds[kind] = Kind(kind, 'picture', 'picture', read_picture, (damaged_bytes,), kind == 'PNG')
    for name, damages in (('state.json', both), ('crc32.json', both), ('net.params', (damaged_bytes,)),
                          ('optimizer.npz', (damaged_bytes, damaged_member))):
        kinds[f'{name} of a checkpoint'] = Kind('checkpoint', f'checkpoints/step-00000002/{name}', '', resume, damages,
                                               True)
    return kinds


KINDS = _kinds()


def run_case(case, seed, sound, expected, folder):
    """Kind, outcome and details of a case."""
    chance = random.Random(f'{seed} {case}')
    name = list(KINDS)[case % len(KINDS)]
    kind = KINDS[name]
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(sound / kind.folder, folder)
    for each in kind.without:
        (folder / each).unlink()
    damage = chance.choice(kind.damages)
    (folder / kind.file).write_bytes(damage((sound / kind.folder / kind.file).read_bytes(), chance))
    found, details = outcome(kind.attempt, folder / kind.opened, expected[name], kind.lines)
    if found == 'another answer' and (not kind.protected or damage in kind.unprotected):
        found = 'another file'
    return name, found, details


def outcome(attempt, path, expected, lines=1):
    """A word for what comes of an attempt, and details of a finding; ``expected`` are the answers that are right."""
    try:
        found = attempt(path)
    except (InputError, ImageError) as error:
        return ('refused', '') if len(str(error).splitlines()) <= lines else ('traceback', f'several lines: {error}')
    except BaseException:
        return 'traceback', traceback.format_exc()[-1500:]
    return ('the same answer' if any(_same(found, each) for each in expected) else 'another answer'), ''


def _same(found, expected):
    return len(found) == len(expected) and all(
        one.shape == other.shape and np.allclose(one, other, rtol=0, atol=1e-5 * max(1, abs(other).max(initial=0)))
        for one, other in zip(found, expected))


def expected_answers(sound):
    """The answers of the sound files, by kind; of a checkpoint those of the one before it too."""
    answers = {name: [kind.attempt(sound / kind.folder / kind.opened)] for name, kind in KINDS.items()}
    with tempfile.TemporaryDirectory() as folder:
        before = Path(folder) / 'run'
        shutil.copytree(sound / 'checkpoint', before)
        shutil.rmtree(before / 'checkpoints' / 'step-00000002')
        for name in KINDS:
            if KINDS[name].attempt is resume:
                answers[name].append(resume(before))
    return answers


def outcomes(cases, act):
    """Yield (case, what ``act`` gives for it, a list); from a worker that is forked anew where one dies or hangs."""
    begin = 0
    while begin < cases:
        end = min(begin + CASES, cases)
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reader)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.dup2(1, 2)
            for case in range(begin, end):
                os.write(writer, json.dumps(act(case)).encode()[:4000] + b'\n')
            os._exit(0)
        os.close(writer)
        said, is_slow = b'', False
        while begin < end and not is_slow:
            is_slow = not select.select([reader], [], [], SECONDS)[0]
            part = b'' if is_slow else os.read(reader, 65536)
            if not part:
                break
            *lines, said = (said + part).split(b'\n')
            for line in lines:
                yield begin, json.loads(line)
                begin += 1
        os.close(reader)
        if is_slow:
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if begin < end:
            # MXNet may catch a signal, and end the process.
            yield begin, [list(KINDS)[begin % len(KINDS)], 'hang' if is_slow else 'death by signal',
                          f'status {status}']
            begin += 1


def run(cases, seed, report=print):
    """Run ``cases``; a Counter of outcomes by kind, and the findings as (case, kind, outcome, details)."""
    counts, findings = Counter(), []
    with tempfile.TemporaryDirectory() as scratch:
        sound, folder = Path(scratch) / 'sound', Path(scratch) / 'case'
        write_sound_files(sound)
        expected = expected_answers(sound)
        found = outcomes(cases, lambda case: run_case(case, seed, sound, expected, folder))
        for case, (name, what, details) in tqdm(found, 'cases', cases, disable=None, leave=False):
            counts[name, what] += 1
            if what in FINDINGS:
                findings.append((case, name, what, details))
                report(f'case {case}: {name}: {what} {details}', flush=True)
    return counts, findings


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
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
