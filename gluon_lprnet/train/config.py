"""What a training is told: typed, frozen, and the same from flags, from Python and from the folder of a run."""
import argparse
import dataclasses
import json
import math
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Optional, TypeVar, Union, get_type_hints

from .. import checkpoint
from ..blocks import L2_NORM_SCALES
from ..data.batches import IMAGENET_MEAN, IMAGENET_STD
from ..data.integrity import DATA_CHECK_HELP, DATA_CHECKS
from ..utils.errors import InputError
from ..utils.files import write_file
from ..utils.flags import HelpFormatter, examples
from ..zoo.pretrained import find_card, split_tag

PathLike = Union[str, 'os.PathLike[str]']
_Config = TypeVar('_Config', bound='TrainingConfig')
_NetworkConfig = TypeVar('_NetworkConfig', bound='NetworkTrainingConfig')

# Beyond these a number is a slip of the pen, and MXNet's own types overflow.
_MOST = 2**31 - 1
_SMALLEST_RATE, _LARGEST_RATE = 1e-8, 1000.0
_SMALLEST_NUMBER = 1e-30

# Where the gradients of the devices and workers are added up: MXNet's names, and Horovod.
DEVICE, DIST_SYNC, HOROVOD = 'device', 'dist_sync', 'horovod'
# Goyal et al., "Accurate, Large Minibatch SGD" (arXiv 1706.02677).
_WARMUP_OF_LARGE_BATCHES = 5


def setting(default: Any, help: Optional[str] = None, low: Optional[float] = None, high: Optional[float] = None,
            choices: Optional[Collection[str]] = None, free: bool = False, group: str = 'optimization',
            **argument: Any) -> Any:
    """A field of a configuration.

    Parameters
    ----------
    default
    help : str, optional
        Of its flag.
    low, high : number, optional
        The smallest and the largest value, or element of a tuple.
    choices : sequence of str, optional
    free : bool
        It does not change what is learned: a resumed run may have another value.
    group : str
        Of the flags in ``--help``.
    argument
        Further arguments of ``add_argument``; ``short`` is a second name of the flag, ``type`` how to read its text.
    """
    return field(default=default, metadata=dict(help=help, low=low, high=high, choices=choices, free=free, group=group,
                                                argument=argument))


def with_default(config_class: 'type[TrainingConfig]', name: str, default: Any) -> Any:
    """The setting ``name`` of another configuration, with another default."""
    return field(default=default, metadata=config_class.__dataclass_fields__[name].metadata)


def rank(text: str) -> Union[int, float]:
    """The rank of LPR modules, of a flag: a fraction of the width or a number of channels."""
    numerator, slash, denominator = text.partition('/')
    try:
        return int(numerator) / int(denominator) if slash else float(text) if '.' in text else int(text)
    except (ValueError, ZeroDivisionError):
        raise argparse.ArgumentTypeError(f'{text!r} is not a rank: give 1/8, 0.125 or a whole number') from None


@dataclass(frozen=True)
class TrainingConfig:
    """What the training loop is told, whatever it trains.

    Raises
    ------
    InputError
        If a value is of the wrong type, out of range, or does not fit another. Messages call a parameter by its
        name, in backquotes; commands print flags in their place.
    """

    save_dir: str = setting('runs/latest', 'folder of the run: checkpoints, log, metrics, curves, exported network',
                            free=True, group='run', metavar='DIR')
    save_frequency: int = setting(1, 'a checkpoint every so many epochs', 1, _MOST, free=True, group='run',
                                  metavar='EPOCHS')
    save_interval: float = setting(30.0, 'minutes between two checkpoints within an epoch; 0: none there', 0, 1e6,
                                   free=True, group='run', metavar='MINUTES')
    log_interval: int = setting(50, 'steps between two reports within an epoch', 1, _MOST, free=True, group='run',
                                metavar='STEPS')
    tensorboard: bool = setting(False, 'write TensorBoard events too (needs tensorboardX)', free=True, group='run')
    allow_pickle: bool = setting(False, 'resume from a checkpoint of a version before, whose optimizer state is a '
                                        'pickle and can run any code: of your own runs only', free=True, group='run')
    seed: int = setting(0, 'of initialization, order and augmentation', 0, _MOST, group='run')
    num_gpus: int = setting(0, '0 trains on the CPU', 0, 64, group='run')
    kvstore: str = setting(DEVICE, 'where gradients are added up: dist_sync trains in several processes, by MXNet\'s '
                                   'parameter servers (start them with `launch`), horovod by Horovod (horovodrun)',
                           choices=(DEVICE, DIST_SYNC, HOROVOD), free=True, group='run')
    compress_gradients: float = setting(0.0, "send gradients in 2 bits, by MXNet's compression: what is below this, "
                                             'summed over the images of a worker, is kept for later; 0: not, for '
                                             'dist_sync', 0, 1e6, group='run', metavar='THRESHOLD')
    worker_timeout: float = setting(30.0, 'minutes without an answer of the other workers after which one ends; 0: '
                                          'never', 0, 1e6, free=True, group='run', metavar='MINUTES')
    dtype: str = setting('float32', 'bfloat16: mixed precision by MXNet AMP; float16: the whole network, GPU only',
                         choices=('float32', 'bfloat16', 'float16'), group='run')
    num_data_workers: int = setting(max(1, (os.cpu_count() or 1) // 2), 'threads that decode images', 1, 256, free=True,
                                    group='run', short='-j', metavar='N')

    num_epochs: int = setting(1, 'passes over the training set, warm-up included', 1, 100_000)
    batch_size: int = setting(128, 'images of a step, over all devices and workers together', 1, 1_000_000)
    accumulate: int = setting(1, 'add up the gradients of N batches for one update', 1, 100_000, metavar='N')
    optimizer: str = setting('sgd', 'how the gradients change the weights', choices=('sgd', 'adam'))
    lr: float = setting(0.1, 'learning rate after warm-up', _SMALLEST_RATE, _LARGEST_RATE)
    lr_mode: str = setting('cosine', 'how the rate falls', choices=('cosine', 'step', 'constant'))
    lr_decay: float = setting(0.1, 'factor of each fall, for lr_mode step', 1e-6, 1)
    lr_decay_epoch: tuple[int, ...] = setting((), 'epochs, counted from 1, after which the rate falls, for lr_mode '
                                                  'step', 1, 100_000, metavar='EPOCH')
    warmup_epochs: int = setting(0, 'first epochs, in which the rate rises to lr', 0, 100_000)
    warmup_lr: float = setting(0.0, 'rate at the start of warm-up', 0, _LARGEST_RATE)
    momentum: float = setting(0.9, 'of sgd', 0, 0.9999)
    wd: float = setting(1e-4, 'weight decay', 0, 1)
    bn_wd: bool = setting(False, 'decay BatchNorm and biases as well')
    tuning_epochs: int = setting(0, 'epochs without augmentation after the training', 0, 100_000)
    tuning_lr: float = setting(1e-3, 'rate at the start of the tuning', _SMALLEST_RATE, _LARGEST_RATE)
    ema_decay: float = setting(0.0, 'evaluate and keep an exponential moving average of the weights, which holds on to '
                                    'this part of itself at each update; 0: the weights themselves', 0, 0.99999,
                               metavar='D')

    def __post_init__(self):
        hints = get_type_hints(type(self))
        for setting_ in dataclasses.fields(self):
            value = _checked(setting_, hints[setting_.name], getattr(self, setting_.name))
            # The way around a frozen dataclass that its own documentation names, before anybody has seen the object.
            object.__setattr__(self, setting_.name, value)
        self.check()

    def check(self) -> None:
        """Refuse values that do not fit each other; a subclass adds its own."""
        if self.warmup_epochs >= self.num_epochs:
            raise InputError(f'`warmup_epochs` {self.warmup_epochs}: this leaves nothing of '
                             f'`num_epochs` {self.num_epochs}. Give fewer.')
        if self.compress_gradients and self.kvstore != DIST_SYNC:
            raise InputError(f'`compress_gradients` is for `kvstore` {DIST_SYNC}: leave it out.')
        if self.warmup_lr > self.lr:
            raise InputError(f'`warmup_lr` {self.warmup_lr:g}: warm-up rises to `lr` {self.lr:g}; begin below that.')
        if (self.lr_mode == 'step') != bool(self.lr_decay_epoch):
            raise InputError('`lr_mode` step and `lr_decay_epoch` need each other: give both or neither.')
        falls = self.lr_decay_epoch
        if list(falls) != sorted(set(falls)):
            raise InputError(f'`lr_decay_epoch` {_text(falls)}: the epochs must rise, each once.')
        if falls and falls[0] < self.warmup_epochs:
            raise InputError(f'`lr_decay_epoch` {_text(falls)}: the rate rises until `warmup_epochs` '
                             f'{self.warmup_epochs}; name epochs after that.')
        if falls and falls[-1] >= self.num_epochs:
            raise InputError(f'`lr_decay_epoch` {_text(falls)}: the training ends after '
                             f'`num_epochs` {self.num_epochs}; name epochs before that.')

    @classmethod
    def from_dict(cls: type[_Config], values: Mapping[str, Any]) -> _Config:
        """The configuration that :meth:`to_dict` gave; of a newer or older version, what is known here."""
        return cls._of({name: value for name, value in values.items() if name in cls._names()})

    @classmethod
    def from_run(cls: type[_Config], run_dir: PathLike) -> _Config:
        """The configuration of a run, from ``config.json`` in its folder.

        Raises
        ------
        InputError
            If there is none, or it is damaged.
        """
        path = Path(run_dir) / 'config.json'
        try:
            values = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise InputError(f'{path} is not the configuration of a run: {error}.') from error
        return cls.from_dict(values)

    @classmethod
    def from_args(cls: type[_Config], args: argparse.Namespace, **values: Any) -> _Config:
        """Of a command that has some of the settings as flags: ``values`` over its own over the defaults."""
        return cls._of({**{name: value for name, value in vars(args).items() if name in cls._names()}, **values})

    @classmethod
    def _names(cls):
        return {setting_.name for setting_ in dataclasses.fields(cls) if setting_.init}

    @classmethod
    def _of(cls, values):
        unknown = set(values) - cls._names()
        if unknown:
            raise InputError(f'{cls.__name__} has no {", ".join(sorted(unknown))}.')
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON has them: lists in place of tuples."""
        return {name: list(value) if isinstance(value, tuple) else value
                for name, value in dataclasses.asdict(self).items()}

    def save(self, **more: Any) -> None:
        """Write ``config.json`` into the folder ``save_dir``, with what else describes the run."""
        text = json.dumps({**self.to_dict(), **more}, indent=1, sort_keys=True)
        write_file(Path(self.save_dir) / 'config.json', text + '\n')

    @property
    def input_dtype(self) -> str:
        """Of the network's input; bfloat16 is cast within the network."""
        return 'float16' if self.dtype == 'float16' else 'float32'


@dataclass(frozen=True)
class NetworkTrainingConfig(TrainingConfig):
    """The training of a network of the zoo on RecordIO files."""

    # Recipes: values that replace the defaults.
    PRESETS: ClassVar[Mapping[str, Mapping]] = {}

    # The recipe that it was made from.
    preset: Optional[str] = None
    model: str = setting(
        'lprnet_mobilenet_x1.0', 'name in gluon_lprnet.list_models(), or in list_models(pretrained=True) to begin with '
        'those weights', group='network')
    input_size: int = setting(224, 'height and width of the crop, in pixels', 8, 1024, group='network')
    init_from: Optional[str] = setting(
        None, 'begin with trained weights, as far as their names and shapes fit: the folder of a run or of a '
        'checkpoint, a -symbol.json or .params file, or a name of list_models(pretrained=True)', group='network',
        metavar='RUN|FILE|NAME')
    freeze: Optional[str] = setting(
        None, 'leave the parameters whose names match as they are: a regular expression, such as "features"; BatchNorm '
        'uses its running statistics there', group='network', metavar='PATTERN')
    features_lr_mult: float = setting(
        1.0, "factor for the learning rate of all layers but the output's", 1e-6, 1000, metavar='F')
    small_image: bool = setting(False, 'stem for images of 32x32', group='network')
    condensing: bool = setting(
        False, 'CondenseNet in its form for training, condensed at equal distances in the first half of the epochs',
        group='network')
    group_lasso: float = setting(
        0.0, "factor of CondenseNet's group lasso, which is added to the loss, for condensing", 0, 1)
    relaxed: bool = setting(
        False, 'irregular kernels in their form for training: the relaxed choice of segments hardens in the first half '
        'of the epochs', group='network')
    fast_form: bool = setting(
        False, 'train in operators that are fast in oneDNN, the same function up to rounding: for networks whose '
        'channels are not multiples of eight, such as DenseNet-40', group='network')
    rank: Optional[Union[int, float]] = setting(
        None, 'rank of LPR modules: a fraction of the width (1/8, 0.125) or a number of channels', group='network',
        type=rank)
    no_residual: bool = setting(False, 'LPR without its residual (Table 4)', group='network')
    no_l2_norm: bool = setting(False, 'LPR without its L2 normalization (Table 4)', group='network')
    l2_norm_scale: Optional[str] = setting(
        None, 'multiply the normalized output of LPR by a learned number that begins as 1 or as the root of the width '
        '(default: no such number)', choices=L2_NORM_SCALES, group='network')
    global_depthwise: bool = setting(
        False, 'a depthwise convolution over the whole last feature map in place of its average, with which it begins: '
        'for landmarks', group='network')
    rgb_mean: tuple[float, float, float] = setting(
        IMAGENET_MEAN, 'mean of R, G and B, on the scale 0 to 255', 0, 255, group='network', metavar=('R', 'G', 'B'))
    rgb_std: tuple[float, float, float] = setting(
        IMAGENET_STD, 'their standard deviation, on the same scale', 1, 255, group='network', metavar=('R', 'G', 'B'))
    data_check: str = setting(DATA_CHECKS[0], DATA_CHECK_HELP, choices=DATA_CHECKS, free=True, group='data')
    no_mirror: bool = setting(False, 'do not flip left and right at random', group='data')

    def check(self) -> None:
        super().check()
        if self.condensing and not self.model.startswith('condensenet'):
            raise InputError(f'`condensing` is for condensenet, and not for `model` {self.model}: leave it out.')
        if self.group_lasso and not self.condensing:
            raise InputError('`group_lasso` is for `condensing`: give both, or leave it out.')
        if self.relaxed and not self.model.startswith('irregular_'):
            raise InputError(f'`relaxed` is for networks of irregular kernels, such as irregular_densenet40_x1.0, and '
                             f'not for `model` {self.model}: leave it out.')
        if self.relaxed and self.dtype == 'float16':
            raise InputError('`relaxed` compares squares of weights, which are too small for `dtype` float16. Take '
                             'bfloat16 or float32.')
        for form in ('condensing', 'relaxed'):
            if getattr(self, form) and self.ema_decay:
                raise InputError(f'`ema_decay`: an average of masks that change is none. Leave it out for `{form}`.')

    @classmethod
    def from_dict(cls: type[_NetworkConfig], values: Mapping[str, Any]) -> _NetworkConfig:
        # Its name in files of before.
        return super().from_dict({'init_from': values.get('start_from'), **values})

    @classmethod
    def preset_for(cls, model: str) -> str:
        """The name of the recipe in ``PRESETS`` that is taken for a network when none is given."""
        raise NotImplementedError

    @classmethod
    def from_preset(cls: type[_NetworkConfig], preset: Optional[str] = None, **values: Any) -> _NetworkConfig:
        """A recipe with some values replaced.

        Where ``model`` is a trained network of the package, size, mean and deviation of the input are its own.

        Parameters
        ----------
        preset : str, optional
            Of ``PRESETS``; by default the recipe of ``model``.
        values
            Fields of the class.
        """
        preset = preset or cls.preset_for(values.get('model', cls.model))
        if preset not in cls.PRESETS:
            raise InputError(f'`preset` {preset}: there are {", ".join(cls.PRESETS)}.')
        return cls._of({**cls._for_workers(cls.PRESETS[preset], values),
                        **_input_of(values.get('model', cls.model)), **values, 'preset': preset})

    @classmethod
    def _for_workers(cls, recipe, given):
        """A recipe whose rates are those of the batch of several workers, and are warmed up where that is larger.

        They grow with the batch for SGD (Goyal et al., arXiv 1706.02677) and with its root for Adam (Malladi et al.,
        arXiv 2205.10287).
        """
        recipe = {name: recipe.get(name, getattr(cls, name)) for name in cls._names()}
        larger = given.get('batch_size', recipe['batch_size']) / recipe['batch_size']
        if given.get('kvstore', DEVICE) == DEVICE or larger == 1:
            return recipe
        factor = larger if given.get('optimizer', recipe['optimizer']) == 'sgd' else math.sqrt(larger)
        scaled = {name: factor * recipe[name] for name in ('lr', 'tuning_lr')}
        if larger > 1:
            epochs = given.get('num_epochs', recipe['num_epochs'])
            scaled['warmup_epochs'] = max(recipe['warmup_epochs'], min(_WARMUP_OF_LARGE_BATCHES, epochs - 1))
        return {**recipe, **scaled}


def _input_of(model):
    """The settings of the input that a trained network of the package has; none of another name."""
    description = find_card(model).description if split_tag(model)[1] else {}
    return {key: description[key] for key in ('input_size', 'rgb_mean', 'rgb_std') if key in description}


def make_parser(config_class: type[NetworkTrainingConfig], description: Optional[str],
                example: Optional[str] = None) -> argparse.ArgumentParser:
    """The flags of a training as a program of its own: see :func:`add_flags`."""
    parser = argparse.ArgumentParser(description=description, epilog=example and examples(example),
                                     argument_default=argparse.SUPPRESS, formatter_class=HelpFormatter)
    add_flags(parser, config_class)
    return parser


def add_flags(parser: argparse.ArgumentParser, config_class: type[NetworkTrainingConfig]) -> None:
    """Add a flag for each setting to a parser whose namespace has only those that are given."""
    parser.add_argument('--preset', choices=config_class.PRESETS, metavar='PRESET',
                        help=f'recipe that sets the flags not given: {", ".join(config_class.PRESETS)} (default: the '
                             "paper's, by --model)")
    parser.add_argument('--resume', nargs='?', const=True, choices=('auto',),
                        help='go on from the newest whole checkpoint in --save-dir, with its configuration; "auto": '
                             'begin where there is none')
    groups = {name: parser.add_argument_group(name) for name in ('network', 'data', 'run', 'optimization')}
    groups['run'].add_argument('--horovod', dest='kvstore', action='store_const', const=HOROVOD,
                               help='the same as --kvstore horovod')
    hints = get_type_hints(config_class)
    for setting_ in dataclasses.fields(config_class):
        if setting_.metadata:
            _add_flag(groups[setting_.metadata['group']], setting_, hints[setting_.name])


def parse(parser: argparse.ArgumentParser, config_class: type[_NetworkConfig],
          argv: Optional[Sequence[str]] = None) -> tuple[_NetworkConfig, Optional[checkpoint.Checkpoint]]:
    """The configuration that flags describe: see :func:`configure`."""
    return configure(config_class, vars(parser.parse_args(argv)))


def configure(config_class: type[_NetworkConfig],
              given: Mapping[str, Any]) -> tuple[_NetworkConfig, Optional[checkpoint.Checkpoint]]:
    """The configuration that flags describe, over a recipe's or, with ``--resume``, over a checkpoint's.

    Parameters
    ----------
    config_class : type
    given : dict
        What :func:`add_flags` puts into a namespace.

    Returns
    -------
    tuple of (TrainingConfig, Checkpoint or None)

    Raises
    ------
    InputError
        As of the configuration, :func:`checkpoint_to_resume` and :func:`check_same_curve`.
    """
    given = dict(given)
    resume = given.pop('resume', False)
    found = checkpoint_to_resume(given.get('save_dir', config_class.save_dir), resume)
    if not found:
        return config_class.from_preset(**given), None
    # A run's folder may have been moved since.
    given.setdefault('save_dir', config_class.save_dir)
    config = dataclasses.replace(config_class.from_dict(found.state['config']), **given)
    check_same_curve(config, found)
    return config, found


def checkpoint_to_resume(save_dir: PathLike, resume: Union[bool, str]) -> Optional[checkpoint.Checkpoint]:
    """The newest whole Checkpoint of a run's folder where ``resume`` asks for it, else None.

    Parameters
    ----------
    save_dir : path
    resume : bool or str
        ``auto`` goes on where there is a checkpoint and begins where there is none.

    Raises
    ------
    InputError
        For a resume without a checkpoint, and for a fresh run in a folder that holds one.
    """
    found = checkpoint.newest(save_dir)
    if resume is True and found is None:
        raise InputError(f'`resume`: there is no whole checkpoint in {Path(save_dir) / "checkpoints"}. Leave it out to '
                         'start a new run, or give the folder of the run to resume.')
    if found and not resume:
        raise InputError(f'{save_dir} holds checkpoints (the newest: {found.path.name}): give `resume` to go on, or '
                         'another folder.')
    return found


def check_same_curve(config: TrainingConfig, found: checkpoint.Checkpoint) -> None:
    """Refuse another value of a setting that shapes the curve than the Checkpoint ``found`` was made with.

    Raises
    ------
    InputError
    """
    # As it was saved: JSON has no tuples.
    saved, now = found.state['config'], json.loads(json.dumps(shaping(config)))
    changed = [f'`{name}` (was {saved[name]!r}, is {value!r})' for name, value in now.items()
               if name in saved and value != saved[name]]
    if changed:
        raise InputError(f'Cannot resume: {", ".join(changed)} would change the training curve. Leave it as it was, or '
                         'train in a new folder.')


def shaping(config: TrainingConfig) -> dict[str, Any]:
    """The settings that shape the curve, by name."""
    return {setting_.name: getattr(config, setting_.name) for setting_ in dataclasses.fields(config)
            if not setting_.metadata.get('free')}


def _add_flag(group, setting_, hint):
    meta, default = setting_.metadata, setting_.default
    argument = dict(meta['argument'])
    names = [name for name in (argument.pop('short', None), '--' + setting_.name.replace('_', '-')) if name]
    if hint is bool:
        argument['action'] = 'store_true'
    else:
        element, length = _element(hint)
        argument = {'type': element, 'nargs': length, 'choices': meta['choices'], **argument}
    shown = '' if hint is bool or default in (None, ()) else f'(default: {_text(default)})'
    group.add_argument(*names, help=' '.join(filter(None, (meta['help'], shown))), **argument)


def _element(hint):
    """Type of a value or of a tuple's elements, and of a tuple the ``nargs`` of its flag."""
    arguments = getattr(hint, '__args__', ())
    if getattr(hint, '__origin__', None) is tuple:
        return arguments[0], '+' if arguments[-1] is Ellipsis else len(arguments)
    # Optional
    return (arguments[0], None) if arguments else (hint, None)


def _checked(setting_, hint, value):
    """The value of a field in its own type.

    Raises
    ------
    InputError
    """
    name, meta = setting_.name, setting_.metadata
    optional = type(None) in getattr(hint, '__args__', ())
    # What is no setting, or has a type of its own, is for others to check.
    if not meta or 'type' in meta['argument'] or value is None and optional:
        return value
    element, length = _element(hint)
    if length:
        if isinstance(value, str) or not isinstance(value, Sequence) or length not in ('+', len(value)):
            raise InputError(f'`{name}` {_text(value)}: it must be '
                             f'{"a sequence" if length == "+" else f"{length} numbers"}.')
        return tuple(_checked_element(name, meta, element, part, value) for part in value)
    return _checked_element(name, meta, element, value, value)


def _checked_element(name, meta, element, value, shown):
    wrong = f'`{name}` {_text(shown)}'
    if meta['choices'] and value not in meta['choices']:
        raise InputError(f'{wrong}: it must be one of {", ".join(meta["choices"])}.')
    if element in (str, bool):
        if not isinstance(value, (str, os.PathLike) if element is str else bool) or value == '':
            raise InputError(f'{wrong}: it must be {"text, and not empty" if element is str else "True or False"}.')
        return value if element is bool else os.fspath(value)
    whole = isinstance(value, int) and not isinstance(value, bool)
    # NaN is not within any range.
    if not (whole or element is float and isinstance(value, float)) or not meta['low'] <= value <= meta['high']:
        kind = 'whole number' if element is int else 'number'
        raise InputError(f'{wrong}: it must be a {kind} from {meta["low"]} to {meta["high"]}.')
    if 0 < abs(value) < _SMALLEST_NUMBER:
        raise InputError(f'{wrong}: it is too small for float32. Give 0.')
    return element(value)


def _text(value):
    return ' '.join(map(_text, value)) if isinstance(value, (tuple, list)) else str(value)
