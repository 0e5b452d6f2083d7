"""``gluon-lprnet runs``: trainings side by side, from what they left in their folders."""
import csv
import io
import json
import statistics
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple, Union

from ..utils.errors import InputError
from ..utils.flags import add_parser
from ..utils.text import render_table
from .journal import draw_curves, read_epochs

FORMATS = ('text', 'markdown', 'csv')

# Where a run was, and what differs between the runs of any two places.
_NOT_COMPARED = ('save_dir', 'resume', 'log_interval', 'tensorboard', 'num_data_workers')


class TrainingRun(NamedTuple):
    """A run's folder.

    Attributes
    ----------
    name : str
        Of the folder, from the one that was searched.
    path : Path
    config : dict
        Its ``config.json``.
    epochs : list of dict
        The records of its whole epochs (see :func:`gluon_lprnet.train.journal.read_epochs`).
    """

    name: str
    path: Path
    config: dict[str, Any]
    epochs: list[dict[str, Any]]


def find_runs(folders: Sequence[Union[str, 'PathLike[str]']]) -> list[TrainingRun]:
    """The runs in folders, at any depth, in the order of their names.

    Raises
    ------
    InputError
        If a folder does not exist or holds no run, or a configuration is damaged.
    """
    runs = []
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise InputError(f'{folder} is not a folder.')
        found = sorted(file.parent for file in folder.rglob('config.json')
                       if (file.parent / 'metrics.jsonl').exists())
        if not found:
            raise InputError(f'{folder} holds no run: a run is a folder with config.json and metrics.jsonl.')
        runs += [TrainingRun(str(path.relative_to(folder)) if path != folder else path.resolve().name, path,
                             _read_config(path / 'config.json'), read_epochs(path)) for path in found]
    return runs


def _read_config(path):
    try:
        config = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f'{path} cannot be read: {error}.') from error
    if not isinstance(config, dict):
        raise InputError(f'{path} is not the configuration of a run.')
    return config


def compare_runs(runs: Sequence[TrainingRun]) -> tuple[list[str], list[list[Any]]]:
    """Column titles and a row for each run.

    The columns are the name; each setting in which the runs differ; the epochs done, of those asked for; for each
    validation metric the last value and, with its epoch, the best one (lowest of errors and losses, highest of
    others); images per second, the median of the epochs. None stands for what a run does not have.
    """
    keys = sorted(key for key in set().union(*(run.config for run in runs)) - set(_NOT_COMPARED)
                  if len({json.dumps(run.config.get(key), sort_keys=True) for run in runs}) > 1)
    metrics = list(dict.fromkeys(key for run in runs for record in run.epochs for key in record
                                 if key.startswith('val_')))
    titles = ['run', *keys, 'epochs', *(title for metric in metrics for title in (_title(metric), 'best (epoch)')),
              'images/s']
    return titles, [[run.name, *(_text(run.config.get(key)) for key in keys), _progress(run),
                     *(cell for metric in metrics for cell in _last_and_best(run, metric)), _speed(run)]
                    for run in runs]


def _title(metric):
    return metric.replace('val_', '', 1)


def _text(value):
    return value if value is None or isinstance(value, str) else json.dumps(value)


def _progress(run):
    asked = [run.config.get(key, 0) for key in ('num_epochs', 'tuning_epochs')]
    return f'{len(run.epochs)}/{sum(number for number in asked if isinstance(number, int))}'


def _last_and_best(run, metric):
    values = [(record[metric], record['epoch'] + 1) for record in run.epochs if record.get(metric) is not None]
    if not values:
        return None, None
    lower_is_better = 'nme' in metric or 'loss' in metric
    best, epoch = (min if lower_is_better else max)(values, key=lambda value: value[0])
    return f'{values[-1][0]:.4f}', f'{best:.4f} ({epoch})'


def _speed(run):
    speeds = [record['images_per_second'] for record in run.epochs if record.get('images_per_second')]
    return round(statistics.median(speeds)) if speeds else None


def render_runs(runs: Sequence[TrainingRun], format: str = 'text') -> str:
    """:func:`compare_runs` as text, in one of ``FORMATS``."""
    titles, rows = compare_runs(runs)
    if format != 'csv':
        return render_table(titles, rows, format)
    text = io.StringIO()
    csv.writer(text, lineterminator='\n').writerows([titles, *rows])
    return text.getvalue().rstrip('\n')


def add_commands(commands: Any) -> None:
    parser = add_parser(
        commands, 'runs', help='trainings side by side: what differs, last and best figures, speed',
        example='gluon-lprnet runs runs --curves runs.png',
        description='List the runs in folders, at any depth: the settings in which they differ, epochs done, last '
                    'and best validation figures, images per second.')
    parser.add_argument('folders', nargs='+', metavar='FOLDER', help='a run, or a folder with runs in it')
    parser.add_argument('--format', choices=FORMATS, default='text', help='how to print (default: %(default)s)')
    parser.add_argument('--curves', metavar='FILE', help='draw the curves of all runs: .png, .svg or .pdf')
    parser.set_defaults(run=_run)


def _run(args):
    runs = find_runs(args.folders)
    print(render_runs(runs, args.format))
    if args.curves:
        draw_curves([run.path for run in runs if run.epochs], args.curves)
