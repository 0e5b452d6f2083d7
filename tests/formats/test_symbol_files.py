"""What is read of files by MXNet's readers and by the package's, and what of damaged ones."""
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import mxnet as mx
import numpy as np
import pytest
from mxnet.contrib.amp.amp import bfloat16
from mxnet.gluon import SymbolBlock

from gluon_lprnet.artifact import load_network
from gluon_lprnet.complexity import count
from gluon_lprnet.deployment import deploy
from gluon_lprnet.formats.symbol_files import latest_params, read_params, read_symbol
from gluon_lprnet.utils.errors import InputError

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / 'benchmarks'))


@pytest.mark.parametrize('dtype', ['float32', 'float64', 'float16', 'uint8', 'int8', 'int32', 'int64', 'bool'])
def test_parameters_as_mxnet_reads_them(dtype, tmp_path):
    random = np.random.default_rng(0)
    arrays = {f'arg:{number}': mx.nd.array(random.uniform(-100, 100, shape), dtype=dtype)
              for number, shape in enumerate([(1,), (3, 4), (2, 1, 5, 3)])}
    mx.nd.save(str(tmp_path / 'net-0000.params'), arrays)
    found = read_params(tmp_path / 'net-0000.params')
    assert list(found) == ['0', '1', '2']
    for name, value in mx.nd.load(str(tmp_path / 'net-0000.params')).items():
        assert found[name[4:]].dtype == value.asnumpy().dtype
        np.testing.assert_array_equal(found[name[4:]], value.asnumpy())


def test_parameters_of_older_versions(tmp_path):
    """Written here as MXNet 0.9 and 0.8 wrote them, and read by MXNet too."""
    values = np.arange(6, dtype='<f4').reshape(2, 3)
    for magic, length in ((b'\xc8\xfa\x93\xf9\x02\0\0\0', '<i8'), (b'\x02\0\0\0', '<u4')):
        array = magic + np.array([2, 3], length).tobytes() + np.array([1, 0, 0], '<i4').tobytes() + values.tobytes()
        data = (np.array([0x112, 0, 1], '<u8').tobytes() + array
                + np.array([1, 6], '<u8').tobytes() + b'aux:ab')
        path = tmp_path / 'old-0000.params'
        path.write_bytes(data)
        np.testing.assert_array_equal(mx.nd.load(str(path))['aux:ab'].asnumpy(), values)
        np.testing.assert_array_equal(read_params(path)['ab'], values)


def test_bfloat16(tmp_path):
    values = mx.nd.array([[1.5, -2.25], [3e30, 0]])
    mx.nd.save(str(tmp_path / 'net-0000.params'), {'a': mx.nd.amp_cast(values, dtype=bfloat16)})
    np.testing.assert_allclose(read_params(tmp_path / 'net-0000.params')['a'], values.asnumpy(), rtol=1e-2)


@pytest.mark.parametrize('content, message', [
    (b'', 'ends 8 bytes too early'), (b'text of a length', 'is not a file of parameters of MXNet'),
    (np.array([0x112, 0, 2 ** 60], '<u8').tobytes(), 'things follow'),
])
def test_what_is_no_file_of_parameters(content, message, tmp_path):
    (tmp_path / 'a.params').write_bytes(content)
    with pytest.raises(InputError, match=f'a.params .*{message}'):
        read_params(tmp_path / 'a.params')


def test_parameters_that_are_refused(tmp_path):
    path = tmp_path / 'a.params'
    for arrays, message in (({'a': mx.nd.array([1, np.nan])}, 'the parameter a is NaN or infinite'),
                            ({'a': mx.nd.array([1, -np.inf])}, 'the parameter a is NaN or infinite'),
                            ({'a': mx.nd.array([[0, 1]]).tostype('csr')}, 'sparse'),
                            ([mx.nd.ones(2)], '1 arrays, 0 names')):
        mx.nd.save(str(path), arrays)
        with pytest.raises(InputError, match=message):
            read_params(path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(InputError, match='is not a file'):
        read_params(path)


def test_the_latest_of_a_network(tmp_path):
    for name in ('net-0009.params', 'net-10000.params', 'net-9999.params', 'net-small-20000.params', 'net-1.params'):
        (tmp_path / name).write_text('')
    assert latest_params(tmp_path / 'net-symbol.json').name == 'net-10000.params'
    with pytest.raises(InputError, match='no other-NNNN.params'):
        latest_params(tmp_path / 'other-symbol.json')


CONVOLUTION = ('{"nodes": [{"op": "null", "name": "data", "inputs": []}, {"op": "null", "name": "w", "inputs": []}, '
               '{"op": "Convolution", "name": "c", "attrs": {"kernel": "(3, 3)", "num_filter": "4", '
               '"no_bias": "True"}, "inputs": [[0, 0, 0], [1, 0, 0]]}], "arg_nodes": [0, 1], "heads": [[2, 0, 0]]}')


@pytest.mark.parametrize('old, new, message', [
    ('[[0, 0, 0], [1, 0, 0]]', '[[0, 0, 0], [9, 0, 0]]', "'c', has inputs that do not come before it"),
    ('[[0, 0, 0], [1, 0, 0]]', '[[0, 0, 0], [2, 0, 0]]', "'c', has inputs that do not come before it"),
    ('[[0, 0, 0], [1, 0, 0]]', '[[0, 0, 0], [1, 7, 0]]', "'c', has inputs that do not come before it"),
    ('[[0, 0, 0], [1, 0, 0]]', '[[0, 0, 0], [-1, 0, 0]]', "'c', has inputs that do not come before it"),
    ('[[0, 0, 0], [1, 0, 0]]', '3', "'c', has inputs that do not come before it"),
    ('[[2, 0, 0]]', '[[3, 0, 0]]', '"heads"'), ('[[2, 0, 0]]', '[[2, 1, 0]]', '"heads"'),
    ('[[2, 0, 0]]', '[]', '"heads"'),
    ('[0, 1]', '[0, 2]', '"arg_nodes"'), ('[0, 1]', '[0, 99]', '"arg_nodes"'), ('[0, 1]', '[0.5]', '"arg_nodes"'),
    ('"(3, 3)"', '"(0, 3)"', 'kernel'), ('"(3, 3)"', '[3, 3]', 'not text'), ('"4"', '"-4"', 'num_filter'),
    ('"w"', '"data"', "two variables of the name 'data'"), ('"op": "Convolution", ', '', 'node 2 has no "op"'),
    ('"Convolution"', '"NoSuchOperator"', 'NoSuchOperator'), ('"nodes"', '"no"', '"nodes"'),
    ('"(3, 3)"', '"(a"', 'kernel'),
    ('{"nodes"', '[{"nodes"', 'is not valid JSON'), ('"c"', '"' + '1' * 100000 + '"', None),
])
def test_symbols_whose_structure_is_damaged(old, new, message, tmp_path):
    """Several of these end the process in MXNet's own reader."""
    path = tmp_path / 'a-symbol.json'
    assert old in CONVOLUTION
    path.write_text(CONVOLUTION.replace(old, new))
    if message is None:
        assert read_symbol(path).list_arguments() == ['data', 'w']
    else:
        with pytest.raises(InputError, match=message) as error:
            read_symbol(path)
        assert str(path) in str(error.value) and '\n' not in str(error.value)


def test_symbols_for_the_operator_library(tmp_path, monkeypatch):
    monkeypatch.delattr(mx.sym, 'lprnet_network', raising=False)
    path = tmp_path / 'net-symbol.json'
    path.write_text(json.dumps({'nodes': [
        {'op': 'null', 'name': 'data', 'inputs': []}, {'op': 'lprnet_network', 'name': 'net', 'inputs': [[0, 0, 0]]}],
        'arg_nodes': [0], 'heads': [[1, 0, 0]], 'attrs': {'mxnet_version': ['int', 10901]}}))
    with pytest.raises(InputError, match=r'net-symbol.json is for the operator library.*load_library\(\)'):
        read_symbol(path)


def test_old_symbols_are_upgraded(tmp_path):
    """As MXNet 0.8 wrote them: attributes under "param", references of two numbers."""
    text = CONVOLUTION.replace('"attrs"', '"param"').replace(', 0]', ']')
    text = text.replace('"inputs"', '"backward_source_id": -1, "inputs"')
    (tmp_path / 'a-symbol.json').write_text(text)
    assert read_symbol(tmp_path / 'a-symbol.json').list_arguments() == ['data', 'w']


@pytest.fixture
def fuzz_files(monkeypatch):
    """``benchmarks/fuzz_files.py``, which sets a variable for processes of its own when it is imported."""
    monkeypatch.setenv('MXNET_ENGINE_TYPE', 'NaiveEngine')
    import fuzz_files
    return fuzz_files


def test_damaged_files_end_in_a_sentence_or_the_same_answers():
    """A part of what the command does."""
    script = Path(__file__).resolve().parents[2] / 'benchmarks' / 'fuzz_files.py'
    done = subprocess.run([sys.executable, str(script), '--cases', '500', '--seed', '1'], capture_output=True,
                          text=True)
    assert done.returncode == 0 and done.stdout.endswith('500 cases, 0 findings\n'), done.stdout
    for kind in ('.rec', '.idx', 'PNG', '.t7', '.npz', '.mat', 'XML', '.mar', 'params'):
        assert re.search(f'^{re.escape(kind)}: refused: ', done.stdout, re.MULTILINE), kind
    # The checkpoint before it is taken in the place of a damaged one.
    assert 'state.json of a checkpoint: the same answer: ' in done.stdout
    assert ': the same answer: ' in done.stdout


def test_the_fuzz_command_finds_what_there_is(fuzz_files):
    def raises(error):
        raise error

    answer = [np.ones((2, 3))]
    acts = {'the same answer': lambda path: answer, 'refused': lambda path: raises(InputError('one')),
            'traceback': lambda path: raises(KeyError('x')), 'another answer': lambda path: [np.ones((2, 3)) + 1e-3],
            # Not by SIGSEGV: in a process that is forked from one with threads, MXNet's own handler may wait forever.
            'death by signal': lambda path: os.kill(os.getpid(), signal.SIGKILL)}
    assert fuzz_files.outcome(lambda path: raises(InputError('two\nlines')), '', [answer])[0] == 'traceback'
    # The worker dies in the middle, and another one goes on.
    order = ['refused', 'death by signal', 'the same answer', 'another answer', 'death by signal', 'traceback']
    found = fuzz_files.outcomes(len(order), lambda case: ['kind', *fuzz_files.outcome(acts[order[case]], '', [answer])])
    assert [(case, what) for case, (_, what, _) in found] == list(enumerate(order))


def test_the_fuzz_command_finds_a_hang(fuzz_files, monkeypatch):
    monkeypatch.setattr(fuzz_files, 'SECONDS', 1)
    found = list(fuzz_files.outcomes(2, lambda case: time.sleep(60 * (1 - case)) or ['kind', 'refused', '']))
    assert [what for _, (_, what, _) in found] == ['hang', 'refused']


def test_attributes_in_the_spelling_of_other_languages(tmp_path):
    """MXNet reads them as its own: of Scala and Julia, and of Python 2."""
    data = mx.sym.var('data')
    x = mx.sym.Convolution(data, name='conv', kernel=(3, 3), num_filter=8, no_bias=True)
    x = mx.sym.BatchNorm(x, name='norm', fix_gamma=False)
    x = mx.sym.FullyConnected(mx.sym.Flatten(x), name='fc', num_hidden=3)
    graph = json.loads(x.tojson())
    for node in graph['nodes']:
        node['attrs'] = {name: {'True': 'true', 'False': 'false', '(3, 3)': '(3L, 3L)'}.get(value, value)
                         for name, value in node.get('attrs', {}).items()}
    (tmp_path / 'net-symbol.json').write_text(json.dumps(graph))
    shapes = dict(zip(x.list_arguments() + x.list_auxiliary_states(), sum(x.infer_shape(data=(1, 3, 8, 8))[::2], [])))
    rng = np.random.default_rng(0)
    params = {name: mx.nd.array(rng.uniform(0.5, 2, shape)) for name, shape in shapes.items() if name != 'data'}
    mx.nd.save(str(tmp_path / 'net-0000.params'), params)
    images = mx.nd.array(rng.normal(size=(2, 3, 8, 8)))
    own = SymbolBlock(mx.sym.load(str(tmp_path / 'net-symbol.json')), data)
    own.collect_params().load_dict(params)
    expected = own(images).asnumpy()
    (tmp_path / 'net.json').write_text('{"input_size": 8}')
    loaded, _ = load_network(tmp_path / 'net-symbol.json')
    for form in (loaded, deploy(loaded), deploy(own)):
        np.testing.assert_allclose(form(images).asnumpy(), expected, rtol=1e-4)
    assert count(loaded, (1, 3, 8, 8)).multiply_adds == 6 * 6 * 8 * 27 + 6 * 6 * 8 * 3


def test_outputs_after_the_first(tmp_path):
    data = mx.sym.var('data')
    parts = mx.sym.split_v2(data, (1, 2), axis=1)
    mean, variance = mx.sym.moments(data, axes=(1, 2, 3))
    symbol = mx.sym.concat(parts[2], mx.sym.split_v2(data, 3, axis=1)[1], dim=1)
    # Without the mean, MXNet computes another number for the variance.
    symbol = mx.sym.broadcast_add(mx.sym.Flatten(symbol), mx.sym.expand_dims(variance + mean, axis=1))
    symbol.save(str(tmp_path / 'net-symbol.json'))
    images = mx.nd.array(np.random.default_rng(0).normal(size=(2, 3, 4, 4)))
    found = read_symbol(tmp_path / 'net-symbol.json').bind(mx.cpu(), {'data': images}).forward()[0].asnumpy()
    values = images.asnumpy()
    rows = values.reshape(2, -1)
    expected = values[:, [2, 1]].reshape(2, -1) + (rows.var(axis=1) + rows.mean(axis=1))[:, None]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    text = (tmp_path / 'net-symbol.json').read_text()
    number = next(index for index, node in enumerate(json.loads(text)['nodes']) if node['op'] == 'moments')
    (tmp_path / 'net-symbol.json').write_text(text.replace(f'[{number}, 1, 0]', f'[{number}, 2, 0]'))
    with pytest.raises(InputError, match='has inputs that do not come before it'):
        read_symbol(tmp_path / 'net-symbol.json')
