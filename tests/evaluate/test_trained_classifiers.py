"""The classification networks of the package, each against its card on real photos, and in words on drawn ones."""
import numpy as np
import pytest

import gluon_lprnet
from gluon_lprnet.data.faces.drawn import draw_face
from gluon_lprnet.data.recordio import read_records
from gluon_lprnet.zoo.pretrained import cards

CARDS = [card for card in cards() if card.description.get('task') == 'classification']
# Where the photos of a data set are among the real data: a folder of class folders, or records.
PHOTOS = {'imagenette': 'imagenette/val', 'cifar10': 'cifar10/test.rec', 'imagenet': 'imagenet_samples'}


@pytest.fixture(params=CARDS, ids=lambda card: card.name)
def card(request):
    return request.param


def test_a_card_says_what_it_must(card):
    assert card.params.stat().st_size < 5e6
    assert all(card.facts[key] for key in ('data', 'recipe', 'command', 'machine', 'date', 'accuracy', 'license'))
    assert len(card.description['class_names']) == card.keywords['classes']


def photos(path):
    """Pictures, as paths or bytes, with their labels."""
    if path.suffix == '.rec':
        return [(image, int(label)) for label, image in read_records(path)]
    folders = sorted(folder for folder in path.iterdir() if folder.is_dir())
    return [(file, label) for label, folder in enumerate(folders) for file in sorted(folder.iterdir())]


def test_accuracy_is_that_of_the_card(card, shared_data):
    """By ``predict``, which does not read as ``evaluate`` does, that measured what the card says."""
    assert card.tag in PHOTOS, 'say where its photos are'
    of_data = photos(shared_data / PHOTOS[card.tag])
    results = gluon_lprnet.load(card.name).predict([photo for photo, _ in of_data], top_k=1)
    labels = np.array([label for _, label in of_data])
    assert np.unique(labels).tolist() == list(range(card.keywords['classes']))
    top1 = np.mean(np.array([result[0].index for result in results]) == labels)
    # A card may have other sets too, which are not here.
    expected, = (each for each in card.facts['accuracy'].values() if each['images'] == len(labels))
    # The card's photos were packed, and read by MXNet.
    assert top1 == pytest.approx(expected['top1'], abs=2 / len(labels))


def test_pictures_get_words(card):
    rng = np.random.default_rng(0)
    results = gluon_lprnet.load(card.name).predict([draw_face(rng)[0] for _ in range(3)], top_k=1000)
    for result in results:
        assert {each.label for each in result} == set(card.description['class_names'])
        assert sum(each.probability for each in result) == pytest.approx(1, abs=1e-5)
    assert len({result[0].probability for result in results}) == 3
