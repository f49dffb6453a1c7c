"""What the documentation says is so."""

import csv
import re
import statistics
from collections import defaultdict
from pathlib import Path

import pytest
import timm

import timm_snn
from tests.families import MODELS

ROOT = Path(__file__).parents[1]
README = (ROOT / 'README.md').read_text()


def table(heading: str) -> list[list[str]]:
    """The rows of the first table below a heading, without its header."""
    section = README.split(f'\n## {heading}\n')[1].split('\n## ')[0]
    rows = [line.strip('|').split('|') for line in section.splitlines() if line.startswith('|')]
    return [[cell.strip() for cell in row] for row in rows[2:]]


def test_the_models_table_lists_every_model_with_its_parameters():
    listed = {}
    for name, tags, _, steps, counts in table('Models'):
        for tag, count in zip(re.findall(r'`(\w+)`', tags), re.findall(r'[\d,]+', counts) * 2, strict=False):
            listed[f'{name.strip("`")}.{tag}'] = (int(count.replace(',', '')), int(steps))
    assert set(listed) == {tag for name in MODELS for tag in timm.list_models(f'{name}.*', include_tags=True)}
    for name, (count, steps) in listed.items():
        model = timm.create_model(name, device='meta')
        assert (sum(p.numel() for p in model.parameters()), model.num_steps) == (count, steps), name


def test_the_results_table_shows_the_measured_results():
    """A row for each model, data set and config: median of seeds, or mean and deviation of folds, then each."""
    runs = defaultdict(list)
    for run in csv.DictReader((ROOT / 'hub' / 'results.csv').open()):
        config = run['command'].split('--config ')[1].split()[0]
        assert timm.is_model(run['model'].split('.')[0]) and (ROOT / config).is_file()
        runs[run['model'], run['dataset'], run['split'], run['epochs'], config].append(run)
    rows = []
    for (model, dataset, split, epochs, config), same in runs.items():
        each = ', '.join(run['top1'] for run in same)
        accuracies = [float(run['top1']) for run in same]
        seeds = ', '.join(dict.fromkeys(run['seed'] for run in same))
        shown = f'**{statistics.median(accuracies):.2f}**'
        if '--fold' in same[0]['command']:
            shown = f'**{statistics.mean(accuracies):.2f} ± {statistics.stdev(accuracies):.2f}**'
        minutes = round(max(float(run['minutes']) for run in same))
        top1 = f'{shown} ({each})' if len(same) > 1 else shown
        rows.append([f'`{model}`', f'{dataset}, {split}', top1, seeds, epochs, f'{minutes} min', f'`{config}`'])
    assert table('Results') == rows


def test_the_energy_table_shows_the_measured_report():
    rows = []
    for file in sorted((ROOT / 'hub' / 'energy').glob('*.json')):
        report = timm_snn.profiling.Report.from_json(file.read_text())
        assert report.data == 'fashion_mnist, validation split, all 10,000'  # which torchvision calls the test split
        assert report.model == file.stem and (report.mac_pj, report.ac_pj) == (4.6, 0.9)
        total, energies = report.total, [f'{energy.mj:.4f}' for energy in report.energy.values()]
        facts = [f'{report.top1:.2f}', f'{100 * total.firing_rate:.2f} %', f'{total.dense_macs_per_step / 1e6:.2f} M']
        rows.append([f'`{report.model}`', 'Fashion-MNIST, 10,000 test images', *facts, *energies])
    assert rows and table('See inside') == rows


def test_the_speed_table_shows_the_measured_times():
    lines = (ROOT / 'benchmarks' / 'results' / 'cpu' / 'model-msvit_10_384.csv').read_text().splitlines()
    measured = list(csv.DictReader(line for line in lines if not line.startswith('#')))
    rows = []
    for kind, dtype in [(row['pass'], row['dtype']) for row in measured if row['variant'] == 'spikingjelly 2']:
        mine = [row for row in measured if (row['pass'], row['dtype']) == (kind, dtype)]
        peer = next(row for row in mine if row['variant'] == 'spikingjelly 2')
        ours = next(row for row in mine if row['variant'] in ('timm_snn compile', 'timm_snn fused, compile'))
        saved = [f'{float(row["saved MB"]):.0f}' for row in (peer, ours) if row['saved MB']]
        times = [f'{float(row["ms"]):.0f} ms' for row in (peer, ours)]
        convolutions = f'{float(ours["convolutions ms"]):.0f} ms'
        memory = ' -> '.join(saved) + ' MB' if saved else ''
        rows.append([kind, dtype, *times, f'**{float(ours["speedup"]):.2f}**', convolutions, memory])
    assert rows and table('Speed') == rows


@pytest.mark.parametrize('target', re.findall(r'\]\(([^)#]+?)(?:#\w+)?\)', README))
def test_links_lead_somewhere(target):
    assert target.startswith('https://') or (ROOT / target).exists()


def test_the_changelog_knows_this_version():
    assert f'\n## {timm_snn.__version__}' in (ROOT / 'CHANGELOG.md').read_text()
