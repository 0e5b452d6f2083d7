"""The words of ImageNet's 1,000 classes, in place of their WordNet ids such as ``n01440764``.

``imagenet_names.txt``, beside this file, says where they are from and on what terms.
"""
import functools
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType

_FILE = Path(__file__).with_suffix('.txt')
_SYNSET = re.compile(r'(n\d{8})\s+(.+)')


@functools.cache
def imagenet_names() -> Mapping[str, str]:
    """A name by WordNet id, in the order of ImageNet's labels."""
    lines = _FILE.read_text(encoding='utf-8').splitlines()
    return MappingProxyType(names_by_wnid(line for line in lines if not line.startswith('#')))


def names_by_wnid(lines: Iterable[str]) -> dict[str, str]:
    """A name by WordNet id, of lines such as ``n01440764 tench, Tinca tinca``: the first of the words.

    Where classes share it, as the bird and the machine that are called crane, the id stands behind it.

    Raises
    ------
    ValueError
        If a line is not of this form.
    """
    first = {}
    for line in lines:
        match = _SYNSET.fullmatch(line)
        if match is None:
            raise ValueError(f'{line[:100]!r} is not a WordNet id and words')
        first[match[1]] = match[2].split(',')[0]
    shared = Counter(first.values())
    return {wnid: name if shared[name] == 1 else f'{name} ({wnid})' for wnid, name in first.items()}


def in_words(classes: Iterable[str]) -> list[str]:
    """Names of classes with words in place of those that are WordNet ids of ImageNet."""
    return [imagenet_names().get(name, name) for name in classes]
