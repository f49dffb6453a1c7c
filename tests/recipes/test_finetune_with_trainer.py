"""recipes/finetune_with_trainer.py, with few pictures and without the Hub."""

import json

import numpy as np
import pytest
from PIL import Image

from tests.support.scripts import load, run

pytest.importorskip('transformers')
pytest.importorskip('evaluate')


@pytest.fixture
def offline(monkeypatch):
    def refuse(name):
        raise ConnectionError(f'no {name} from here')

    monkeypatch.setattr(load('recipes/finetune_with_trainer.py').evaluate, 'load', refuse)


def test_it_trains_saves_and_answers_the_same_in_timm(offline, tmp_path, capsys):
    for split, number in (('train', 4), ('validation', 4)):
        for name, shade in (('dark', 20), ('light', 230)):
            folder = tmp_path / 'DATA' / split / name
            folder.mkdir(parents=True)
            for i in range(number):
                Image.fromarray(np.full((32, 32, 3), shade + i, np.uint8)).save(folder / f'{i}.png')
    options = ['--images', tmp_path / 'DATA', '--output', tmp_path / 'out', '--epochs', 1, '--batch-size', 4, '--json']
    run('recipes/finetune_with_trainer.py', *options)
    out, err = capsys.readouterr()
    given = json.loads(out)
    assert 0 <= given['accuracy'] <= 1 and set(given['answers']) <= {'dark', 'light'} and len(given['answers']) == 4
    assert 'accuracy is that of scikit-learn' in err and 'no accuracy from here' in err
    assert (tmp_path / 'out' / 'model' / 'model.safetensors').is_file()


def test_a_folder_without_splits_is_refused(tmp_path):
    with pytest.raises(SystemExit, match='expected FOLDER/train/CLASS/ and FOLDER/validation/CLASS/'):
        run('recipes/finetune_with_trainer.py', '--images', tmp_path / 'none', '--output', tmp_path / 'out')
