"""The commands of the README and the guides are those of the command line."""
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from gluon_lprnet.__main__ import make_parser
from gluon_lprnet.train.face import LandmarkConfig
from gluon_lprnet.train.config import make_parser as make_training_parser
from gluon_lprnet.train.imagenet import ClassificationConfig

ROOT = Path(__file__).parents[1]
GUIDES = [ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', *sorted((ROOT / 'docs').rglob('*.md'))]
TRAININGS = {'train_imagenet.py': ClassificationConfig, 'train_face.py': LandmarkConfig}

COMMAND = re.compile(r'(?:^|\s)(?:python -m gluon_lprnet|gluon-lprnet|python \w\S*\.py)\s', re.MULTILINE)

# Stands for the program it is called as, and notes what it was called with.
STAND_IN = """#!/bin/sh
{ printf '%s\\t' "${0##*/}" "$@"; echo; } >> "$CALLS"
"""
# Stands for `horovodrun`, which runs another program.
RUNNER = """#!/bin/sh
until [ "$1" = python ] || [ "$1" = gluon-lprnet ]; do shift; done
"$@"
"""


def shell_blocks(text):
    return re.findall(r'^ *```(?:sh|shell|bash)\n(.*?)^ *```', text, re.DOTALL | re.MULTILINE)


def calls(script, folder):
    """What a shell calls `python` and `gluon-lprnet` with: a list of lists. No other program is there to be run."""
    for name in ('python', 'gluon-lprnet', 'horovodrun'):
        path = folder / name
        path.write_text(RUNNER if name == 'horovodrun' else STAND_IN)
        path.chmod(0o755)
    log = folder / 'calls'
    log.touch()
    done = subprocess.run([shutil.which('bash'), '-c', script], env={'PATH': str(folder), 'CALLS': str(log)},
                          cwd=folder, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    # The script was read to its end.
    assert done.returncode in (0, 127), done.stderr
    assert all(line.endswith('command not found') for line in done.stderr.splitlines()), done.stderr
    return [line.split('\t')[:-1] for line in log.read_text().splitlines()]


def parse(call):
    """Parse a call as the program would; SystemExit where it would refuse."""
    program, *arguments = call
    if program == 'gluon-lprnet':
        return make_parser().parse_args(arguments)
    if arguments[:2] == ['-m', 'gluon_lprnet']:
        return make_parser().parse_args(arguments[2:])
    if arguments[0] in TRAININGS:
        return make_training_parser(TRAININGS[arguments[0]], '').parse_args(arguments[1:])
    assert (ROOT / arguments[0]).is_file(), call
    return None


@pytest.mark.parametrize('guide', GUIDES, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_in_blocks_are_accepted(guide, tmp_path, capsys):
    refused, script = [], '\n'.join(shell_blocks(guide.read_text()))
    found = calls(script, tmp_path)
    assert len(found) >= len(COMMAND.findall(re.sub(r'#.*', '', script))), 'some were not reached'
    for call in found:
        try:
            if getattr(parse(call), 'former', None):
                refused.append(f'{" ".join(call)}\nhas its network first, where it once was')
        except SystemExit as error:
            if error.code:
                refused.append(f'{" ".join(call)}\n{capsys.readouterr().err}')
    assert not refused, '\n'.join(refused)


def test_a_block_is_run_as_a_shell_runs_it(tmp_path):
    block = """
        net=runs/a
        for rank in 1/8 1/4; do
            OMP_NUM_THREADS=1 python -m gluon_lprnet compress --network $net --rank $rank \\
                --out 'two words'   # as it stands
        done
        rm -r /
    """
    assert calls(block, tmp_path) == [['python', '-m', 'gluon_lprnet', 'compress', '--network', 'runs/a', '--rank',
                                       rank, '--out', 'two words'] for rank in ('1/8', '1/4')]


@pytest.mark.parametrize('arguments', [['no-such-command'], ['tables', '--no-such-flag'], ['pack', 'no-such-kind']])
def test_what_does_not_exist_is_refused(arguments):
    with pytest.raises(SystemExit) as error:
        parse(['gluon-lprnet', *arguments])
    assert error.value.code == 2


@pytest.mark.parametrize('guide', GUIDES, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_and_flags_in_sentences_exist(guide, capsys):
    sentences = re.sub(r'^ *```.*?^ *```', '', guide.read_text(), flags=re.DOTALL | re.MULTILINE)
    for named in re.findall(r'`(?:\w+=\w+ )?(?:python -m gluon_lprnet|gluon-lprnet) ([^`]+)`', sentences):
        command = re.match(r'(pack\s+)?[\w-]+', named)[0].split()
        with pytest.raises(SystemExit) as error:
            parse(['gluon-lprnet', *command, '--help'])
        printed = capsys.readouterr()
        assert error.value.code == 0, f'{named}\n{printed.err}'
        known = set(re.findall(r'--[\w-]+', printed.out))
        assert set(re.findall(r'--[\w-]+', named)) <= known, named
