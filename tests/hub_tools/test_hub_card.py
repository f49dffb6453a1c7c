"""hub/card.py: what a card says is what was measured, and its code runs."""

import csv
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import yaml
from huggingface_hub import ModelCard
from PIL import Image

import timm_snn
from tests.support import writers
from tests.support.families import SMALLEST
from tests.support.scripts import load
from timm_snn.hub import card as cards

card = load('hub/card.py')
ROOT = Path(__file__).parents[2]
REFERENCES = yaml.safe_load((ROOT / 'CITATION.cff').read_text())['references']
RESULTS = list(csv.DictReader((ROOT / 'hub' / 'results.csv').open()))
# One recipe, several seeds and machines.
DIGITS = [row for row in RESULTS if '/digits.yaml' in row['command'] and 'act=relu' not in row['command']]


def measured(card: str) -> list[tuple]:
    """What its model-index says: data, split, seed, top-1."""
    found = ModelCard(card).data.eval_results or []
    return [(r.dataset_name, r.dataset_split, str(r.metric_args['seed']), f'{r.metric_value:.2f}') for r in found]


@pytest.fixture
def finished_recipe():
    """A Source as a whole run of a config leaves it, with these results by epoch."""

    def make(command: str, history: list[float], **changes):
        run = card.options_of(command) | changes
        model = timm.create_model(run['model'])
        rows = [{'epoch': str(i), 'eval_top1': str(top1)} for i, top1 in enumerate(history)]
        return cards.Source(model.eval(), run=run, history=rows)

    return make


def test_a_registered_model_has_the_results_and_energies_of_its_recipe(command):
    text = command('card.py', 'msvit_4_96.fashion_mnist')
    rows = [row for row in RESULTS if row['model'] == 'msvit_4_96.fashion_mnist']
    (kept,) = (row for row in rows if row['weights'])
    assert measured(text) == [(kept['dataset'], kept['split'], kept['seed'], kept['top1'])]
    assert text.count('| these |') == 1 and text.count('| a run |') == len(rows) - 1
    assert all(f'`{row["command"]}`' in text for row in rows)
    report = timm_snn.profiling.Report.from_json(
        (ROOT / 'hub' / 'energy' / 'msvit_4_96.fashion_mnist.json').read_text()
    )
    assert report.to_markdown().strip() in text
    assert 'Of weights from a run of the same recipe' in text and 'Energies are estimates of arithmetic only' in text


def test_a_model_that_nobody_trained_claims_nothing(command):
    text = command('card.py', 'msvit_2_256.cifar10_dvs')
    assert measured(text) == [] and 'No accuracy has been measured.' in text and 'Not measured here' in text
    assert 'No weights with this name can be loaded' in text
    for fact in ('Parameters:** 1,701,002', 'Time steps T:** 16', '2 x 128 x 128 frames', 'GMACs:** 1.05'):
        assert fact in text
    assert 'The logits of an image do not depend on who shares its batch.' in text


@pytest.mark.parametrize(
    ('name', 'settings', 'kind', 'fires'),
    [
        ('msvit_4_96', {}, 'spiking', 'LIF'),
        ('msvit_4_96', {'lif_layer': 'alif'}, 'spiking', 'ALIF'),
        ('msvit_4_96', {'act': 'relu'}, 'artificial', 'none that spikes'),
        ('resnet19', {}, 'artificial', 'none that spikes'),
    ],
)
def test_a_network_without_spikes_is_not_called_a_spiking_one(name, settings, kind, fires):
    text = cards.render_card(cards.Source(timm.create_model(name, **settings).eval()))
    assert f'Model type:** image classification, {kind} neural network' in text and f'Neurons:** {fires}\n' in text
    assert ('spiking-neural-network' in ModelCard(text).data.tags) == (kind == 'spiking')
    assert ('Spiking networks amplify rounding' in text) == (kind == 'spiking')


@pytest.mark.parametrize('name', SMALLEST)
def test_every_family_has_a_limitation_and_its_paper_is_cited(name):
    cfg = timm.get_pretrained_cfg(name)
    (arxiv,) = cards.arxiv_ids(cfg.to_dict())
    (paper,) = [paper for paper in REFERENCES if paper['notes'].partition(',')[0] == f'arXiv {arxiv}']
    assert paper['title'] == cfg.paper_name and paper['title'] in cards.citation(cfg.to_dict())
    names = [f'{author["family-names"]}, {author["given-names"]}' for author in paper['authors']]
    assert f'author = {{{" and ".join(names)}}}' in cards.citation(cfg.to_dict())
    family = sys.modules[timm.models.model_entrypoint(name).__module__]
    assert family.LIMITATIONS and cfg.paper_ids == family.CITATION


def test_a_run_in_results_csv_is_recognised_by_its_options_and_its_result(finished_recipe):
    row = next(row for row in RESULTS if (row['dataset'], row['seed']) == ('digits', '1'))
    same = finished_recipe(row['command'], [50.0] * 9 + [98.888], output='elsewhere', num_threads=8)
    text = card.make_card(same, 'lab/digits', None)
    assert measured(text) == [('digits', row['split'], '1', '98.89')]
    assert text.count('| these |') == 1 and text.count('| another run |') == len(DIGITS) - 1
    assert '| these | digits | fixed held-out fifth (360) | 98.89 | 1 | 10 |' in text


@pytest.mark.parametrize(
    ('changes', 'others'), [(dict(seed=7), len(DIGITS)), (dict(lr=1e-3), 0), (dict(model_ema=True), 0)]
)
def test_a_run_of_another_kind_has_its_own_result_alone(finished_recipe, changes, others):
    top1 = RESULTS[0]['top1']  # the same by chance
    source = finished_recipe(RESULTS[0]['command'], [float(top1)] * 10, **changes)
    text = card.make_card(source, 'lab/digits', None)
    assert measured(text) == [('digits', 'validation', str(source.run['seed']), top1)]
    assert text.count('| another run |') == others


def test_reduced_data_sets_are_named_as_such_and_held_out_samples_are_no_test(finished_recipe):
    source = finished_recipe(RESULTS[0]['command'], [12.34], max_train_samples=1500, max_val_samples=50)
    (result,) = measured(card.make_card(source, None, None))
    assert result[1] == 'validation, at most 50 samples of it; trained on at most 1,500 samples'
    source = finished_recipe(RESULTS[0]['command'], [56.78, 12.34], val_fraction=0.1)
    text = card.make_card(source, None, None)
    assert measured(text) == [] and 'These weights were not evaluated here.' in text
    source.tested = {'epoch': 1, 'top1': 0.0}
    split = 'validation; the epoch was picked by held-out training samples'
    text = card.make_card(source, None, None)
    assert measured(text) == [('digits', split, '0', '0.00')] and '| 0.00 | 0 | 1 |' in text
    assert 'none was picked' not in text


def test_data_and_parents_on_the_hub_are_linked_and_local_ones_shortened(finished_recipe):
    def data_of(**changes) -> tuple:
        card_data = ModelCard(
            card.make_card(finished_recipe(RESULTS[0]['command'], [50.0], **changes), None, None)
        ).data
        return card_data.datasets, card_data.base_model, card_data.eval_results[0].dataset_name

    hub = data_of(dataset='hfds/uoft-cs/cifar10', model='msvit_4_96')
    assert hub == (['uoft-cs/cifar10'], None, 'uoft-cs/cifar10')
    assert data_of(dataset='hfds//home/me/cifar10_jpeg') == (None, None, 'cifar10_jpeg')
    assert data_of(dataset='', data_dir='/home/me/flowers') == (None, None, 'flowers')
    run = finished_recipe(RESULTS[0]['command'], [50.0])
    run.run |= dict(model='hf-hub:lab/base@main', pretrained=True)
    assert ModelCard(card.make_card(run, None, None)).data.base_model == 'lab/base'


def test_a_folder_that_nobody_evaluated_says_so(command, model_folder):
    text = command('card.py', model_folder, '--repo', 'lab/model')
    assert measured(text) == [] and 'These weights were not evaluated here.' in text
    assert '`msvit_4_96.fashion_mnist`' not in text and "'hf-hub:lab/model'" in text


@pytest.mark.parametrize(
    ('name', 'in_chans', 'is_events'),
    [('msvit_4_96', 3, False), ('msvit_2_256', 2, True), ('spikingresformer_gesture.dvs128_gesture', 3, True)],
)
def test_the_code_of_a_card_runs(command, tmp_path, monkeypatch, name, in_chans, is_events):
    from timm.models import save_for_hf

    model = timm.create_model(name, num_steps=2, in_chans=in_chans)
    save_for_hf(model, str(tmp_path / 'FOLDER'), safe_serialization=True)
    text = command('card.py', tmp_path / 'FOLDER')
    has_frames = 'read_events(' in text
    assert has_frames == ('.dvs128_gesture' in name) == (f'channels {in_chans}, size 64, 64' in text)
    assert ('frames of events' in text and (has_frames or f'channels={in_chans}' in text)) == is_events
    writers.npy(tmp_path / 'recording.npy', writers.random_events(100))
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.zeros((40, 50), np.uint8)).save('image.png')
    names: dict = {}
    for block in re.findall(r'```python\n(.*?)```', text, re.DOTALL):
        exec(block, names)
    assert names['probabilities'].shape == (1, 5) and isinstance(names['encoder'](names['x']), torch.Tensor)


def test_an_energy_report_must_be_about_the_model(command, refused, model_folder, tmp_path):
    model = timm.create_model(f'local-dir:{model_folder}', pretrained=True).eval()
    report = timm_snn.profile(model, torch.rand(4, 1, 28, 28), data_name='noise', progress=False)
    (tmp_path / 'report.json').write_text(report.to_json())
    text = command('card.py', model_folder, '--energy', tmp_path / 'report.json')
    assert report.to_markdown().strip() in text and 'Of weights from a run' not in text
    (tmp_path / 'report.json').write_text(json.dumps(json.loads(report.to_json()) | {'num_steps': 4}))
    line = refused('card.py', model_folder, '--energy', tmp_path / 'report.json')
    assert 'T = 4 and 1 channels instead of' in line
    (tmp_path / 'report.json').write_text('{}')
    assert 'this is no report' in refused('card.py', model_folder, '--energy', tmp_path / 'report.json')


def test_a_card_goes_to_a_file_or_nowhere(command, refused, tmp_path):
    command('card.py', 'msvit_4_96', '--output', tmp_path / 'README.md')
    assert (tmp_path / 'README.md').read_text().startswith('---\n')
    assert 'cannot write' in refused('card.py', 'msvit_4_96', '--output', tmp_path / 'no' / 'README.md')
    assert 'there is no msvit_5: expected' in refused('card.py', 'msvit_5')
    assert 'resnet18 is no model of timm_snn' in refused('card.py', 'resnet18')
