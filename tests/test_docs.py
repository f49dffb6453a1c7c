"""What the documentation says is so."""

import csv
import functools
import re
import runpy
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import timm

import timm_snn
from tests.models.test_golden_models import MODELS as GOLDEN_MODELS
from tests.support.families import ARTIFICIAL, FAMILIES, MODELS, SMALLEST
from timm_snn.training.errors import UserError

ROOT = Path(__file__).parents[1]
README = (ROOT / 'README.md').read_text()
PAGES = [*ROOT.glob('*.md'), *(path for folder in ('docs', 'hub', 'recipes') for path in (ROOT / folder).glob('*.md'))]
RESULTS_PAGE = (ROOT / 'docs' / 'results.md').read_text()
MODELS_PAGE = (ROOT / 'docs' / 'models.md').read_text()


def first_table(text: str) -> list[list[str]]:
    """Its rows, without the header."""
    lines = text[text.index('\n|') + 1 :].split('\n\n')[0].splitlines()
    return [[cell.strip() for cell in line.strip('|').split('|')] for line in lines[2:]]


def table(heading: str, page: str = README) -> list[list[str]]:
    return first_table(page.split(f'\n## {heading}\n')[1].split('\n## ')[0])


@pytest.fixture(scope='module')
def tables() -> dict[str, Any]:
    """What is in hub/table.py, which writes these tables: run it if one of the next tests fails."""
    return runpy.run_path(str(ROOT / 'hub' / 'table.py'))


def test_the_page_of_models_lists_every_tag_with_its_facts(tables):
    rows = table('Every model', MODELS_PAGE)
    assert {tag for name in [*MODELS, *ARTIFICIAL] for tag in timm.list_models(f'{name}.*', include_tags=True)} == {
        row[0].strip('`') for row in rows
    }
    for row in rows:
        assert row == tables['model_row'](row[0].strip('`'), row[5])
        model = timm.create_model(row[0].strip('`'), device='meta')
        assert row[4] == f'{sum(p.numel() for p in model.parameters()):,}' and row[3] == str(model.num_steps)


@pytest.mark.parametrize('name', SMALLEST)
def test_the_page_of_models_has_the_operations_of_a_step(name, tables):
    listed = {row[0].strip('`'): row[5] for row in table('Every model', MODELS_PAGE)}
    tag = f'{name}.{timm.get_pretrained_cfg(name).tag}'
    assert f'{tables["dense_macs"](tag) / 1e9:#.3g}' == listed[tag]


def test_the_other_tables_of_models_are_those_of_the_registry_and_of_what_was_measured(tables):
    assert f'\n{tables["render_families"]()}\n' in MODELS_PAGE and len(table('Families', MODELS_PAGE)) == len(FAMILIES)
    assert all(f'[{family[0]}]' in README for family in table('Families', MODELS_PAGE))
    assert f'\n{tables["render_shipped"]()}\n' in README
    assert f'\n{tables["render_weights"]()}\n' in (ROOT / 'docs' / 'hub.md').read_text()
    assert f'\n{tables["render_measured"]()}\n' in MODELS_PAGE
    assert f'\n{tables["render_origins"]()}\n' in MODELS_PAGE
    assert f'\n{tables["render_tradeoff"]()}\n' in (ROOT / 'docs' / 'tradeoff.md').read_text()
    section = MODELS_PAGE.split('\n## Before training\n')[1]
    measured = {row[0].strip('`').split('.')[0] for row in first_table(section)}
    missing = [family for family, models in FAMILIES.items() if not measured.intersection(models)]
    assert not_in_table(section, 'Not measured') == missing and len(measured) + len(missing) == len(FAMILIES)


def not_in_table(section: str, lead: str) -> list[str]:
    """The families that a line of its own names, as `Not measured: A, B.`"""
    line = re.search(rf'^{lead}: (.*)\.$', section, re.MULTILINE)
    return re.findall('`(\\w+)`', line[1]) if line else []


def test_models_are_said_to_equal_released_code_where_a_test_compares_them(tables):
    compared = tables['compared']()
    assert set(compared) <= {*MODELS, *ARTIFICIAL}
    assert set(compared.values()) <= {
        'released code',
        'released code (a narrower copy)',
        'a second implementation',
        'its parameters',
        'nothing',
    }
    golden = {tag.partition('.')[0] for tag, _, _ in GOLDEN_MODELS.values()}
    assert {model for model, what in compared.items() if what.startswith('released code')} == golden


def test_published_numbers_have_a_source(tables):
    for tag, row in tables['published']().items():
        assert tag in tables['tags']() and (row['top1'] or row['released_parameters'])
        assert bool(row['top1']) == bool(re.fullmatch(r'\d{4}\.\d{5}', row['source'])), tag
        assert not row['top1'] or 50 < float(row['top1']) < 100
        released = row['released_parameters']
        assert not released or int(released) > tables['describe'](tag)['parameters'], tag


def test_the_results_tables_show_the_measured_results(tables):
    """A row for each model, data set and config: median of seeds, or mean and deviation of folds, then each."""
    runs, equal = defaultdict(list), defaultdict(list)
    for run in csv.DictReader((ROOT / 'hub' / 'results.csv').open()):
        config = run['command'].split('--config ')[1].split()[0]
        assert timm.is_model(re.split('[. ]', run['model'])[0]) and (ROOT / config).is_file()
        if not run['top1']:  # of segmentation or detection, which have a table of their own
            continue
        if config.startswith(tables['SMALL_MEMBERS']):
            equal[Path(config).stem].append(run)
            continue
        split = run['split'] + (', the weights in the package' if run['weights'] else '')
        runs[run['model'], run['dataset'], split, run['epochs'], config].append(run)
    rows = []
    for (model, dataset, split, epochs, config), same in runs.items():
        each = ', '.join(run['top1'] for run in same)
        accuracies = [float(run['top1']) for run in same]
        seeds = ', '.join(dict.fromkeys(run['seed'] for run in same))
        shown = f'**{statistics.median(accuracies):.2f}**'
        if '--fold' in same[0]['command']:
            shown = f'**{statistics.mean(accuracies):.2f} ± {statistics.stdev(accuracies):.2f}**'
        minutes = [float(run['minutes']) for run in same if run['minutes']]  # unknown of resumed runs
        time = ''.join(f'{longest:.0f} min, ' for longest in sorted(minutes)[-1:]) + same[0]['hardware']
        top1 = f'{shown} ({each})' if len(same) > 1 else shown
        rows.append([f'`{model}`', f'{dataset}, {split}', top1, seeds, epochs, time, f'`{config}`'])
    assert table('Runs', RESULTS_PAGE) == rows
    assert f'\n{tables["render_dense"]()}\n' in (ROOT / 'docs' / 'dense.md').read_text()
    assert f'\n{tables["render_equal_terms"]()}\n' in MODELS_PAGE
    section = MODELS_PAGE.split('\n## On equal terms\n')[1].split('\n## ')[0]
    assert set(equal) == set(FAMILIES) - set(not_in_table(section, 'Not trained'))
    assert len({(run['split'], run['epochs']) for same in equal.values() for run in same}) == 1
    best = max(equal, key=lambda family: statistics.median(float(run['top1']) for run in equal[family]))
    for family, same in equal.items():
        seeds = ['0', '1', '2'] if family in {'msvit', 'qkformer', best} else ['0']
        assert [run['seed'] for run in same] == seeds, family


# Training samples of a run; of folds, those that are left of 1,100.
SAMPLES = {
    'digits': 1_437,
    'event digits (simulated camera)': 1_437,
    'Fashion-MNIST': 60_000,
    'CIFAR-10 (JPEG copy)': 50_000,
    'N-MNIST-small': 880,
}


def test_every_result_says_what_it_is_of_and_what_it_cost(tables):
    """FLOP of training are three forward passes of every sample; a kind of data and of split is one of a few."""
    macs = functools.cache(tables['macs_of_command'])
    for row in csv.DictReader((ROOT / 'hub' / 'results.csv').open()):
        assert row['data_kind'] in ('original', 'JPEG copy', 'simulated', 'part')
        assert ('JPEG copy' in row['dataset']) == (row['data_kind'] == 'JPEG copy')
        assert row['split_kind'] in ('test', 'held-out', 'folds') and row['split_kind'].rstrip('s') in row['split']
        assert re.fullmatch(r'[0-9a-f]{7,}|', row['commit'])
        assert row['weights'] == '' or (ROOT / 'timm_snn' / 'weights' / f'{row["weights"]}.safetensors').is_file()
        assert sum(bool(row[score]) for score in tables['SCORES']) == 1
        if not row['top1']:  # the work of a run that crops its images is not known
            assert float(row['gmacs']) > 0 and float(row['mj']) > 0
            continue
        cut = re.search(r'trained on ([\d,]+)', row['split'])
        samples = int(cut[1].replace(',', '')) if cut else SAMPLES[row['dataset']]
        expected = 6 * macs(row['command'], row['model']) * samples * int(row['epochs'])
        assert float(row['flop']) == pytest.approx(expected, rel=0.03)


def test_weights_in_the_package_have_one_row_of_results():
    kept = [row['weights'] for row in csv.DictReader((ROOT / 'hub' / 'results.csv').open()) if row['weights']]
    assert sorted(kept) == sorted(file.stem for file in (ROOT / 'timm_snn' / 'weights').glob('*.safetensors'))


def test_every_accuracy_on_a_page_was_measured(tables):
    tables['check']()


@pytest.mark.parametrize(
    ('page', 'found'),
    [
        (
            'It has 12.34 % and\n12.35, 12.36\nand 12.37 % of 0.125 %.',
            [(1, '12.34'), (2, '12.35'), (2, '12.36'), (3, '12.37')],
        ),
        (
            '| a | top-1 | rate |\n|---|---|---|\n| b | **12.34 ± 1.47** (12.35) | 8.13 % |',
            [(3, '12.34'), (3, '12.35')],
        ),
        ('| T | 1.00 |\n|---|---|\n| top-1 | 12.34 |', [(3, '12.34')]),
        ('| published top-1 | measured here |\n|---|---|\n| 12.34 | 12.35 |', [(3, '12.35')]),
        ('metrics:\n    - type: accuracy\n      value: 12.34', [(3, '12.34')]),
        (
            '# Measured: 12.34, 12.35,\n# 12.36 % in 10 min. Published: 12.37 % top-1.',
            [(1, '12.34'), (1, '12.35'), (2, '12.36')],
        ),
        ('They have 12.34 %. <!-- published: 12.34 -->', []),
    ],
)
def test_accuracies_are_recognised_by_a_rule(tables, page, found):
    assert list(tables['stated'](page)) == found


def test_an_accuracy_that_nobody_measured_is_named_with_its_line(tables, tmp_path, monkeypatch):
    (tmp_path / 'README.md').write_text('Digits:\n12.34 % top-1\n')
    script = tables['check'].__globals__
    monkeypatch.setitem(script, 'ROOT', tmp_path)
    monkeypatch.setitem(script, 'measured', lambda: {'98.61'})
    with pytest.raises(UserError, match=r'not in hub/results.csv: README.md:2: 12.34; add the row'):
        tables['check']()


DATA_OF_REPORTS = {
    'fashion_mnist, validation split, all 10,000': 'Fashion-MNIST, 10,000 test images',  # as torchvision calls them
    'cifar10 (JPEG copy), test split, all 10,000': 'CIFAR-10 (JPEG copy), 10,000 test images',
}


def test_the_energy_table_shows_the_measured_report():
    rows = []
    for file in sorted((ROOT / 'hub' / 'energy').glob('*.json')):
        report = timm_snn.profiling.Report.from_json(file.read_text())
        assert report.data in DATA_OF_REPORTS
        assert report.model == file.stem and (report.mac_pj, report.ac_pj) == (4.6, 0.9)
        total, energies = report.total, [f'{energy.mj:.4f}' for energy in report.energy.values()]
        facts = [f'{report.top1:.2f}', f'{100 * total.firing_rate:.2f} %', f'{total.dense_macs_per_step / 1e6:.2f} M']
        rows.append([f'`{report.model}`', DATA_OF_REPORTS[report.data], *facts, *energies])
    assert rows and table('Energy', RESULTS_PAGE) == rows


def test_the_speed_table_shows_the_measured_times():
    rows = []
    for cpu, folder, backend in (('AVX2', 'cpu-avx2', 'cpp'), ('AVX-512', 'cpu', 'compile')):
        lines = (ROOT / 'benchmarks' / 'results' / folder / 'model-msvit_10_384.csv').read_text().splitlines()
        measured = list(csv.DictReader(line for line in lines if not line.startswith('#')))
        for kind, dtype in [(row['pass'], row['dtype']) for row in measured if row['variant'] == 'spikingjelly 2']:
            mine = {row['variant']: row for row in measured if (row['pass'], row['dtype']) == (kind, dtype)}
            ours = f'timm_snn {"" if kind == "training" else "fused, "}{backend}'
            peer, dense, sparse = (mine.get(name) for name in ('spikingjelly 2', ours, f'{ours}, sparse'))
            memory = ' -> '.join(f'{float(row["saved MB"]):.0f}' for row in (peer, dense) if row['saved MB'])
            cells = [cpu, f'`{backend}`', kind, dtype, f'{float(peer["ms"]):.0f} ms']
            for row in (dense, sparse):
                cells += [f'{float(row["ms"]):.0f} ms', f'{float(row["speedup"]):.2f}'] if row else ['', '']
            rows.append([*cells, f'{memory} MB' if memory else ''])
    assert rows and table('Compared with SpikingJelly', (ROOT / 'docs' / 'backends.md').read_text()) == rows


def test_the_table_of_defaults_shows_the_measured_times():
    rows = []
    for model, size in (('msvit_10_384', 224), ('msvit_4_96', 32)):
        file = ROOT / 'benchmarks' / 'results' / 'cpu-defaults' / f'model-{model}.csv'
        measured = list(csv.DictReader(line for line in file.read_text().splitlines() if not line.startswith('#')))
        for peer in (row for row in measured if row['variant'] == 'spikingjelly 2'):
            same = [row for row in measured if (row['batch'], row['pass']) == (peer['batch'], peer['pass'])]
            (ours,) = (row for row in same if row['variant'] == 'timm_snn')
            times = [f'{float(row["ms"]):.0f} ms' for row in (peer, ours)]
            memory = ' -> '.join(f'{float(row["peak MB"]):.0f}' for row in (peer, ours))
            faster = f'{float(ours["speedup"]):.1f}'
            rows.append([f'`{model}`, {size} px', peer['batch'], peer['pass'], *times, faster, f'{memory} MB'])
    assert rows and table('By default on a CPU', (ROOT / 'docs' / 'backends.md').read_text()) == rows


def test_the_readme_begins_with_commands_that_run(capsys):
    """Two commands of make, and four lines of Python."""
    commands, example = re.findall(r'\n```(?:bash|python)\n(.*?)```', README, re.DOTALL)[:2]
    targets = re.findall(r'^make (\w+)', commands, re.MULTILINE)
    assert targets == ['quickstart', 'test'] and len([line for line in example.splitlines() if line]) == 4
    makefile = (ROOT / 'Makefile').read_text()
    assert all(f'\n{target}:' in makefile for target in targets)
    exec(example, {})
    assert re.fullmatch(r'tensor\(\[\d\]\) 0\.01\d+ mJ\n', capsys.readouterr().out)
    assert len(README.splitlines()) <= 130


@pytest.mark.parametrize('page', PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    """To a file, and to a heading of a page."""
    for target, heading in re.findall(r'\]\(([^)#]*)(#[\w-]+)?\)', page.read_text()):
        file = page.parent / target if target else page
        assert target.startswith('https://') or file.exists(), target
        if heading:
            headings = re.findall(r'^#+ (.*)', file.read_text(), re.MULTILINE)
            assert heading in {'#' + title.lower().replace(' ', '-') for title in headings}, target + heading


def test_the_changelog_knows_this_version():
    assert f'\n## {timm_snn.__version__}' in (ROOT / 'CHANGELOG.md').read_text()


def test_contributing_names_files_that_exist():
    text = (ROOT / 'CONTRIBUTING.md').read_text()
    paths = re.findall(r'`((?:timm_snn|tests|recipes|hub|docs|benchmarks|\.github)/[\w./]*)', text)
    assert paths and [path for path in paths if 'NAME' not in path and not (ROOT / path).exists()] == []
