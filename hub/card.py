"""The model card of a training run, a checkpoint, a model folder, or a registered model: README.md of its repository.

    python hub/card.py output/digits --repo USER/NAME
    python hub/card.py output/fashion_mnist --energy output/energy/report.json --output README.md
    python hub/card.py msvit_4_96.fashion_mnist

Accuracies are those that the run itself measured, in its summary.csv, and those of the same recipe in hub/results.csv;
firing rates and energies are those of a report of recipes/energy.py. What nobody measured is called not evaluated.
"""

import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCardData
from model_folder import LOCAL, ROOT, Source, fixed_input, open_source, read_report

import timm_snn
from timm_snn.data import frame_settings, has_frame_settings
from timm_snn.files import printable, write_whole_text
from timm_snn.profiling import Report
from timm_snn.training.console import give
from timm_snn.training.data import EVENT_DATASETS
from timm_snn.training.errors import one_line_errors, script
from timm_snn.training.models import steps_of
from timm_snn.training.options import ArgumentParser, as_config, training_options
from timm_snn.training.results import dataset_name, describe_split
from timm_snn.training.tables import read_csv

__all__ = ['find_results', 'make_card']

# Options that do not tell one recipe from another, besides those of the machine.
REPEATS = ('seed', 'fold')


def find_results(source: Source) -> tuple[dict[str, str] | None, list[dict[str, str]]]:
    """The result of these weights, if it was measured, and all rows of hub/results.csv about the same recipe.

    Both have the columns of that file. Of a registered model without weights, the rows with its name and tag.
    """
    rows = read_csv(ROOT / 'hub' / 'results.csv')
    if not source.has_weights:
        return None, [row for row in rows if row['model'] == source.name and '.' in source.name]
    if not source.run:
        return None, []
    with one_line_errors('read the results of the run'):
        own = own_result(source)
    same = []
    for row in rows:
        options = options_of(row['command'])
        if is_same(options, source.run, REPEATS):
            same.append(row)
            if own and is_same(options, source.run, ()) and all(row[key] == own[key] for key in ('top1', 'epochs')):
                own = row
    return own, same


def options_of(command: str) -> dict[str, Any]:
    """The options that a command of hub/results.csv trains with."""
    return as_config(training_options(shlex.split(command.partition('recipes/train.py')[2]), folder=ROOT))


def is_same(options: dict[str, Any], run: dict[str, Any], but: tuple[str, ...]) -> bool:
    """True if both train alike, wherever they run."""
    return all(options[key] == run.get(key) for key in options if key not in (*LOCAL, *but))


def own_result(source: Source) -> dict[str, str] | None:
    """The result of these weights on the validation split of their run, as a row of hub/results.csv."""
    run, history, tested = source.run, source.history, source.tested
    if run.get('val_fraction') is not None:  # the history measures held-out training samples
        history = history[: tested['epoch']] if tested else []
    if not history:
        return None
    top1 = tested['top1'] if tested else history[-1].get('ema_top1') or history[-1]['eval_top1']
    return {
        'model': source.name,
        'dataset': dataset_name(run),
        'split': describe_split(run, bool(tested)),
        'top1': f'{float(top1):.2f}',
        'seed': str(run['seed']),
        'epochs': str(len(history)),
        'command': 'accelerate launch recipes/train.py --config training.yaml',
    }


def make_card(source: Source, repo: str | None, report: Report | None, dtype: str = 'float32') -> str:
    """README.md. `repo`, USER/NAME, is where the weights will be."""
    own, rows = find_results(source)
    title = repo.rpartition('/')[2] if repo else source.name
    parts = [
        f'# Model card for {title}',
        describe(source, own or next(iter(rows), None)),
        '## Model details',
        details(source, dtype),
        '## Model usage',
        usage(source, repo),
        '## Results',
        results(source, own, rows),
        '## Firing rates, operations, energy',
        energy(source, report),
        '## Limitations',
        limitations(source, report, dtype),
        *(['## Citation', cited] if (cited := citation(source.model.pretrained_cfg)) else []),
    ]
    return f'---\n{metadata(source, title, own, rows).to_yaml()}\n---\n\n' + '\n\n'.join(parts) + '\n'


def describe(source: Source, result: dict[str, str] | None) -> str:
    family = sys.modules[type(source.model).__module__].__doc__ or type(source.model).__name__
    text = family.splitlines()[0]
    if source.origin:
        text += f' Weights converted from `{source.origin["file"]}` (SHA-256 `{source.origin["sha256"]}`)'
        text += f', which came from {source.origin["url"]}' if source.origin.get('url') else ''
        text += ', by `hub/convert.py` of timm_snn.'
    elif source.run:
        data = result['dataset'] if result else dataset_name(source.run)
        text += f' `{source.name}`, trained with timm_snn on {data}.'
    return text


def details(source: Source, dtype: str) -> str:
    model, cfg = source.model, source.model.pretrained_cfg
    size = tuple(cfg['input_size'])
    total = timm_snn.profile(model, fixed_input(model)[:1], progress=False).total
    neurons = sorted({type(m).__name__ for m in model.modules() if hasattr(m, 'v_threshold')})
    kind = 'frames of events' if is_events(source) else 'images'
    sizes = '' if cfg.get('fixed_input_size') else '; other heights and widths will do'
    lines = [
        'Model type: image classification, spiking neural network',
        f'Parameters: {total.parameters:,}',
        f'Time steps T: {steps_of(model)}',
        f'GMACs: {total.dense_macs_per_step / 1e9:.4g} per time step, dense',
        f'Input: {" x ".join(map(str, size))} {kind}{sizes}',
        *([f'Frames: {describe_frames(model)}'] if has_frame_settings(model) else []),
        f'Classes: {model.num_classes}',
        f'Neurons: {", ".join(neurons)}',
        *([f'Weights: {dtype}, safetensors'] if source.has_weights else []),
        f'Licence: {source.license}',
        *(f'Paper: {cfg["paper_name"]}, https://arxiv.org/abs/{arxiv}' for arxiv in arxiv_ids(cfg)[:1]),
        *([f'Original code: {cfg["origin_url"]}'] if cfg.get('origin_url') else []),
    ]
    if source.run:
        lines.append('Training: all options are in `training.yaml`, a config for `recipes/train.py` of timm_snn')
    return '\n'.join(f'- **{line.partition(":")[0]}:**{line.partition(":")[2]}' for line in lines)


def describe_frames(model: Any) -> str:
    """How they are made of events, by the names of `timm_snn.data.FrameSettings`."""
    with one_line_errors('describe its frames'):
        settings = frame_settings(model).to_dict()
    return ', '.join(f'{name} {printable(str(value).strip("[]"), 50)}' for name, value in settings.items())


def is_events(source: Source) -> bool:
    if has_frame_settings(source.model):
        return True
    cfg = source.model.pretrained_cfg  # of an earlier version
    both_polarities = cfg['input_size'][0] == 2  # which some families sum up in a third channel
    return both_polarities or not {cfg.get('tag'), source.run.get('dataset')}.isdisjoint(EVENT_DATASETS)


USAGE = """\
Install timm_snn: in a clone of it, `pip install -e .`

```python
import timm, torch
import timm_snn  # registers the models
{image_import}
model = timm.create_model('{name}', pretrained={pretrained}).eval()
{input}
with torch.inference_mode():
    probabilities, classes = model(x).softmax(1).topk({topk})
```

Features, averaged over time, and one vector for an image:

```python
backbone = timm.create_model('{name}', pretrained={pretrained}, features_only=True).eval()
print([features.shape for features in backbone(x)])

encoder = timm.create_model('{name}', pretrained={pretrained}, num_classes=0).eval()
print(encoder(x).shape)
```"""

IMAGE = """
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
x = transform(Image.open('image.png').convert('{mode}')).unsqueeze(0)  # {shape}"""

RECORDING = """
from timm_snn.data import frame_settings, read_events

x = frame_settings(model).frames(read_events('recording.npy')).unsqueeze(0)  # {shape}"""

FRAMES = """
x = torch.zeros({shape})  # [B, T, C, H, W]: `timm_snn.data.to_frames(..., channels={channels})`"""


def usage(source: Source, repo: str | None) -> str:
    model, size = source.model, tuple(source.model.pretrained_cfg['input_size'])
    loads = bool(repo) or is_loadable(source.name)
    if has_frame_settings(model):
        text = RECORDING.format(shape=[1, steps_of(model), *size])
    elif is_events(source):
        text = FRAMES.format(shape=', '.join(map(str, (1, model.num_steps, *size))), channels=size[0])
    else:
        text = IMAGE.format(mode='L' if size[0] == 1 else 'RGB', shape=[1, *size])
    code = USAGE.format(
        name=f'hf-hub:{repo}' if repo else source.name if not source.has_weights else 'local-dir:FOLDER',
        pretrained=loads or source.has_weights,
        image_import='' if is_events(source) else 'from PIL import Image\n',
        input=text,
        topk=min(5, model.num_classes),
    )
    if not (loads or source.has_weights):
        code += '\n\nNo weights with this name can be loaded, so `pretrained=False` makes a model with random ones.'
    return code


def is_loadable(name: str) -> bool:
    return name in timm_snn.list_pretrained(name)


RESULTS = ('weights', 'data', 'split', 'top-1', 'seed', 'epochs', 'command')


def results(source: Source, own: dict[str, str] | None, rows: list[dict[str, str]]) -> str:
    lines = []
    if source.has_weights and own is None:
        lines.append('These weights were not evaluated here.')
    table = [('these', own)] if own else []
    table += [(whose(row, source), row) for row in rows if row is not own]
    if table:
        cells = ('dataset', 'split', 'top1', 'seed', 'epochs')
        body = [[which, *(row[cell] for cell in cells), f'`{row["command"]}`'] for which, row in table]
        lines.append('\n'.join(f'| {" | ".join(row)} |' for row in (RESULTS, ['---'] * len(RESULTS), *body)))
        picked = source.run.get('val_fraction') is not None
        lines.append(f'Top-1 in percent after the last of these epochs{"" if picked else "; none was picked"}.')
    return '\n\n'.join(lines) or 'No accuracy has been measured.'


def whose(row: dict[str, str], source: Source) -> str:
    """The weights that a row of hub/results.csv is about, beside those of the card."""
    if source.has_weights:
        return 'another run'
    return 'these' if row['weights'] == source.name else 'a run'


def energy(source: Source, report: Report | None) -> str:
    if report is None:
        return 'Not measured here; `recipes/energy.py` of timm_snn counts them on real data.'
    lines = []
    if not source.has_weights:
        lines.append('Of weights from a run of the same recipe.')
    lines.append(report.to_markdown().strip())
    lines.append(
        'The conventions differ in what they count as an accumulate: A is that of Spikingformer, B of the Spike-driven '
        'Transformer, C of Spikformer, QKFormer and MSViT. `docs/energy.md` of timm_snn defines them.'
    )
    return '\n\n'.join(lines)


def limitations(source: Source, report: Report | None, dtype: str) -> str:
    family = sys.modules[type(source.model).__module__]
    lines = [
        *([family.LIMITATIONS] if hasattr(family, 'LIMITATIONS') else []),
        'Spiking networks amplify rounding: on another machine, or with another number of threads, a spike can flip '
        'and move the logits visibly.',
    ]
    if report:
        lines.append('Energies are estimates of arithmetic only: data movement, which costs more, is left out.')
    if source.origin:
        lines.append('The weights are of others: their licence is for them to state.')
    if dtype == 'float16':
        lines.append('Stored in float16 but for norms and biases; numbers above were measured before that rounding.')
    return '\n'.join(f'- {line}' for line in lines)


def arxiv_ids(cfg: Any) -> list[str]:
    ids = cfg.get('paper_ids') or []
    return [name.partition(':')[2] for name in ([ids] if isinstance(ids, str) else ids) if name.startswith('arXiv:')]


def citation(cfg: Any) -> str:
    """BibTeX of the model's papers, from CITATION.cff."""
    with open(ROOT / 'CITATION.cff', encoding='utf-8') as file:
        references = yaml.safe_load(file)['references']
    entries = []
    for arxiv in arxiv_ids(cfg):
        paper = next((paper for paper in references if arxiv in paper.get('notes', '')), None)
        title = paper['title'] if paper else cfg.get('paper_name', f'arXiv {arxiv}')
        names = [author_name(author) for author in paper['authors']] if paper else []
        fields = {
            'title': title,
            'author': ' and '.join(names),
            'journal': f'arXiv preprint arXiv:{arxiv}',
            'year': str(paper['year'] if paper else 2000 + int(arxiv[:2])),
        }
        body = ',\n'.join(f'  {key} = {{{value}}}' for key, value in fields.items() if value)
        entries.append(f'```bibtex\n@article{{arxiv{arxiv.replace(".", "")},\n{body}\n}}\n```')
    return '\n\n'.join(entries)


def author_name(author: dict[str, str]) -> str:
    """A group keeps its name as it is."""
    return f'{{{author["name"]}}}' if 'name' in author else f'{author["family-names"]}, {author["given-names"]}'


def metadata(source: Source, title: str, own: dict[str, str] | None, rows: list[dict[str, str]]) -> ModelCardData:
    """The head of the card, with a model-index of results: of these weights, or of a registered model's recipe."""
    measured = [own] if own else rows if not source.has_weights else []
    measured = [row for row in measured if row.get('weights') == source.name] or measured
    run = source.run
    hub_data = re.fullmatch(r'hfds/([\w.-]+/[\w.-]+)', run.get('dataset', ''))
    base = re.fullmatch(r'hf-hub:(.+)', run.get('model', '')) if run.get('pretrained') else None
    return ModelCardData(
        tags=['image-classification', 'timm', 'timm_snn', 'spiking-neural-network'],
        pipeline_tag='image-classification',
        library_name='timm',
        license=source.license,
        datasets=[hub_data[1]] if hub_data else None,
        base_model=base[1].partition('@')[0] if base else None,
        model_name=title if measured else None,
        eval_results=[
            EvalResult(
                task_type='image-classification',
                dataset_type=re.sub(r'[^\w/.-]+', '-', row['dataset'].lower()),
                dataset_name=row['dataset'],
                dataset_split=row['split'],
                metric_type='accuracy',
                metric_name='top-1 accuracy in percent',
                metric_value=float(row['top1']),
                metric_args={'seed': int(row['seed']), 'epochs': int(row['epochs'])},
            )
            for row in measured
        ]
        or None,
    )


@script
def main(argv: Sequence[str] | None = None) -> None:
    parser = ArgumentParser('hub/card.py', __doc__)
    parser.add_argument('source', help='OUTPUT of recipes/train.py, a checkpoint in it, a model folder, or a name')
    parser.add_argument('--repo', metavar='USER/NAME', help='where the weights are; default: in a folder')
    parser.add_argument('--energy', type=Path, help='report.json of recipes/energy.py on these weights')
    parser.add_argument('--output', type=Path, help='default: print it')
    args = parser.parse_args(argv)
    source = open_source(args.source)
    report = args.energy
    if report is None and not source.has_weights:
        measured = ROOT / 'hub' / 'energy' / f'{source.name}.json'
        report = measured if measured.is_file() else None
    card = make_card(source, args.repo, read_report(report, source.model))
    if args.output is None:
        give({'card': card}, card.rstrip('\n'))
        return
    with one_line_errors(f'write {args.output}'):
        write_whole_text(args.output, card)
    give({'output': args.output})


if __name__ == '__main__':
    main()
