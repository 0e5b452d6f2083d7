"""The trained networks that come with the package: a file of weights and a card for each.

``weights/NAME.TAG.params`` holds the parameters of the network NAME as trained on the data set TAG, and
``weights/NAME.TAG.json``, its card, says on what it was trained, how, and how accurate it is.
"""
import hashlib
import json
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Union

from ..utils.errors import InputError

FOLDER = Path(__file__).parents[1] / 'weights'


class Card(NamedTuple):
    """What is known of a trained network.

    Attributes
    ----------
    name : str
        ``NAME.TAG``.
    keywords : dict
        Of :func:`gluon_lprnet.get_model`: what the network was built with, ``classes`` among them.
    description : dict
        Input, output and reading of pictures, as in the description of an exported network.
    sha256 : str
        Of the file of weights.
    facts : dict
        The whole card, as it is in the file: data, recipe, command, machine, date, accuracy, license.
    """

    name: str
    keywords: Dict[str, Any]
    description: Dict[str, Any]
    sha256: str
    facts: Dict[str, Any]

    @property
    def model(self) -> str:
        """The name of the network, without the data set's."""
        return split_tag(self.name)[0]

    @property
    def tag(self) -> str:
        """The name of the data set."""
        return split_tag(self.name)[1]

    @property
    def params(self) -> Path:
        """The file of weights, verified.

        Raises
        ------
        InputError
            If it is missing, or its SHA-256 is not the card's.
        """
        path = FOLDER / f'{self.name}.params'
        try:
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
        except OSError as error:
            raise InputError(f'{path} cannot be read ({error.strerror}): install the package again.') from error
        if digest != self.sha256:
            raise InputError(f'{path} is damaged: its SHA-256 is not the one on its card. Install the package again.')
        return path


def split_tag(name: str):
    """``NAME.TAG`` as (NAME, TAG), and a name without a tag as (NAME, None)."""
    # A width holds a dot too, and no tag begins with a digit.
    model, dot, tag = str(name).rpartition('.')
    return (model, tag) if dot and not tag[:1].isdigit() else (str(name), None)


def cards() -> List[Card]:
    """The cards of all trained networks of the package, by name."""
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
        The tag where the name has none; True where the network has weights of one data set only.

    Raises
    ------
    InputError
        If there are no such weights; the message says which there are.
    """
    model, tag = split_tag(name)
    tag = tag or (pretrained if isinstance(pretrained, str) else None)
    every = cards()
    of_model = [card for card in every if card.model == model]
    found = [card for card in of_model if tag in (None, card.tag)]
    if len(found) == 1:
        return found[0]
    if found:
        raise InputError(f'{model} has weights of several data sets: give one of them, as in '
                         f'pretrained={found[0].tag!r} ({", ".join(card.tag for card in found)}).')
    have = of_model or every
    raise InputError(f'there are no trained weights for {model}{f" on {tag}" if tag else ""}; there are: '
                     f'{", ".join(card.name for card in have) or "none"}. To use a file of yours, build the network '
                     'without pretrained and call net.load_parameters(FILE).')
