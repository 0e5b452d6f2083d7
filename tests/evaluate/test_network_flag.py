"""Inputs first, the network by a flag, in all commands alike; and the former order, with a note."""
import argparse

import pytest

from gluon_lprnet.evaluate.network_flag import DEFAULTS, add_network_alone, is_network, split_networks, with_network
from gluon_lprnet.utils.errors import InputError

SHIPPED = DEFAULTS['classification']


@pytest.fixture
def run(tmp_path):
    (tmp_path / 'run' / 'checkpoints').mkdir(parents=True)
    return str(tmp_path / 'run')


def split(inputs, named=None, former=(), several=False):
    return split_networks('do', 'classification', inputs, named, former, several)


def test_networks_are_told_from_inputs(run, tmp_path):
    (tmp_path / 'folder').mkdir()
    for network in (run, 'any/net-symbol.json', 'net.onnx', SHIPPED):
        assert is_network(network)
    for other in (str(tmp_path / 'folder'), 'photo.jpg', 'set.rec', 'lprnet_mobilenet_x0.5'):
        assert not is_network(other)


def test_the_form_of_today_prints_nothing(run, capsys):
    assert split(['a', 'b']) == ([SHIPPED], ['a', 'b'])
    assert split(['a', 'b'], ['net']) == (['net'], ['a', 'b'])
    # Named by the flag, or not in front: then it is an input.
    assert split([run, 'a'], ['net']) == (['net'], [run, 'a'])
    assert split(['a', run]) == ([SHIPPED], ['a', run])
    assert capsys.readouterr().err == ''


def test_the_former_form_is_shown_as_of_today(run, capsys):
    assert split([run, 'a', 'b']) == ([run], ['a', 'b'])
    assert capsys.readouterr().err == f'Note: today this is written do a ... --network {run}\n'
    assert split(['other'], former=['set.rec']) == (['other'], ['set.rec'])
    assert capsys.readouterr().err == 'Note: today this is written do set.rec --network other\n'
    assert split([run, SHIPPED, 'a'], several=True) == ([run, SHIPPED], ['a'])
    assert capsys.readouterr().err == f'Note: today this is written do a --network {run} {SHIPPED}\n'
    # One alone takes the first, and the other is an input that it will not understand.
    assert split([run, SHIPPED]) == ([run], [SHIPPED])


@pytest.mark.parametrize('inputs, named', [(['RUN'], None), ([], ['net']), ([], None)])
def test_no_input_is_said(inputs, named, run):
    with pytest.raises(InputError, match='see do --help'):
        split([run if each == 'RUN' else each for each in inputs], named)


# --- commands that work on a network alone

def alone(argv, several=False, default=None):
    parser = argparse.ArgumentParser()
    add_network_alone(parser, several=several)
    parser.add_argument('--out')
    args = parser.parse_args(argv)
    before = dict(vars(args))
    found = with_network('do', args, default)
    assert vars(args) == before and found.out == 'x'
    return found.network


def test_a_network_alone_is_named_by_the_flag(capsys):
    assert alone(['--network', 'net', '--out', 'x']) == 'net'
    assert alone(['--network', 'a', 'b', '--out', 'x'], several=True) == ['a', 'b']
    assert alone(['--out', 'x'], default=SHIPPED) == SHIPPED
    assert capsys.readouterr().err == ''


def test_a_network_alone_may_come_first_as_before(capsys):
    assert alone(['net', '--out', 'x']) == 'net'
    assert capsys.readouterr().err == 'Note: today this is written do --network net\n'
    assert alone(['a', 'b', '--out', 'x'], several=True) == ['a', 'b']
    assert capsys.readouterr().err == 'Note: today this is written do --network a b\n'


def test_no_network_and_two_are_refused():
    with pytest.raises(InputError, match='do is given no network: say which by --network'):
        alone(['--out', 'x'])
    with pytest.raises(InputError, match='do is given a besides --network b'):
        alone(['a', '--network', 'b', '--out', 'x'])
