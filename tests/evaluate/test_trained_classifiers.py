"""The classification networks of the package, each against its card on real photos, and in words on drawn ones."""
import numpy as np
import pytest

import gluon_lprnet
from gluon_lprnet.data.faces.drawn import draw_face
from gluon_lprnet.zoo.pretrained import cards

CARDS = [card for card in cards() if card.description.get('task') == 'classification']
# Where the photos of a data set are among the real data, and their classes by folder.
PHOTOS = {'imagenette': 'imagenette/val'}


@pytest.fixture(params=CARDS, ids=lambda card: card.name)
def card(request):
    return request.param


def test_a_card_says_what_it_must(card):
    assert card.params.stat().st_size < 5e6
    assert all(card.facts[key] for key in ('data', 'recipe', 'command', 'machine', 'date', 'accuracy', 'license'))
    assert len(card.description['class_names']) == card.keywords['classes']


def test_accuracy_is_that_of_the_card(card, shared_data):
    if card.tag not in PHOTOS:
        pytest.skip(f'no photos of {card.tag} in folders')
    folders = sorted(path for path in (shared_data / PHOTOS[card.tag]).iterdir() if path.is_dir())
    assert len(folders) == card.keywords['classes']
    photos = [(path, label) for label, folder in enumerate(folders) for path in sorted(folder.iterdir())]
    results = gluon_lprnet.load(card.name).predict([path for path, _ in photos], top_k=1)
    top1 = np.mean([result[0].index == label for result, (_, label) in zip(results, photos)])
    expected, = card.facts['accuracy'].values()
    assert len(photos) == expected['images']
    # The card's photos were packed, and read by MXNet.
    assert top1 == pytest.approx(expected['top1'], abs=2 / len(photos))


def test_pictures_get_words(card):
    rng = np.random.default_rng(0)
    results = gluon_lprnet.load(card.name).predict([draw_face(rng)[0] for _ in range(3)], top_k=99)
    for result in results:
        assert {each.label for each in result} == set(card.description['class_names'])
        assert sum(each.probability for each in result) == pytest.approx(1, abs=1e-5)
    assert len({result[0].probability for result in results}) == 3
