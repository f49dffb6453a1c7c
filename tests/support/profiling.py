"""What the profiler's tests share."""

from dataclasses import asdict

import pytest
from torch import nn

import timm_snn
from timm_snn.layers import SpikingStem, to_time_first


def profile(model, data, **kwargs) -> timm_snn.profiling.Report:
    return timm_snn.profile(model, data, progress=False, **kwargs)


def layer(report, name):
    return next(row for row in report.layers if row.name == name)


class Net(nn.Module):
    """A stem, units and a classifier, as all our models are."""

    def __init__(self, *units: nn.Module, stem=(1, 2), num_steps=2, head=(3, 2)) -> None:
        super().__init__()
        self.num_steps, self.in_chans = num_steps, stem[0]
        self.stem = SpikingStem(stem[0], (stem[1],), (False,))
        self.units = nn.Sequential(*units)
        self.head = nn.Linear(*head)

    def forward(self, x):
        x = self.stem(to_time_first(x, self.num_steps, self.in_chans), self.num_steps)
        return self.head(self.units(x).mean((0, 3, 4)))


def same_counts(a, b, rel: float = 1e-12) -> None:
    """The same numbers in every layer and stage, up to a share of `rel`; a folded model has fewer parameters."""
    for one, other in zip([*a.layers, *a.stages, a.total], [*b.layers, *b.stages, b.total], strict=True):
        for name, value in asdict(one).items():
            expected = getattr(other, name)
            if isinstance(value, (float, list, dict)):
                expected = pytest.approx(expected, rel=rel)
            assert value == expected or name == 'parameters', (one.name, name)
