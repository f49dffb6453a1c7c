"""The model card: README.md of a model's repository on the Hub, of what is known about its weights.

Accuracies are rows of the kind that hub/results.csv has, firing rates and energies those of a `timm_snn.profile`. What
nobody measured is called not evaluated.
"""

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml  # which huggingface-hub needs
from huggingface_hub import EvalResult, ModelCardData
from torch import Tensor

from ..data import frame_settings, has_frame_settings
from ..files import printable
from ..layers import ReluNeuron
from ..models.pretrained import list_pretrained
from ..profiling import Report, profile
from ..profiling.steps import is_neuron

__all__ = ['OURS', 'Source', 'fixed_input', 'render_card']

OURS = 'apache-2.0'  # the licence of this project, and of weights that say nothing else

PACKAGE = Path(__file__).parents[1]  # in a wheel it has CITATION.cff, in a clone beside it

Row = dict[str, str]


@dataclass
class Source:
    """A model with its weights in eval mode, and what is known about them."""

    model: Any
    has_weights: bool = True
    run: dict[str, Any] = field(default_factory=dict)  # the options it was trained with
    history: list[Row] = field(default_factory=list)  # summary.csv up to these weights
    tested: dict[str, Any] = field(default_factory=dict)  # test.json, of a run with --val-fraction that has ended
    origin: dict[str, str] = field(default_factory=dict)  # of converted weights: file and sha256
    folder: Path | None = None  # of a model with a card, whose files are kept as they are

    @property
    def name(self) -> str:
        """The name with the tag, which names the training."""
        cfg = self.model.pretrained_cfg
        return f'{cfg["architecture"]}.{cfg["tag"]}' if cfg.get('tag') else cfg['architecture']

    @property
    def license(self) -> str:
        return self.model.pretrained_cfg.get('license') or OURS

    @property
    def neurons(self) -> list[str]:
        """The kinds of its neurons that spike: none of an artificial network or a twin with ReLU in their place."""
        found = (m for m in self.model.modules() if is_neuron(m) and not isinstance(m, ReluNeuron))
        return sorted({type(m).__name__ for m in found})


def _steps_of(model: Any) -> int:
    """T; a model without time steps has one."""
    return getattr(model, 'num_steps', 1)


def fixed_input(model: Any) -> Tensor:
    """[2, C, H, W], always the same; of a model of events as frames, of which all steps are alike."""
    images = torch.randn(2, *model.pretrained_cfg['input_size'], generator=torch.Generator().manual_seed(0))
    return images.unsqueeze(1).expand(-1, _steps_of(model), -1, -1, -1) if has_frame_settings(model) else images


def render_card(
    source: Source,
    repo: str | None = None,
    report: Report | None = None,
    dtype: str = 'float32',
    *,
    own: Row | None = None,
    rows: Sequence[Row] = (),
    trained_on: str = '',
    takes_events: bool = False,
) -> str:
    """README.md.

    Args:
        repo: USER/NAME, where the weights will be; None is in a folder.
        report: What `timm_snn.profile` counted.
        own: The result of these weights, with the columns of hub/results.csv.
        rows: Results of the same recipe, which may have `own` among them.
        trained_on: The data set of a run.
        takes_events: Frames of events, of a model that does not say so itself.
    """
    takes_events |= makes_of_events(source.model)
    title = repo.rpartition('/')[2] if repo else source.name
    parts = [
        f'# Model card for {title}',
        describe(source, trained_on),
        '## Model details',
        details(source, dtype, takes_events),
        '## Model usage',
        usage(source, repo, takes_events),
        '## Results',
        results(source, own, rows),
        '## Firing rates, operations, energy',
        energy(source, report),
        '## Limitations',
        limitations(source, report, dtype),
        *(['## Citation', cited] if (cited := citation(source.model.pretrained_cfg)) else []),
    ]
    return f'---\n{metadata(source, title, own, rows).to_yaml()}\n---\n\n' + '\n\n'.join(parts) + '\n'


def describe(source: Source, trained_on: str) -> str:
    family = sys.modules[type(source.model).__module__].__doc__ or type(source.model).__name__
    text = family.splitlines()[0]
    if source.origin:
        text += f' Weights converted from `{source.origin["file"]}` (SHA-256 `{source.origin["sha256"]}`)'
        text += f', which came from {source.origin["url"]}' if source.origin.get('url') else ''
        text += ', by `hub/convert.py` of timm_snn.'
    elif trained_on:
        text += f' `{source.name}`, trained with timm_snn on {trained_on}.'
    return text


def details(source: Source, dtype: str, takes_events: bool) -> str:
    model, cfg = source.model, source.model.pretrained_cfg
    size = tuple(cfg['input_size'])
    total = profile(model, fixed_input(model)[:1], progress=False).total
    neurons = source.neurons
    kind = 'frames of events' if takes_events else 'images'
    sizes = '' if cfg.get('fixed_input_size') else '; other heights and widths will do'
    lines = [
        f'Model type: image classification, {"spiking" if neurons else "artificial"} neural network',
        f'Parameters: {total.parameters:,}',
        f'Time steps T: {_steps_of(model)}',
        f'GMACs: {total.dense_macs_per_step / 1e9:.4g} per time step, dense',
        f'Input: {" x ".join(map(str, size))} {kind}{sizes}',
        *([f'Frames: {describe_frames(model)}'] if has_frame_settings(model) else []),
        f'Classes: {model.num_classes}',
        f'Neurons: {", ".join(neurons) or "none that spikes"}',
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
    settings = frame_settings(model).to_dict()
    return ', '.join(f'{name} {printable(str(value).strip("[]"), 50)}' for name, value in settings.items())


def makes_of_events(model: Any) -> bool:
    """True if its input is frames of events: it says so, or has a channel for each polarity."""
    return has_frame_settings(model) or model.pretrained_cfg['input_size'][0] == 2


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


def usage(source: Source, repo: str | None, takes_events: bool) -> str:
    model, size = source.model, tuple(source.model.pretrained_cfg['input_size'])
    loads = bool(repo) or is_loadable(source.name)
    if has_frame_settings(model):
        text = RECORDING.format(shape=[1, _steps_of(model), *size])
    elif takes_events:
        text = FRAMES.format(shape=', '.join(map(str, (1, model.num_steps, *size))), channels=size[0])
    else:
        text = IMAGE.format(mode='L' if size[0] == 1 else 'RGB', shape=[1, *size])
    code = USAGE.format(
        name=f'hf-hub:{repo}' if repo else source.name if not source.has_weights else 'local-dir:FOLDER',
        pretrained=loads or source.has_weights,
        image_import='' if takes_events else 'from PIL import Image\n',
        input=text,
        topk=min(5, model.num_classes),
    )
    if not (loads or source.has_weights):
        code += '\n\nNo weights with this name can be loaded, so `pretrained=False` makes a model with random ones.'
    return code


def is_loadable(name: str) -> bool:
    return name in list_pretrained(name)


RESULTS = ('weights', 'data', 'split', 'top-1', 'seed', 'epochs', 'command')


def results(source: Source, own: Row | None, rows: Sequence[Row]) -> str:
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


def whose(row: Row, source: Source) -> str:
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
    lines = [family.LIMITATIONS] if hasattr(family, 'LIMITATIONS') else []
    if source.neurons:
        lines.append(
            'Spiking networks amplify rounding: on another machine, or with another number of threads, a spike can '
            'flip and move the logits visibly.'
        )
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
    file = next(path for folder in (PACKAGE, PACKAGE.parent) if (path := folder / 'CITATION.cff').is_file())
    references = yaml.safe_load(file.read_text(encoding='utf-8'))['references']
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


def metadata(source: Source, title: str, own: Row | None, rows: Sequence[Row]) -> ModelCardData:
    """The head of the card, with a model-index of results: of these weights, or of a registered model's recipe."""
    measured = [own] if own else rows if not source.has_weights else []
    measured = [row for row in measured if row.get('weights') == source.name] or measured
    run = source.run
    hub_data = re.fullmatch(r'hfds/([\w.-]+/[\w.-]+)', run.get('dataset', ''))
    base = re.fullmatch(r'hf-hub:(.+)', run.get('model', '')) if run.get('pretrained') else None
    return ModelCardData(
        tags=['image-classification', 'timm', 'timm_snn', *(['spiking-neural-network'] if source.neurons else [])],
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
