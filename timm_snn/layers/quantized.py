"""What an artificial network is converted with: its quantised activation, the neuron that replaces it, running means.

An artificial network sees [B, ...]; converted, it sees its T steps as a batch, [T * B, ...], and these layers split it.
"""

import math
from typing import Any

import torch
from timm.layers import register_notrace_module
from torch import Tensor, nn
from torch.nn.functional import dropout

from .neuron import LIF
from .temporal import merge_time, split_time

__all__ = ['ClipFloorShift', 'ConvertedNeuron', 'OnRunningMean', 'check_mask_ratio']


def check_mask_ratio(mask_ratio: float) -> float:
    """Raises: ValueError for what is no ratio of spikes to drop."""
    if not 0 <= mask_ratio < 1:
        raise ValueError(f'random spike masking needs 0 <= mask_ratio < 1, got {mask_ratio}')
    return mask_ratio


class ClipFloorShift(nn.Module):
    """Quantised clip-floor-shift activation (QCFS): the firing rate of an integrate-and-fire neuron after L steps.

        h(z) = theta * clip(floor(z * L / theta + 1/2) / L, 0, 1)

    with L = `levels` and a trainable theta, one for the layer. The floor has the gradient of the identity. In training
    `mask_ratio` of the activations are dropped and the others scaled up, as the spikes of `ConvertedNeuron` will be.

    Shape: any. Source: arXiv 2303.04347, with a shift of 1/2.
    Raises: ValueError for fewer than one level, a theta that is not positive, or a mask_ratio outside of [0, 1).
    """

    def __init__(self, levels: int = 8, theta: float = 1.0, mask_ratio: float = 0.0, device=None, dtype=None) -> None:
        super().__init__()
        if type(levels) is not int or levels < 1:
            raise ValueError(
                f'a clip-floor-shift activation needs a whole number of levels of at least 1, got {levels!r}'
            )
        if not 0 < theta < math.inf:
            raise ValueError(f'a clip-floor-shift activation needs a theta above 0, got {theta}')
        self.levels = levels
        self.mask_ratio = check_mask_ratio(mask_ratio)
        self.theta = nn.Parameter(torch.tensor(float(theta), device=device, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        scaled = x * (self.levels / self.theta) + 0.5
        floored = scaled + (scaled.floor() - scaled).detach()
        y = self.theta * (floored / self.levels).clamp(0, 1)
        return dropout(y, self.mask_ratio, self.training) if self.mask_ratio else y

    def extra_repr(self) -> str:
        return f'levels={self.levels}' + (f', mask_ratio={self.mask_ratio:g}' if self.mask_ratio else '')


@register_notrace_module
class ConvertedNeuron(nn.Module):
    """Integrate-and-fire neuron with soft reset that takes the place of a `ClipFloorShift` and has its theta.

    The membrane begins at theta / 2 and is lowered by theta with every spike; a spike is worth theta. If the current z
    is the same at all steps, the mean over T steps is h(z) with L = T, whatever T (arXiv 2303.04347). A current that
    changes may come too late or too early to be counted, which is the error that grows with depth and shrinks with T.

    Random spike masking (arXiv 2210.01208) drops `mask_ratio` of the spikes, others at every call. Those that are left
    are worth theta / (1 - mask_ratio), so that the mean stays.

    Shape: currents [T * B, ...] -> [T * B, ...], of T = `num_steps`.
    """

    def __init__(self, activation: ClipFloorShift, num_steps: int, mask_ratio: float) -> None:
        super().__init__()
        self.theta = activation.theta
        self.num_steps = num_steps
        self.mask_ratio = mask_ratio
        self.lif = LIF(tau=math.inf, decay_input=False, v_reset=None)

    def forward(self, x: Tensor) -> Tensor:
        return self._worth(self.lif(self._current(x, at_rest=True)))

    def stream(self, x: Tensor, state: dict[str, Tensor] | None) -> tuple[Tensor, dict[str, Tensor]]:
        """The next steps of a stream (`timm_snn.stream`): from the state after the last ones, or at rest, on."""
        spikes, state = self.lif.stream(self._current(x, at_rest=state is None), state)
        return self._worth(spikes), state

    def _current(self, x: Tensor, at_rest: bool) -> Tensor:
        current = split_time(x / self.theta, self.num_steps)
        # a membrane that begins at 1/2 instead of 0: without leak that is half a threshold more in the first step
        return torch.cat([current[:1] + 0.5, current[1:]]) if at_rest else current

    def _worth(self, spikes: Tensor) -> Tensor:
        if self.mask_ratio:
            spikes = dropout(spikes, self.mask_ratio)
        return self.theta * merge_time(spikes)

    def extra_repr(self) -> str:
        return f'num_steps={self.num_steps}' + (f', mask_ratio={self.mask_ratio:g}' if self.mask_ratio else '')


@register_notrace_module
class OnRunningMean(nn.Module):
    """A real-valued layer f among spikes, such as a softmax, evaluated on what has come in until now.

    f of single steps would not average to f of the averages. With m_t, the mean of the first t inputs, step t gets

        y_t = t f(m_t) - (t - 1) f(m_{t-1})

    so that the mean of the first t outputs is f(m_t), at every t and without seeing the future.

    Args:
        layer: f; its result is one tensor.
        by_step: Which of its arguments carry time: positions of positional ones, names of others.
        num_steps: T.

    Shape: these [T * B, ...] -> [T * B', ...].
    """

    def __init__(self, layer: nn.Module, by_step: frozenset[int | str], num_steps: int) -> None:
        super().__init__()
        self.layer = layer
        self.by_step = by_step
        self.num_steps = num_steps

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.stream(*args, state=None, **kwargs)[0]

    def stream(self, *args: Any, state: dict[str, Tensor] | None, **kwargs: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """The next steps of a stream (`timm_snn.stream`): from the state after the last ones, or the first step, on."""
        seen: Any = 0 if state is None else state['num_steps']
        sums: dict[str, Tensor] = {}

        def mean(place: int | str, x: Any) -> Any:
            if place not in self.by_step:
                return x
            x = split_time(x, self.num_steps)
            if state is not None:
                x = torch.cat([x[:1] + state[f'sum_{place}'], x[1:]])
            total = x.cumsum(0)
            sums[f'sum_{place}'] = total[-1]
            return merge_time(total / self._counts(x, seen))

        args = tuple(mean(i, x) for i, x in enumerate(args))
        kwargs = {name: mean(name, x) for name, x in kwargs.items()}
        y = split_time(self.layer(*args, **kwargs), self.num_steps)
        total = y * self._counts(y, seen)
        first = total[:1] if state is None else total[:1] - state['total']
        num_steps = torch.as_tensor(seen + self.num_steps, device=y.device)
        return merge_time(torch.cat([first, total[1:] - total[:-1]])), {
            **sums,
            'total': total[-1],
            'num_steps': num_steps,
        }

    def _counts(self, x: Tensor, seen: int | Tensor) -> Tensor:
        """How many steps the means are of: the next after those that were seen."""
        counts = torch.arange(1, self.num_steps + 1, device=x.device, dtype=x.dtype) + seen
        return counts.view(-1, *[1] * (x.ndim - 1))

    def extra_repr(self) -> str:
        return f'num_steps={self.num_steps}'
