"""Every block of Python in the documentation runs as it is printed, those of a page in one namespace; no network.

A page's blocks see what its setup below gives: files and names that the reader has, in small. A block that cannot run
has a comment above it, `<!-- not run: reason -->`, and its reason is one of `REASONS`.
"""

import argparse
import linecache
import sys
import tempfile
import warnings
from collections import Counter
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import timm

from tests.support import writers
from tests.support.hub_server import LoopbackHub
from tests.support.pages import PAGES, ROOT, Block, blocks, commands
from tests.support.scripts import load
from timm_snn import cli
from timm_snn.data import CIFAR10DVS, FrameSettings, set_frame_settings, write_rows
from timm_snn.layers import attentions, neurons, patch_embeds
from timm_snn.models import save_for_hf
from timm_snn.ops import surrogate
from timm_snn.training.options import training_options

# Pages with tests of their own, which run their blocks.
ELSEWHERE = {
    'docs/from_snntorch.md': 'tests/test_from_others.py',
    'docs/from_spikingjelly.md': 'tests/test_from_others.py',
    'docs/neurons.md': 'tests/test_neurons_page.py',
    'docs/plugins.md': 'tests/test_plugins.py',
}

# How many blocks are not run, by their reasons.
REASONS = {
    'needs a GPU': 1,
    'run by tests/test_deploy_page.py': 1,
}

# What is too large for a test or not on this machine, and what stands in for it, in the blocks of all pages.
SMALLER = {
    "'msvit_10_384'": "'msvit_4_96'",
    "_backend('compile')": "_backend('torch')",
    "backend='compile'": "backend='torch'",
    "'resnet18', pretrained=True": "'resnet18', pretrained=False",
    "fashion_mnist', pretrained=True)\nprint(": "fashion_mnist', pretrained=True, num_steps=1)\nprint(",
    'if label in (0, 1):\n': 'if label in (0, 1) and i < 30:\n',
    "cifar10-dvs', num_steps=16": "cifar10-dvs', num_steps=1",
    "cifar10-dvs', train, num_steps=16": "cifar10-dvs', train, num_steps=1",
}

IMPORTS = 'import timm, timm_snn, torch\n'
IMAGES = IMPORTS + 'images = torch.rand(2, 1, 28, 28)\n'
LOADER = 'loader = [(torch.rand(2, 4, 2, 16, 16), torch.tensor([0, 1]))]\n'

# The names that the reader of a page has.
SETUP = {
    'docs/backends.md': IMAGES + 'labels, criterion = torch.tensor([0, 1]), torch.nn.CrossEntropyLoss()\n',
    'docs/conversion.md': IMPORTS + 'images = torch.rand(2, 3, 32, 32)\n',
    'docs/events.md': IMPORTS + LOADER + 'H = W = 128\n',
    'docs/hub.md': IMPORTS + "model = timm.create_model('msvit_4_96', num_classes=2)\n",
    'docs/quantization.md': IMAGES,
    'recipes/README.md': 'from timm_snn.training.tasks import temporal_efficient_training\n',
    'README.md': IMAGES,
}


def save(folder: Path, name: str, frames: FrameSettings | None = None, **kwargs: Any) -> None:
    """A model in the Hub's format."""
    model = timm.create_model(name, **kwargs)
    if frames:
        set_frame_settings(model, frames)
    save_for_hf(model, folder, model_config={'label_names': [str(i) for i in range(model.num_classes)]})


def write_recordings() -> None:
    """Recordings of random events, in the formats and folders that the pages name."""
    events = writers.random_events(500)
    writers.aedat3(Path('user01_natural.aedat'), events)
    for name in ('recording', 'drive', 'rec4'):
        writers.evt3(Path(f'{name}.raw'), events)
    columns = np.stack([events.x, events.y, events.t, events.p], axis=1)
    np.save('recording.npy', (columns * [1, 1, 1e-6, 1]))
    np.savetxt('recording.csv', columns[:, [0, 1, 3, 2]], '%d', ',')
    for file in ('train/clap/rec1', 'train/wave/rec7', 'validation/clap/rec4'):
        path = Path('DATA', f'{file}.npz')
        path.parent.mkdir(parents=True)
        writers.npz(path, events)
    Path('Test/1').mkdir(parents=True)
    writers.nmnist(Path('Test/1/00041.bin'), writers.random_events(500, size=34))
    for name in CIFAR10DVS.classes:
        for number in range(10):
            path = Path(f'data/cifar10-dvs/{name}/cifar10_{name}_{number}.aedat')
            path.parent.mkdir(parents=True, exist_ok=True)
            writers.aedat2(path, writers.random_events(20))
    write_rows(CIFAR10DVS('data/cifar10-dvs', num_steps=1, cache=None), 'USER/NAME')


def write_event_model(folder: str) -> None:
    frames = FrameSettings(num_steps=2, sensor_size=(128, 128), channels=2, size=(32, 32), bin_us=10_000)
    save(Path(folder), 'msvit_4_96', frames, num_classes=2, in_chans=2, num_steps=2)


def fill_hub(hub: LoopbackHub) -> None:
    """A repository of a model, which is also a folder of a run and a file."""
    save(Path('output/digits/model'), 'msvit_4_96', num_classes=2)
    hub.add('USER/pets', Path('output/digits/model'))
    save(Path('output/cifar10'), 'msvit_4_384.cifar10')
    for revision in ('main', 'REVISION'):
        hub.add('USER/NAME', Path('output/cifar10'), revision)
    Path('output/cifar10/model.safetensors').rename('model.safetensors')


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working directory of a reader. What a page registers is gone after it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path))
    for registry in (attentions, neurons, patch_embeds):
        monkeypatch.setattr(registry, '_layers', dict(registry._layers))
    monkeypatch.setattr(surrogate, '_OWN', dict(surrogate._OWN))
    return tmp_path


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def run(block: Block, names: dict[str, Any]) -> None:
    """Run a block; a traceback shows the line of the page."""
    code = block.code
    for large, small in SMALLER.items():
        code = code.replace(large, small)
    file = f'{name_of(block.page)}:{block.line}'
    linecache.cache[file] = (len(code), None, code.splitlines(True), file)
    exec(compile(code, file, 'exec'), names)


RUN_HERE = [page for page in PAGES if name_of(page) not in ELSEWHERE and blocks(page)]


@pytest.mark.parametrize('page', RUN_HERE, ids=name_of)
def test_every_block_runs(page, folder, request):
    names: dict[str, Any] = {}
    if page.name == 'events.md':
        write_recordings()
        write_event_model('output/own/model')
    if page.name == 'events_to_model.md':
        write_event_model('output/events/model')
    if page.name == 'train.md':
        save(Path('output/own/model'), 'msvit_4_96', num_classes=2)
    if page.name == 'hub.md':
        fill_hub(request.getfixturevalue('hub'))
    if page.name == 'deploy.md':
        save(Path('output/digits/model'), 'msvit_4_96.digits', num_steps=1, depths=(0, 0, 1))
    exec(SETUP.get(name_of(page), ''), names)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        for block in blocks(page):
            if not block.not_run:
                run(block, names)


def test_what_is_not_run_is_counted_with_its_reason():
    assert Counter(block.not_run for page in PAGES for block in blocks(page) if block.not_run) == REASONS


class Parsed(BaseException):
    """The arguments of a command are right; nothing of it has run."""


@pytest.mark.parametrize('page', [page for page in PAGES if any(commands(page))], ids=name_of)
def test_every_command_has_options_that_there_are(page, monkeypatch):
    """By the parsers of the scripts themselves; of a training, the config and what excludes what are checked too."""

    def parse_alone(parser: argparse.ArgumentParser, *args: Any) -> None:
        parse(parser, *args)
        raise Parsed

    monkeypatch.chdir(ROOT)
    monkeypatch.setitem(sys.modules, 'tinyformer', ModuleType('tinyformer'))  # which --import names
    parse = argparse.ArgumentParser.parse_args
    for script, arguments in commands(page):
        if script == 'timm-snn':
            script, *arguments = arguments
            if script.startswith('-') or script == 'new':
                continue
            main = import_module(cli.COMMANDS[script][0]).main
        else:
            main = load(script).main
        if 'train' in script:
            training_options(arguments)
        else:
            with monkeypatch.context() as patch:
                patch.setattr(argparse.ArgumentParser, 'parse_args', parse_alone)
                with pytest.raises(Parsed):
                    main(arguments)
