"""``--help`` of every command: examples that the command line takes, and words for every argument."""
import argparse
import re

import pytest
from test_docs import calls, parse

from gluon_lprnet.__main__ import main, make_parser
from gluon_lprnet.train import face, imagenet

# Their inputs are runs or networks.
OF_NETWORKS = {'serve', 'curves'}


def commands_of(parser, name=()):
    """The words of each command and its parser."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for word, command in action.choices.items():
                yield from commands_of(command, (*name, word))
            return
    yield ' '.join(name), parser


COMMANDS = dict(commands_of(make_parser()))


def test_all_commands_are_looked_at():
    assert {'train-imagenet', 'train-face', 'pack images', 'pack faces', 'align', 'table6'} <= set(COMMANDS)
    assert len(COMMANDS) > 25


@pytest.mark.parametrize('name', COMMANDS)
def test_the_examples_are_calls_of_the_command(name, tmp_path, capsys):
    help = COMMANDS[name].format_help()
    examples = re.search(r'^examples?:\n(.*)', help, re.DOTALL | re.MULTILINE)
    assert examples, f'{name} --help has no example'
    assert max(map(len, examples[1].splitlines())) <= 100
    found = calls(examples[1], tmp_path)
    assert len(found) == sum(line.startswith('  gluon-lprnet ') for line in examples[1].splitlines()) > 0
    for call in found:
        assert ' '.join(call[1:]).startswith(f'{name} ') or call[1:] == [name], call
        try:
            parse(call)
        except SystemExit:
            pytest.fail(f'{" ".join(call)}\n{capsys.readouterr().err}')


@pytest.mark.parametrize('name', COMMANDS)
def test_every_argument_has_words(name):
    for action in COMMANDS[name]._actions:
        # What is only understood for the sake of calls of before is not shown.
        if action.help is not argparse.SUPPRESS:
            words = re.sub(r'\(?default: .*', '', action.help or '', flags=re.DOTALL)
            assert words.strip(), f'{name}: {action.option_strings or action.dest} has no words in --help'


@pytest.mark.parametrize('name', sorted(COMMANDS.keys() - OF_NETWORKS))
def test_networks_are_named_by_the_flag(name):
    shown = [action.metavar or action.dest for action in COMMANDS[name]._actions
             if not action.option_strings and action.help is not argparse.SUPPRESS]
    assert not {each.upper() for each in map(str, shown)} & {'NETWORK', 'RUN', 'CHECKPOINT', 'SYMBOL', 'MODEL'}, name


@pytest.mark.parametrize('training', [imagenet, face])
def test_the_scripts_of_the_trainings_show_an_example_too(training, capsys):
    with pytest.raises(SystemExit):
        training.main(['--help'])
    assert re.search(r'^example:\n  gluon-lprnet train-', capsys.readouterr().out, re.MULTILINE)


def test_the_list_of_commands_has_words_for_each(capsys):
    with pytest.raises(SystemExit):
        main(['--help'])
    shown = capsys.readouterr().out
    for name in {name.split()[0] for name in COMMANDS}:
        # Where a name is long, its words are on the next line.
        assert re.search(rf'^    {name}\s+\w', shown, re.MULTILINE), name
