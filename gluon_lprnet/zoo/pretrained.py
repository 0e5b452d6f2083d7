"""The trained networks that come with the package: a weights file and a card for each.

``weights/NAME.TAG.params`` holds the parameters of the network NAME as trained on the data set TAG, and
``weights/NAME.TAG.json``, its card, says what it was trained on, how, and how accurate it is.
"""
import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple, Optional, Union

from ..utils.errors import InputError

FOLDER = Path(__file__).parents[1] / 'weights'


class Card(NamedTuple):
    """What is known about a trained network.

    Attributes
    ----------
    name : str
        ``NAME.TAG``.
    keywords : dict
        The arguments of :func:`gluon_lprnet.get_model` that the network was built with, including ``classes``.
    description : dict
        Input, output and preprocessing, as in the description of an exported network.
    sha256 : str
        Of the weights file.
    facts : dict
        The whole card, as in the file: data, recipe, command, machine, date, accuracy, license.
    """

    name: str
    keywords: dict[str, Any]
    description: dict[str, Any]
    sha256: str
    facts: dict[str, Any]

    @property
    def model(self) -> str:
        """The name of the network, without the data set's."""
        return split_tag(self.name)[0]

    @property
    def tag(self) -> str:
        """The name of the data set."""
        return self.name.rpartition('.')[2]

    @property
    def params(self) -> Path:
        """The weights file, verified.

        Raises
        ------
        InputError
            If it is missing, or its SHA-256 differs from the card's.
        """
        path = FOLDER / f'{self.name}.params'
        try:
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
        except OSError as error:
            raise InputError(f'{path} cannot be read ({error.strerror}): reinstall the package.') from error
        if digest != self.sha256:
            raise InputError(f'{path} is damaged: its SHA-256 is not the one on its card. Reinstall the package.')
        return path


def split_tag(name: str) -> tuple[str, Optional[str]]:
    """``NAME.TAG`` as (NAME, TAG), and a name without a tag as (NAME, None)."""
    # A width contains a dot too, and no tag starts with a digit.
    model, dot, tag = str(name).rpartition('.')
    return (model, tag) if dot and not tag[:1].isdigit() else (str(name), None)


def cards() -> list[Card]:
    """The cards of all trained networks in the package, by name."""
    found = []
    for path in sorted(FOLDER.glob('*.json')):
        facts = json.loads(path.read_text(encoding='utf-8'))
        found.append(Card(path.stem, facts['keywords'], facts['description'], facts['sha256'], facts))
    return found


def find_card(name: str, pretrained: Union[bool, str] = True) -> Card:
    """The card of a network.

    Parameters
    ----------
    name : str
        ``NAME`` or ``NAME.TAG``.
    pretrained : bool or str
        The tag, if the name has none; True if the network has weights for a single data set.

    Raises
    ------
    InputError
        If there are no such weights; the message lists the available ones.
    """
    model, tag = split_tag(name)
    tag = tag or (pretrained if isinstance(pretrained, str) else None)
    every = cards()
    of_model = [card for card in every if card.model == model]
    found = [card for card in of_model if tag in (None, card.tag)]
    if len(found) == 1:
        return found[0]
    if found:
        raise InputError(f'{model} has weights for several data sets: choose one, for example '
                         f'pretrained={found[0].tag!r} ({", ".join(card.tag for card in found)}).')
    have = of_model or every
    raise InputError(f'there are no trained weights for {model}{f" on {tag}" if tag else ""}; available: '
                     f'{", ".join(card.name for card in have) or "none"}. To use your own file, build the network '
                     'without pretrained and call net.load_parameters(FILE).')
