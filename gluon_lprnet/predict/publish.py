"""``gluon-lprnet publish``: a trained network as weights with a card, as the package carries them."""
import argparse
import datetime
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional, Union

import mxnet as mx
from mxnet.gluon import HybridBlock

from ..artifact import load_network, model_arguments
from ..checkpoint import find
from ..data.batches import validation_batches
from ..data.faces.landmarks import JAWS, TWO_JAWS
from ..data.faces.records import check_face_records, read_face_records
from ..data.integrity import check_records
from ..evaluate.classification import evaluate_classification
from ..evaluate.landmarks import distinct_names, evaluate_landmarks, summarize
from ..evaluate.network_flag import add_network_alone, with_network
from ..formats.symbol_files import read_json
from ..utils.errors import InputError
from ..utils.files import folder_aside, put_in_place
from ..utils.flags import Commands, add_parser
from ..utils.processes import available_cpus, processor_name
from ..zoo.pretrained import FOLDER
from .classification import read_names

# Of a configuration: where files were.
_PLACES = ('save_dir', 'rec_train', 'rec_train_idx', 'rec_val', 'rec_val_idx', 'resume', 'init_from')
# Entries of a card that flags give.
_IN_WORDS = {'data': 'what it was trained on, in words', 'command': 'the command that made it',
             'license': 'on what terms the pictures, and so the weights, may be used',
             'machine': 'where it was made, in words (publish: the processor of this machine unless it is given)'}
# Those that the network and its weights give.
_MEASURED = {'name', 'task', 'description', 'sha256', 'accuracy', 'date', 'keywords', 'recipe'}


def publish(run: Union[str, Path], tag: str, rec_tests: Sequence[str], facts: dict[str, Any],
            names: Optional[str] = None, out: Union[str, Path] = FOLDER) -> Path:
    """Write ``MODEL.TAG.params`` and its card ``MODEL.TAG.json``, both or neither.

    Parameters
    ----------
    run : path
        Folder of a run or of a checkpoint.
    tag : str
        The data set's name, of letters, digits and ``_``, a letter first.
    rec_tests : sequence of str
        RecordIO files that the accuracy on the card is measured on, from the weights as they are written.
    facts : dict
        Further entries of the card: ``data``, ``command``, ``license``, and ``machine``, which is by default this one.
    names : path, optional
        Names of the classes, as of :func:`~gluon_lprnet.predict.classification.read_names`; needed where the records of
        the training had none.
    out : path
        Folder; files of the same name are replaced.

    Returns
    -------
    Path
        The card.

    Raises
    ------
    InputError
        If the run holds no complete checkpoint, or the tag, the names or a file is at fault.
    """
    check_tag(tag)
    found = find(run)
    net, description = load_network(found.path)
    if description.get('task') == 'landmarks':
        if names:
            raise InputError(f'`names` is for classes, and {run} is of a landmark network.')
    else:
        _name_classes(description, names)
    config = found.state['config']
    return write_card(out, tag, net, description, rec_tests, {
        'keywords': model_arguments(description),
        'recipe': {key: value for key, value in config.items() if key not in _PLACES},
        'machine': f'{available_cpus()} CPUs ({processor_name()})', **facts})


def _name_classes(description, names):
    """Put the names of the classes into a description; InputError if one has none."""
    if names:
        # The records still have those of before.
        description['class_ids'] = description.get('class_names')
        description['class_names'] = read_names(names, description.get('class_names'))
    given, classes = len(description.get('class_names') or ()), description['num_classes']
    if given != classes:
        raise InputError(f'the network has {classes} classes, and {given} have names: give a file of them, `names`.')


def check_tag(tag: str) -> None:
    """Raise InputError unless ``tag`` can be that of a trained network."""
    if not tag.isidentifier():
        raise InputError(f'`tag` {tag!r}: give letters, digits and _, a letter first.')


def write_card(out: Union[str, Path], tag: str, net: HybridBlock, description: dict[str, Any], rec_tests: Sequence[str],
               facts: dict[str, Any], dtype: str = 'float32') -> Path:
    """Write ``MODEL.TAG.params`` and ``MODEL.TAG.json`` of a network of the zoo, both or neither.

    Parameters
    ----------
    out : path
        Folder; files of the same name are replaced.
    tag : str
    net : HybridBlock
        Gets the weights as they were written.
    description : dict
    rec_tests : sequence of str
        RecordIO files that the accuracy on the card is measured on.
    facts : dict
        Further entries of the card.
    dtype : str
        Of the weights on disk.

    Returns
    -------
    Path
        The card.
    """
    with folder_aside(out, 'publish') as scratch:
        params = scratch / f'{description["model"]}.{tag}.params'
        mx.nd.save(str(params), {name: parameter.data().astype(dtype)
                                 for name, parameter in net._collect_params_with_prefix().items()})
        # What is measured is what is in the file.
        net.load_parameters(str(params), cast_dtype=True)
        card = {
            'name': params.stem, 'task': description['task'], 'description': description,
            'sha256': hashlib.sha256(params.read_bytes()).hexdigest(),
            'accuracy': {label: _MEASURES[description['task']](net, description, rec) for label, rec in zip(
                distinct_names([Path(rec).stem for rec in rec_tests], rec_tests), rec_tests)},
            'date': datetime.date.today().isoformat(), **facts,
        }
        path = params.with_suffix('.json')
        path.write_text(json.dumps(card, indent=1, ensure_ascii=False) + '\n', encoding='utf-8')
        return put_in_place([params, path], out)[1]


def _top1_and_top5(net, description, rec):
    records = check_records(rec, num_classes=description['num_classes'])
    return {'images': records.count,
            **evaluate_classification(net, validation_batches(records, description, 50, 1), mx.cpu())}


def _nme(net, description, rec):
    """NME in percent by the jaw that the network answers, and where the set gives it by yaw."""
    check_face_records(rec)
    records = list(read_face_records(rec))
    found: dict[str, Any] = {'faces': len(records), 'jaw of the set': records[0].jaw}
    for jaw in JAWS if description['num_classes'] == TWO_JAWS else (None,):
        errors = evaluate_landmarks(net, records, description, jaw=jaw)
        summary = summarize(errors.errors, errors.yaw)
        numbers = {'nme_percent': round(100 * summary['mean'], 2)}
        if summary['mean_of_bins'] is not None:
            numbers['nme_percent_by_yaw'] = [round(100 * mean, 2) for mean in summary['bin_nme']]
        found[f'jaw {jaw}' if jaw else 'jaw of the network'] = numbers
    return found


_MEASURES = {'classification': _top1_and_top5, 'landmarks': _nme}


def add_commands(commands: Commands) -> None:
    parser = add_parser(
        commands, 'publish',
        help='a trained network as weights with a card, as the package carries them',
        example='gluon-lprnet publish --network runs/half --tag mydata --rec-test data/val.rec \\\n'
                "    --data 'photos of ...' --command 'gluon-lprnet train-imagenet ...' --license free \\\n"
                '    --out weights',
        description='Write MODEL.TAG.params and MODEL.TAG.json, the card, with the accuracy or the NME on --rec-test.')
    add_network_alone(parser, 'folder of a run or of a checkpoint')
    add_card_flags(parser)
    parser.add_argument('--names', metavar='FILE', help='names of the classes, as of predict')
    parser.add_argument('--facts', metavar='FILE', help='JSON of entries of the card, these or others')
    parser.set_defaults(run=_run, flags={'tag': '--tag'})


def add_card_flags(parser: argparse.ArgumentParser, in_words_required: bool = False) -> None:
    """Add the flags of a command that writes a card; :func:`facts_in_words` takes what they say of the network."""
    parser.add_argument('--tag', required=True, help="the data set's name, as cifar10")
    parser.add_argument('--rec-test', required=True, nargs='+', metavar='REC',
                        help='RecordIO files to measure the accuracy on')
    for flag, text in _IN_WORDS.items():
        parser.add_argument(f'--{flag}', required=in_words_required, help=text)
    parser.add_argument('--out', default=str(FOLDER), metavar='DIR',
                        help='folder to write to (default: that of the package)')


def facts_in_words(args: argparse.Namespace) -> dict[str, str]:
    """The entries of a card that flags give."""
    return {key: getattr(args, key) for key in _IN_WORDS if getattr(args, key)}


def _run(args):
    args = with_network('publish', args)
    facts = read_json(args.facts, 'further entries of a card') if args.facts else {}
    own = sorted(facts.keys() & _MEASURED)
    if own:
        raise InputError(f'--facts {args.facts} has {", ".join(own)}, which publish finds out itself: remove it there.')
    facts |= facts_in_words(args)
    missing = [f'--{key}' for key in ('data', 'command', 'license') if key not in facts]
    if missing:
        raise InputError(f'the card needs {", ".join(missing)}: give the flag, or the entry in the file of --facts.')
    print(publish(args.network, args.tag, args.rec_test, facts, args.names, args.out))
