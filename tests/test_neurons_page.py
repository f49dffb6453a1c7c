"""What docs/neurons.md says is so."""

import csv
import re
from pathlib import Path

import timm
import torch

import timm_snn
from timm_snn.layers import TorchNeuron, neurons

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / 'docs' / 'neurons.md').read_text()
RESULTS = ROOT / 'benchmarks' / 'results' / 'cpu' / 'neurons.csv'


def tables() -> list[list[list[str]]]:
    found = re.findall(r'(?:^\|.*\n)+', PAGE, re.MULTILINE)
    return [
        [[cell.strip() for cell in line.strip('|\n').split('|')] for line in text.splitlines()[2:]] for text in found
    ]


def test_it_has_every_neuron_with_its_class():
    named = {row[0].strip('`'): row[1].strip('`') for row in tables()[0]}
    assert all(neurons.get(name).__name__ == layer for name, layer in named.items())  # type: ignore[attr-defined]
    classes = {name: layer for name in neurons.names() if isinstance(layer := neurons.get(name), type)}
    ours = [
        name for name, cls in classes.items() if cls.__module__ == f'timm_snn.layers.{cls.__module__.split(".")[-1]}'
    ]
    assert {name for name in ours if name != 'relu'} == set(named)
    fixed = {row[0].strip('`') for row in tables()[0] if row[-1] == 'fixed'}
    assert fixed == {name for name, cls in classes.items() if hasattr(cls, 'set_num_steps') and name in ours}
    equations = {row[0].strip('`') for row in tables()[1]}
    assert equations == {name for name in ours if issubclass(classes[name], TorchNeuron)} | {'lif'}


def test_its_blocks_run(monkeypatch):
    monkeypatch.setattr(neurons, '_layers', dict(neurons._layers))
    monkeypatch.setattr('timm_snn.ops.surrogate._OWN', {})
    printed = re.findall(r'```python\n(.*?)```', PAGE, re.DOTALL)
    spaces = [{} for _ in printed]
    spaces[1] = {'timm': timm, 'timm_snn': timm_snn, 'images': torch.rand(1, 3, 32, 32)}
    for block, space in zip(printed, spaces, strict=True):
        exec(block, space)
    assert spaces[0]['model'].stem.units[0].lif.tau == 4.0
    assert spaces[1]['report'].num_steps == 4
    assert type(spaces[2]['model'].stem.units[0].lif).__name__ == 'Absolute'
    assert spaces[3]['spikes'].shape == (4, 2, 8) and timm_snn.ops.surrogate.get_surrogate('rectangle')


def test_its_costs_are_those_measured():
    with open(RESULTS, newline='') as file:
        measured = list(csv.DictReader(line for line in file if not line.startswith('#')))
    times = {(row['neuron'], row['variant'], row['pass']): row for row in measured}
    for name, *cells in next(table for table in tables() if len(table[0]) == 10):
        expected = []
        for kind in ('forward', 'forward + backward'):
            for variant, column in (('timm_snn', 'of lif'), ('compiled', 'of lif'), ('timm_snn', 'of spikingjelly')):
                row = times[name.strip('`'), variant, kind]
                expected.append(f'{float(row[column]):.2f}' if row[column] else '')
        both = 'forward + backward'
        for variant in ('timm_snn', 'compiled', 'spikingjelly'):
            row = times.get((name.strip('`'), variant, both))
            expected.append(f'{float(row["saved bytes"]):.0f}' if row else '')
        assert cells == expected, name
