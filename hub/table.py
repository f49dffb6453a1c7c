"""Write the tables of models into README.md, docs/models.md and docs/hub.md, from the registry and from measured files.

    python hub/table.py           # write them
    python hub/table.py --check   # end with an error where a page states an accuracy that is not in hub/results.csv

What is not counted here comes from docs/published.csv, docs/compared.csv, hub/results.csv and, by benchmarks/family.py,
benchmarks/results/cpu/family.csv.

An accuracy is a number with two decimals: before a % in prose, alone or in a list as '99.17, 98.89 and 98.89 %'; in a
row or column of a table whose head has 'top-1' or 'measured here'; the value of a card's model-index. It has to be in
hub/results.csv, or the median or mean of runs there whose commands differ in seed and fold, or in a file of MEASURED.
A number that others published is named on the page itself, as '<!-- published: 78.51 -->' or in words.
"""

import csv
import functools
import re
import shlex
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from timm.models import model_entrypoint
from torch.utils.flop_counter import FlopCounterMode

import timm_snn  # noqa: F401, registers the models
from timm_snn.files import write_whole_text
from timm_snn.models.pretrained import is_ours, weights_status
from timm_snn.profiling.text import readable_count
from timm_snn.progress import track
from timm_snn.training.console import give
from timm_snn.training.errors import UserError, script
from timm_snn.training.options import ArgumentParser, training_options
from timm_snn.training.schedules import held

ROOT = Path(__file__).parents[1]
SMALL_MEMBERS = 'recipes/configs/family'  # configs for networks that no tag names
# Accuracies that are no row of hub/results.csv: baselines, and trained networks that were changed. With their columns.
MEASURED = {
    'hub/side_results.csv': 'top1',
    'hub/tradeoff/tradeoff.csv': 'top1',
    'benchmarks/results/cpu/rate_energy.csv': 'top-1',
}
CHECKED = ('README.md', 'docs/*.md', 'hub/README.md', 'recipes/README.md', 'timm_snn/weights/*.md')
# Of the tags' data, the name and the kind.
DATA = {
    'in1k': ('ImageNet', 'ImageNet'),
    'cifar10': ('CIFAR-10', 'CIFAR'),
    'cifar100': ('CIFAR-100', 'CIFAR'),
    'cifar10_dvs': ('CIFAR10-DVS', 'events'),
    'dvs128_gesture': ('DVS128 Gesture', 'events'),
    'event_digits': ('event digits', 'events'),
    'nmnist_small': ('N-MNIST-small', 'events'),
    'digits': ('digits', 'digits'),
    'fashion_mnist': ('Fashion-MNIST', 'Fashion-MNIST'),
}


@functools.cache
def tags() -> list[str]:
    return [tag for tag in timm.list_models(include_tags=True) if is_ours(tag)]


@functools.cache
def describe(tag: str) -> dict[str, Any]:
    """What the registry knows of NAME.TAG, from a model without memory."""
    model: Any = timm.create_model(tag, device='meta')
    cfg: Any = timm.get_pretrained_cfg(tag)
    data, kind = DATA[cfg.tag]
    return {
        'family': model_entrypoint(tag.partition('.')[0]).__module__,
        'parameters': sum(p.numel() for p in model.parameters()),
        'steps': model.num_steps,
        'input': ' x '.join(map(str, cfg.input_size)) + (' frames' if kind == 'events' else ''),
        'data': data,
        'kind': kind,
        'paper': cfg.paper_ids.removeprefix('arXiv:'),
    }


def dense_macs(tag: str) -> int:
    """Multiply-accumulates of one sample in one step: convolutions, linear layers, products of activations."""
    model: Any = timm.create_model(tag, device='meta')
    return count_macs(model, model.pretrained_cfg['input_size'])


@torch.no_grad()
def count_macs(model: Any, input_size: tuple[int, ...]) -> int:
    """The same of a model, which takes one step from then on."""
    model.num_steps = 1
    with FlopCounterMode(display=False) as counter:
        model.eval()(torch.empty(1, *input_size, device='meta'))
    return counter.get_total_flops() // 2


def network(options: Any, name: str = '') -> Any:
    """What train.py makes of its options, without weights; `name` is what a folder holds that they go on with."""
    sizes = {key: size for key in ('num_classes', 'in_chans') if (size := getattr(options, key))}
    trained = name if options.model.startswith('local-dir:') else options.model
    return timm.create_model(trained, device='meta', **sizes, **options.model_kwargs)


def macs_of_command(command: str, name: str) -> float:
    """Multiply-accumulates of one sample in all steps, in the mean of the epochs of a command of hub/results.csv.

    `name` is its model, which the command does not say where it goes on with one in a folder.
    """
    options = training_options(shlex.split(command.partition('recipes/train.py')[2]), folder=ROOT)
    model, epochs = network(options, name), options.epochs
    channels, *size = model.pretrained_cfg['input_size']
    full, steps = options.img_size or size[0], getattr(model, 'num_steps', 1)
    sides = [held(options.img_size_schedule, epoch, epochs, full) for epoch in range(epochs)]
    macs = {side: count_macs(model, (options.in_chans or channels, side, side)) for side in set(sides)}
    return statistics.mean(
        held(options.num_steps_schedule, epoch, epochs, steps) * macs[side] for epoch, side in enumerate(sides)
    )


def render_families() -> str:
    """A row for every family, by the date of its paper."""
    families: dict[str, list[str]] = {}
    for tag in sorted(tags(), key=lambda tag: (describe(tag)['paper'], describe(tag)['parameters'])):
        families.setdefault(describe(tag)['family'], []).append(tag)
    rows = []
    for family, members in families.items():
        facts = [describe(tag) for tag in members]
        names = list(dict.fromkeys(tag.partition('.')[0] for tag in members))
        file = family.rpartition('.')[2]
        prefix = f'{file}_' if any(name.startswith(f'{file}_') for name in names) else file  # as in sew_resnet18
        counts = [fact['parameters'] / 1e6 for fact in facts]
        rows.append(
            [
                title_of(family),
                f'`{prefix}*`: ' + ', '.join(f'`{name.removeprefix(prefix)}`' for name in names),
                ', '.join(
                    kind
                    for kind in dict.fromkeys(kind for _, kind in DATA.values())
                    if any(fact['kind'] == kind for fact in facts)
                ),
                ', '.join(map(str, sorted({fact['steps'] for fact in facts}))),
                f'{min(counts):.1f} to {max(counts):.1f} M',
                link(facts[0]['paper']),
            ]
        )
    return markdown('family | models | data | T | parameters | paper', rows)


def render_models() -> str:
    """A row for every tag, with what one chooses by; the site sorts and filters it."""
    header = 'model | family | data | T | parameters | GMACs per step | input | weights | top-1 here'
    return markdown(header, [model_row(tag, f'{dense_macs(tag) / 1e9:#.3g}') for tag in tags()])


def model_row(tag: str, gmacs: str) -> list[str]:
    fact = describe(tag)
    return [
        f'`{tag}`',
        title_of(fact['family']),
        fact['data'],
        str(fact['steps']),
        f'{fact["parameters"]:,}',
        gmacs,
        fact['input'],
        weights_status(tag),
        measured_top1(tag),
    ]


def render_origins() -> str:
    """A row for every tag, with what others published of it and what it was compared with."""
    header = 'model | as released | published top-1 | source | compared with'
    return markdown(header, [origin_row(tag) for tag in tags()])


def origin_row(tag: str) -> list[str]:
    paper = published().get(tag, {})
    released = paper.get('released_parameters')
    return [
        f'`{tag}`',
        f'{int(released):,}' if released else '',
        paper.get('top1', '') + (f' ({paper["note"]})' if paper.get('note') else ''),
        link(paper['source']) if paper.get('source') else '',
        compared().get(tag.partition('.')[0], ''),
    ]


@functools.cache
def published() -> dict[str, dict[str, str]]:
    return {row['model']: row for row in read_csv(ROOT / 'docs' / 'published.csv')}


@functools.cache
def compared() -> dict[str, str]:
    return {row['model']: row['with'] for row in read_csv(ROOT / 'docs' / 'compared.csv')}


def measured_top1(tag: str) -> str:
    """Of hub/results.csv, the row of the weights with this name, or the median for this model on this data."""
    name, _, data = tag.partition('.')
    for row in read_csv(ROOT / 'hub' / 'results.csv'):
        if row['weights'] == tag:
            return f'{row["top1"]} (these weights, {row["epochs"]} epochs; {row["split"]})'
    runs = [
        row
        for row in read_csv(ROOT / 'hub' / 'results.csv')
        if row['model'] in (tag, name) and re.sub(r' \(.*|\W', '', row['dataset']).lower() == data.replace('_', '')
        if SMALL_MEMBERS not in row['command']
    ]
    if not runs:
        return ''
    top1 = statistics.median(float(run['top1']) for run in runs)
    return f'{top1:.2f} ({len(runs)} x {runs[0]["epochs"]} epochs; {runs[0]["split"]})'


class Small(NamedTuple):
    """A network of SMALL_MEMBERS, with the accuracies of its seeds in percent."""

    family: str
    config: Path
    parameters: int
    macs: int
    steps: int
    top1: list[str]

    @property
    def median(self) -> float:
        return statistics.median(map(float, self.top1))


def small_members() -> list[Small]:
    """Of every config of SMALL_MEMBERS, which differ in the network alone; the best of the medians first."""
    results = read_csv(ROOT / 'hub' / 'results.csv')
    found = []
    for path in (ROOT / SMALL_MEMBERS).glob('*.yaml'):
        options = training_options(['--config', str(path)], folder=ROOT)
        model = network(options)
        parameters, steps = sum(p.numel() for p in model.parameters()), model.num_steps
        macs = count_macs(model, (options.in_chans, options.img_size, options.img_size))
        top1 = [row['top1'] for row in results if f'{SMALL_MEMBERS}/{path.name} ' in row['command']]
        found.append(Small(title_of(type(model).__module__), path, parameters, macs, steps, top1))
    return sorted(found, key=lambda small: -small.median)


def render_equal_terms() -> str:
    rows = []
    for small in small_members():
        where = f'[`{small.config.stem}`](../{SMALL_MEMBERS}/{small.config.name})'
        facts = [small.family, where, f'{small.parameters:,}', f'{small.macs / 1e6:.1f}', str(small.steps)]
        seeds = f' ({", ".join(small.top1)})' if len(small.top1) > 1 else ''
        rows.append([*facts, f'**{small.median:.2f}**{seeds}'])
    return markdown('family | config | parameters | MMACs | T | top-1', rows)


def render_measured() -> str:
    """What benchmarks/family.py measured, with its head."""
    path = ROOT / 'benchmarks' / 'results' / 'cpu' / 'family.csv'
    head = dict(line[2:].split(': ', 1) for line in path.read_text(encoding='utf-8').splitlines() if line[:2] == '# ')
    rows = []
    for row in read_csv(path):
        counts = (readable_count(float(row[key])) for key in ('ACs', 'MACs', 'attention'))
        speed = f'{float(row["images/s"]):.3g} ± {50 * float(row["spread"]):.0f} %'
        rate = f'{100 * float(row["firing rate"]):.3g} %'
        memory = f'{float(row["peak MB"]):.0f}' if row['peak MB'] else ''
        rows.append([f'`{row["model"]}`', row['input'], row['T'], rate, *counts, speed, memory])
    header = 'model | input | T | firing rate | ACs | MACs | attention | images/s | peak MB'
    where = (
        f'{head["device"]}, {head["threads"]} threads, load average {head["load average"]}, {head["versions"]},\n'
        f'timm {head["timm"]}, timm_snn {head["timm_snn"]}, {head["date"]}.'
    )
    return f'{markdown(header, rows)}\n\n{where}'


def render_weights() -> str:
    """Every tag, and where its weights are."""
    rows = []
    for name in tags():
        cfg: Any = timm.get_pretrained_cfg(name)
        size = ' x '.join(map(str, cfg.input_size))
        status, address = weights_status(name), f'`{cfg.hf_hub_id}`'
        rows.append([f'`{name}`', status, address, size, str(cfg.num_classes), str(cfg.license)])
    return markdown('model | weights | address | input | classes | licence', rows)


def render_shipped() -> str:
    """The weights in the package, with what they were measured to have."""
    rows = []
    for run in read_csv(ROOT / 'hub' / 'results.csv'):
        if run['weights']:
            file, facts = ROOT / 'timm_snn' / 'weights' / f'{run["weights"]}.safetensors', describe(run['weights'])
            data = f'{run["dataset"]}, {run["split"]}'
            counts = [str(facts['steps']), f'{facts["parameters"] / 1e6:.2f} M', f'{file.stat().st_size / 1e6:.2f} MB']
            rows.append([f'`{run["weights"]}`', data, *counts, f'**{run["top1"]}**'])
    return markdown('weights | data | T | parameters | file | top-1', rows)


def title_of(family: str) -> str:
    """What the docstring of a family's module calls it."""
    return re.split('[:,]', sys.modules[family].__doc__ or '')[0]


def link(arxiv: str) -> str:
    return f'[{arxiv}](https://arxiv.org/abs/{arxiv})'


def markdown(header: str, rows: list[list[str]]) -> str:
    rule = '---|' * (header.count('|') + 1)
    return '\n'.join([f'| {header} |', f'|{rule}', *(f'| {" | ".join(row)} |' for row in rows)])


def read_csv(path: Path) -> list[dict[str, str]]:
    with open(path, newline='', encoding='utf-8') as file:
        return list(csv.DictReader(line for line in file if not line.startswith('#')))


def render_tradeoff() -> str:
    """What recipes/tradeoff.py measured."""
    rows = []
    for row in read_csv(ROOT / 'hub' / 'tradeoff' / 'tradeoff.csv'):
        spiking = row['network'] == 'spiking'
        rate = f'{100 * float(row["firing_rate"]):.2f} %' if row['firing_rate'] else ''
        energies = [row[key] for key in ('mj_a', 'mj_b', 'mj_c')] if spiking else ['', '', '']
        name, data = f'`{row["model"]}`' + ('' if spiking else ', twin'), re.sub(r', \w+ split', '', row['data'])
        data = data.replace('cifar10_jpeg', 'CIFAR-10 (JPEG copy)')
        rows.append([name, data, row['T'], row['top1'], rate, *energies, row['mj_dense'], row['images_per_s']])
    return markdown('model | data | T | top-1 | firing rate | mJ, A | mJ, B | mJ, C | mJ, dense | images/s', rows)


SCORES = {'top1': 'top-1', 'mean_iou': 'mean IoU', 'map50': 'mAP50'}  # columns, and what they are called


def score_of(row: dict[str, str]) -> str:
    """In percent, by the measure of the task."""
    return next(row[column] for column in SCORES if row[column])


def render_dense() -> str:
    """A row for every network and start of segmentation and detection, over its seeds."""
    runs = defaultdict(list)
    for row in read_csv(ROOT / 'hub' / 'results.csv'):
        if not row['top1']:
            command = re.sub(r' --seed \S+', '', row['command'])
            runs[row['dataset'], row['model'], command].append(row)
    rows = []
    for (data, model, command), members in sorted(runs.items(), key=lambda item: item[0][0]):
        scores = [score_of(row) for row in members]
        measure = next(SCORES[column] for column in SCORES if members[0][column])
        start = 'none' if '--no-pretrained' in command else 'CIFAR-10'
        facts = [f'{data}, {members[0]["split"]}', f'`{model}`', start, members[0]['gmacs'], members[0]['mj']]
        seeds = ', '.join(scores) if len(scores) > 1 else f'seed {members[0]["seed"]}'
        median = statistics.median(map(float, scores))
        rows.append([*facts, members[0]['epochs'], f'{measure} **{median:.2f}** ({seeds})'])
    return markdown('data | network | weights of the backbone | GMACs | mJ, C | epochs | measured here', rows)


NUMBER = r'(?<![\d.])\d{1,3}\.\d{2}(?![\d.])'
LISTED = rf'{NUMBER}(?:(?:,|,?\s(?:# )?(?:and|or|to))\s(?:# )?{NUMBER})*'


def measured() -> set[str]:
    """Every accuracy that a page may state."""
    by_recipe = defaultdict(list)
    for row in read_csv(ROOT / 'hub' / 'results.csv'):
        words = shlex.split(row['command'])
        repeats = {
            i for flag in ('--seed', '--fold') if flag in words for i in (words.index(flag), words.index(flag) + 1)
        }
        recipe = (row['model'], row['split'], *(word for i, word in enumerate(words) if i not in repeats))
        by_recipe[recipe].append(float(score_of(row)))
    found = [value for runs in by_recipe.values() for value in (*runs, statistics.median(runs), statistics.mean(runs))]
    found += [float(row[column]) for name, column in MEASURED.items() for row in read_csv(ROOT / name)]
    return {f'{top1:.2f}' for top1 in found}


def stated(text: str) -> Iterator[tuple[int, str]]:
    """(line, number) of the accuracies on a page, but for those that it says others published."""
    published = {n for line in re.findall(r'published: (.*)', text, re.IGNORECASE) for n in re.findall(NUMBER, line)}
    found = []
    for match in re.finditer(rf'(?:{LISTED})(?=\s%)|(?<=^      value: ){NUMBER}', text, re.MULTILINE):
        if text[text.rfind('\n', 0, match.start()) + 1] != '|':
            found += [(match.start() + n.start(), n[0]) for n in re.finditer(NUMBER, match[0])]
    for table in re.finditer(r'(?:^\|.*\n?)+', text, re.MULTILINE):
        start, columns = table.start(), None
        for line in table[0].splitlines(keepends=True):
            cells = line.strip().strip('|').split('|')
            has = ['top-1' in cell or 'measured here' in cell for cell in cells]
            columns = columns or [are and 'published' not in cell for are, cell in zip(has, cells, strict=True)]
            for cell, is_top1 in zip(cells, columns, strict=True):
                if is_top1 or has[0]:
                    found += [(start, number) for number in re.findall(rf'(?<!± ){NUMBER}', cell)]
            start += len(line)
    for at, number in sorted(found):
        if number not in published:
            yield text.count('\n', 0, at) + 1, number


def check() -> None:
    """Raises: UserError with file and line of the accuracies that nobody measured."""
    known = measured()
    pages = [path for pattern in CHECKED for path in sorted(ROOT.glob(pattern))]
    pages += sorted((ROOT / 'recipes' / 'configs').rglob('*.yaml'))
    wrong = [
        f'{path.relative_to(ROOT)}:{line}: {number}'
        for path in pages
        for line, number in stated(path.read_text(encoding='utf-8'))
        if number not in known
    ]
    if wrong:
        raise UserError(
            f'accuracies that are not in hub/results.csv: {", ".join(wrong)}; add the row that measured it, or say '
            "'<!-- published: NUMBER -->' of one that others published"
        )


# By page, its tables in their order; each stands between two marks.
PAGES = {
    'README.md': [render_shipped],
    'docs/models.md': [render_families, render_models, render_origins, render_equal_terms, render_measured],
    'docs/hub.md': [render_weights],
    'docs/tradeoff.md': [render_tradeoff],
    'docs/dense.md': [render_dense],
}


@script
def main(argv: Sequence[str] | None = None) -> None:
    parser = ArgumentParser('hub/table.py', __doc__)
    parser.add_argument('--check', action='store_true', help='write nothing; compare the accuracies on the pages')
    if parser.parse_args(argv).check:
        check()
        give({'wrong': []})
        return
    marked = re.compile(r'(?<=<!-- hub/table.py -->\n\n).*?(?=\n\n<!-- end -->)', re.DOTALL)
    for name, tables in PAGES.items():
        path = ROOT / name
        between = marked.split(path.read_text(encoding='utf-8'))
        if len(between) != len(tables) + 1:
            raise UserError(f'{name} has {len(between) - 1} marked tables, expected {len(tables)}')
        texts = [table() for table in track(tables, f'count for {name}', unit='tables')]
        write_whole_text(path, ''.join(map(''.join, zip(between, [*texts, ''], strict=True))))
    give({'files': list(PAGES)})


if __name__ == '__main__':
    main()
