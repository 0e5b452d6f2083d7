"""What a training leaves behind beside its checkpoints: log, metrics, TensorBoard events, curves."""
import contextlib
import json
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Optional, Union

from ..utils.errors import InputError
from ..utils.files import check_figure, write_errors, write_file
from ..utils.flags import add_parser

PathLike = Union[str, 'os.PathLike[str]']

# Of all trainings: a process has one at a time.
LOGGER = logging.getLogger('gluon_lprnet')


class Journal:
    """The records of one run, in its folder.

    ``train.log`` has what the console shows; ``metrics.jsonl`` has one JSON object a line, of ``kind``
    ``interval`` or ``epoch``; ``curves.png`` is drawn from it. As a context it draws the curves on leaving,
    however that happens.

    Parameters
    ----------
    run_dir : path
    tensorboard : bool
        Write TensorBoard events as well.
    step, epoch : int
        Of the checkpoint that the run goes on from: whatever an earlier process recorded of later steps is dropped, and
        so is the end of that epoch, whose validation comes once more.
    """

    def __init__(self, run_dir: PathLike, tensorboard: bool = False, step: int = 0, epoch: int = 0) -> None:
        self.run_dir = Path(run_dir)
        self.metrics_path = self.run_dir / 'metrics.jsonl'
        self._board = _summary_writer(self.run_dir / 'tensorboard', step) if tensorboard else None
        self._rewind(step, epoch)

    def _rewind(self, step, epoch):
        kept = [record for record in read_metrics(self.metrics_path)
                if record['step'] <= step and (record['kind'] != 'epoch' or record['epoch'] < epoch)]
        write_file(self.metrics_path, ''.join(json.dumps(record) + '\n' for record in kept))

    def add(self, kind: str, step: int, epoch: int, **values: Any) -> None:
        """Append one record of numbers.

        Raises
        ------
        InputError
            If it cannot be written.
        """
        with write_errors(self.metrics_path), self.metrics_path.open('a') as file:
            file.write(json.dumps(dict(kind=kind, step=step, epoch=epoch, **values)) + '\n')
        if self._board:
            for name, value in values.items():
                if isinstance(value, (int, float)):
                    self._board.add_scalar(f'{kind}/{name}', value, step)
            self._board.flush()

    def __enter__(self):
        return self

    def __exit__(self, error, *_):
        if self._board:
            self._board.close()
        # An error is what is to be told, even where the disk has no room for the curves either.
        with contextlib.suppress(*(InputError,) if error else ()):
            if read_epochs(self.run_dir):
                draw_curves([self.run_dir], self.run_dir / 'curves.png')


class _LogFile(logging.FileHandler):
    """A log that ends the training with one sentence where it cannot be written, and not with a traceback a line."""

    def handleError(self, record):
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
            return
        with write_errors(self.baseFilename):
            raise error

    def close(self):
        # What could not be written is still in its buffer.
        with contextlib.suppress(OSError):
            super().close()


class NoJournal(contextlib.nullcontext[None]):
    """Of the workers that write nothing."""

    def add(self, kind: str, step: int, epoch: int, **values: Any) -> None:
        pass


def start_log(run_dir: Optional[PathLike]) -> logging.Logger:
    """The package's logger, writing to the console and, with the details too, to ``train.log`` in ``run_dir``.

    Without a folder it writes warnings alone, to the console.
    """
    stop_log(LOGGER)
    LOGGER.setLevel(logging.DEBUG)
    LOGGER.propagate = False
    console = logging.StreamHandler()
    console.setLevel(logging.INFO if run_dir else logging.WARNING)
    formatter = logging.Formatter('%(asctime)s %(message)s', '%Y-%m-%d %H:%M:%S')
    handlers: list[logging.Handler] = [console]
    if run_dir:
        path = Path(run_dir) / 'train.log'
        with write_errors(path):
            handlers.append(_LogFile(path, encoding='utf-8'))
    for handler in handlers:
        handler.setFormatter(formatter)
        LOGGER.addHandler(handler)
    return LOGGER


def stop_log(logger: logging.Logger) -> None:
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()


def read_metrics(path: PathLike) -> list[dict[str, Any]]:
    """The records of a ``metrics.jsonl``, as dicts; a line cut short by a crash is left out."""
    records = []
    if Path(path).exists():
        for line in Path(path).read_text().splitlines():
            with contextlib.suppress(ValueError):
                records.append(json.loads(line))
    # Those of another program are none.
    return [record for record in records if isinstance(record, dict) and {'kind', 'step', 'epoch'} <= record.keys()]


def read_epochs(run_dir: PathLike) -> list[dict[str, Any]]:
    """The records of a run's whole epochs, as dicts with ``epoch``, ``loss``, ``val_top1`` and others."""
    return [record for record in read_metrics(Path(run_dir) / 'metrics.jsonl') if record['kind'] == 'epoch']


def metrics_text(values: Mapping[str, float]) -> str:
    """Metrics by name in one line: NME, which the journal has as a fraction like the others, in percent."""
    return ', '.join(f'{name} {100 * value:.2f}%' if name.startswith('nme') else f'{name} {value:.4f}'
                     for name, value in values.items())


def draw_curves(run_dirs: Sequence[PathLike], path: PathLike) -> None:
    """Draw loss, validation metrics and learning rate by epoch, a color a run.

    Parameters
    ----------
    run_dirs : sequence of path
        Folders of runs.
    path : path
        Picture to write; its extension is the format.

    Raises
    ------
    InputError
        If a folder holds no run with a whole epoch.
    """
    # The object interface: no display is needed, and nothing global of matplotlib changes.
    from matplotlib.figure import Figure
    runs = [read_epochs(run_dir) for run_dir in run_dirs]
    for run_dir, epochs in zip(run_dirs, runs):
        if not epochs:
            raise InputError(f'{run_dir} holds no run with a whole epoch.')
    check_figure(path)
    names = [Path(run_dir).name for run_dir in run_dirs]
    if len(set(names)) < len(names):
        names = [str(run_dir) for run_dir in run_dirs]
    metrics = list(dict.fromkeys(key for epochs in runs for key in epochs[-1] if key.startswith('val_')))
    panels = ['loss', *metrics, 'learning_rate']
    figure = Figure(figsize=(4.2 * len(panels), 3.4), layout='constrained')
    for axis, metric in zip(figure.subplots(1, len(panels)), panels):
        for name, epochs in zip(names, runs):
            points = [(record['epoch'] + 1, record[metric]) for record in epochs if metric in record]
            if points:
                axis.plot(*zip(*points), marker='.', label=name)
        axis.set_xlabel('epoch')
        axis.set_title({'loss': 'training loss', 'learning_rate': 'learning rate'}.get(
            metric, metric.replace('val_', 'validation ')))
        axis.grid(alpha=0.3)
    figure.axes[0].legend(fontsize='small')
    write_file(path, lambda scratch: figure.savefig(scratch, dpi=110))


def add_commands(commands: Any) -> None:
    parser = add_parser(commands, 'curves', help='draw the curves of several runs into one picture',
                        example='gluon-lprnet curves runs/first runs/second --out curves.png')
    parser.add_argument('runs', nargs='+', metavar='RUN', help='folder of a run')
    parser.add_argument('--out', required=True, help='picture to write: .png, .svg or .pdf')
    parser.set_defaults(run=lambda args: draw_curves(args.runs, args.out))


def _summary_writer(folder, step):
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise InputError('--tensorboard needs the package tensorboardX: pip install tensorboardX.') from error
    # TensorBoard hides the events from `purge_step` on that older files hold.
    return SummaryWriter(str(folder), purge_step=step + 1)
