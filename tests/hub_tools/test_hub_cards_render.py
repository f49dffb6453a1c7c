"""All cards are what the Hub takes and shows: their heads by its validation, their tables and links by rule."""

import re
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import DatasetCard, ModelCard, SpaceCard
from PIL import Image

from tests.support import writers
from tests.support.scripts import load
from timm_snn.data import EventFolder, write_rows
from timm_snn.models.pretrained import WEIGHTS

ROOT = Path(__file__).parents[2]
KINDS = {'model': ModelCard, 'dataset': DatasetCard, 'space': SpaceCard}
SPACE = ROOT / 'demo' / 'README.md'


def check(text: str, kind: str = 'model') -> None:
    card = KINDS[kind](text)
    card.validate()  # by the Hub on the loopback address
    prose = re.sub(r'```.*?```', '', card.text, flags=re.DOTALL)
    assert card.text.count('```') % 2 == 0
    for table in re.findall(r'(?:^\|.*\n)+', prose, re.MULTILINE):
        cells = [len(re.findall(r'(?<!\\)\|', line)) for line in table.splitlines()]
        assert len(cells) >= 3 and len(set(cells)) == 1, table
        assert re.fullmatch(r'[|\s:-]+', table.splitlines()[1]), table
    for target in re.findall(r'\]\(([^)]+)\)', prose):
        assert target.startswith(('https://', '#')), f'{target}: on the Hub there is no such file'


@pytest.mark.parametrize('path', sorted(WEIGHTS.glob('*.md')), ids=lambda path: path.stem)
def test_cards_of_shipped_weights(hub, path):
    check(path.read_text())
    assert ModelCard(path.read_text()).data.eval_results


@pytest.mark.parametrize('name', ['msvit_4_96.fashion_mnist', 'qkformer_2_256.cifar10_dvs'])
def test_cards_of_registered_models(hub, command, name):
    check(command('card.py', name))


@pytest.mark.skipif(not SPACE.is_file(), reason='there is no demo/README.md here')
def test_the_card_of_the_space(hub):
    check(SPACE.read_text(), 'space')


@pytest.mark.parametrize(
    ('head', 'message'),
    [('license: mine', 'must be one of'), ('license: mit\ntags: snn', 'array of strings'), ('license: [', 'parsing')],
)
def test_the_loopback_hub_refuses_wrong_heads(hub, head, message):
    card = ModelCard('---\nlicense: mit\n---\n')
    type(card).__str__, kept = lambda self: f'---\n{head}\n---\n', type(card).__str__
    try:
        with pytest.raises(ValueError, match=message):
            card.validate()
    finally:
        type(card).__str__ = kept


@pytest.fixture
def recordings(tmp_path) -> Path:
    for file in ('train/clap/a', 'train/wave/b', 'validation/clap/c'):
        path = tmp_path / 'DATA' / f'{file}.npz'
        path.parent.mkdir(parents=True, exist_ok=True)
        writers.npz(path, writers.random_events(50))
    return tmp_path / 'DATA'


def test_cards_of_event_data_say_what_the_files_say(hub, command, recordings, tmp_path):
    text = command('dataset_card.py', recordings, '--repo', 'lab/gestures', '--license', 'cc-by-4.0')
    check(text, 'dataset')
    assert '# gestures' in text and '| train | 2 |' in text and '**Classes:** 2, clap, wave' in text
    data = EventFolder(recordings, 'train', sensor_size=(128, 128), num_steps=2, cache=None)
    write_rows(data, tmp_path / 'rows')
    text = command('dataset_card.py', tmp_path / 'rows', '--license', 'mit')
    check(text, 'dataset')
    assert '[2, 2, 128, 128]' in text and '| train | 2 |' in text and '**Sensor:** 128 x 128' in text
    names: dict = {}
    exec(re.findall(r'```python\n(.*?)```', text, re.DOTALL)[0].replace('FOLDER', str(tmp_path / 'rows')), names)
    assert names['frames'].shape == (2, 2, 128, 128)


def test_cards_of_pictures_and_what_is_missing(hub, command, refused, tmp_path):
    for file in ('train/cat/1.png', 'train/dog/2.png'):
        path = tmp_path / 'pets' / file
        path.parent.mkdir(parents=True)
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(path)
    text = command('dataset_card.py', tmp_path / 'pets', '--license', 'mit', '--source', 'Ours.')
    check(text, 'dataset')
    assert '2 images, for classification' in text and 'Ours. Licence: mit.' in text and 'TODO' not in text
    assert 'needs the licence of its data' in refused('dataset_card.py', tmp_path / 'pets')
    (tmp_path / 'empty').mkdir()
    assert 'is no data set' in refused('dataset_card.py', tmp_path / 'empty', '--license', 'mit')


def test_the_collection_is_made_once_and_then_grows(hub, command, refused, monkeypatch):
    collection = load('hub/collection.py')
    wanted = collection.read_collection()
    assert wanted['items'] == collection.items()  # else run it with --write
    first, second = (item['id'] for item in wanted['items'][:2])
    hub.add(first, {})
    assert '1 items added' in command('collection.py')
    hub.add(second, {})
    assert '1 items added' in command('collection.py') and '0 items added' in command('collection.py')
    (made,) = hub.collections.values()
    assert [item['id'] for item in made['items']] == [first, second]
    assert (made['title'], made['description']) == (wanted['title'], wanted['description'])
    made['description'], made['items'][0]['note'] = 'older', {'text': 'older'}
    command('collection.py')
    assert made['description'] == wanted['description']
    assert made['items'][0]['note'] == {'text': wanted['items'][0]['note']}
    monkeypatch.setenv('HF_TOKEN', '')
    assert 'nobody is logged in' in refused('collection.py')
