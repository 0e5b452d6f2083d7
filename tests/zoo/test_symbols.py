"""The files of symbols/ and the command that writes them."""
import argparse
import shutil
from pathlib import Path

import mxnet as mx
import numpy as np
import pytest
from mxnet.gluon import SymbolBlock

from gluon_lprnet import list_models
from gluon_lprnet.utils.errors import InputError
from gluon_lprnet.zoo import symbols

FOLDER = Path(__file__).parents[2] / 'symbols'


def run(*arguments):
    parser = argparse.ArgumentParser()
    symbols.add_commands(parser.add_subparsers())
    args = parser.parse_args(['symbols', *map(str, arguments)])
    return args.run(args)


def test_the_files_are_those_of_the_code():
    assert symbols.differences(FOLDER) == []


def test_the_same_bytes_each_time():
    first = symbols.symbol_json('lprnet_mobilenet_x0.25')
    symbols.build('mobilenetv1_x0.25')
    assert symbols.symbol_json('lprnet_mobilenet_x0.25') == first


@pytest.mark.parametrize('name', ['mobilenetv1_x0.25', 'lprnet_mobilenet_x0.25', 'mobilenetv2_x0.5',
                                  'shufflenetv1_x0.25', 'shufflenetv2_x0.5', 'lprnet_shufflenetv2_x0.5'])
def test_a_file_with_the_parameters_of_the_network_is_the_network(name, tmp_path):
    net, _ = symbols.build(name)
    # Weights under which the images still tell in the output.
    net.initialize(mx.init.MSRAPrelu('in', slope=0))
    x = mx.nd.array(np.random.default_rng(0).normal(0, 1, (2, 3, 64, 64)))
    symbol = mx.sym.load(str(FOLDER / f'{name}.json'))
    auxiliary = symbol.list_auxiliary_states()
    random = np.random.default_rng(1)
    for parameter_name, parameter in net.collect_params().items():
        if parameter_name.endswith(('gamma', 'running_var')):
            parameter.set_data(mx.nd.array(random.uniform(0.5, 1.5, parameter.shape)))
        elif parameter_name.endswith(('beta', 'running_mean', 'bias')):
            parameter.set_data(mx.nd.array(random.normal(0, 0.2, parameter.shape)))
    mx.nd.save(str(tmp_path / 'net.params'), {
        f'{"aux" if parameter_name in auxiliary else "arg"}:{parameter_name}': parameter.data()
        for parameter_name, parameter in net.collect_params().items()})
    imported = SymbolBlock.imports(str(FOLDER / f'{name}.json'), ['data'], str(tmp_path / 'net.params'))
    expected = net(x).asnumpy()
    assert expected.shape == (2, 1000) and (expected[0] != expected[1]).any()
    np.testing.assert_allclose(imported(x).asnumpy(), expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def test_check_lists_what_is_wrong(tmp_path, capsys):
    folder = tmp_path / 'copy'
    shutil.copytree(FOLDER, folder)
    assert run('--out', folder, '--check') == 0
    assert capsys.readouterr().out == ''
    changed, removed = list_models()[0], list_models()[1]
    with open(folder / f'{changed}.json', 'a') as file:
        file.write(' ')
    (folder / f'{removed}.json').unlink()
    (folder / 'lprnet_x9.json').write_text('{}')
    assert run('--out', folder, '--check') == 1
    assert capsys.readouterr().out.splitlines() == [
        f'{folder / changed}.json: differs', f'{folder / removed}.json: missing',
        f'{folder / "lprnet_x9.json"}: stale']
    # Writing fixes the first two; it removes nothing.
    assert run('--out', folder) == 0
    assert symbols.differences(folder) == [(str(folder / 'lprnet_x9.json'), 'stale')]


def test_write_makes_the_folder(tmp_path):
    assert symbols.write(tmp_path / 'new') == list_models()
    assert symbols.differences(tmp_path / 'new') == []


def test_a_folder_that_is_none(tmp_path):
    with pytest.raises(InputError, match='nowhere is not a folder'):
        symbols.differences(tmp_path / 'nowhere')
    (tmp_path / 'file').write_text('')
    with pytest.raises(InputError, match='file is not a folder'):
        symbols.write(tmp_path / 'file')
