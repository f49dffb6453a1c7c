"""Time: how it enters a model, how convolutions see it, and the one place where it is merged with the batch.

Inside a model everything is time-first, [T, B, C, H, W]. Users pass batches as everybody does, batch-first: a data
loader's collate stacks samples, Mixup flips axis 0 and Accelerate slices it, and all of that must happen to samples.
"""

from timm.layers import register_notrace_function
from torch import Tensor, nn

__all__ = [
    'DropPath',
    'mean_over_time',
    'merge_time',
    'refuse_bare_recording',
    'repeat_for_steps',
    'split_time',
    'to_time_first',
]


@register_notrace_function  # branches on the rank, which torch.fx cannot trace
def to_time_first(x: Tensor, num_steps: int, in_chans: int) -> Tensor:
    """Images [B, C, H, W] -> [1, B, C, H, W], one step that stands for all; frames [B, T, C, H, W] -> [T, B, C, H, W].

    Raises: ValueError for another rank, other channels, integers, or frames whose T is not `num_steps`.
    """
    if x.ndim not in (4, 5) or x.shape[-3] != in_chans:
        raise ValueError(
            f'expected images [B, {in_chans}, H, W] or frames [B, T, {in_chans}, H, W], got {list(x.shape)}: '
            'a model for other channels is made with create_model(..., in_chans=...)'
        )
    if not x.is_floating_point():
        raise ValueError(f'expected floating-point images or frames, got {x.dtype}: x.float() makes them so')
    if x.ndim == 4:
        return x.unsqueeze(0)
    if x.shape[1] != num_steps:
        raise ValueError(
            f'expected {num_steps} frames [B, T={num_steps}, C, H, W], got {list(x.shape)}: make the model with '
            f'num_steps={x.shape[1]} or assign model.num_steps = {x.shape[1]}; frames are batch-first'
        )
    return x.transpose(0, 1)


@register_notrace_function  # branches on the shape
def refuse_bare_recording(x: Tensor, num_steps: int) -> None:
    """Raises: ValueError for [T, C, H, W], in a model of events; it would pass for a batch of T still images."""
    if x.ndim == 4 and 1 < num_steps == x.shape[0]:
        raise ValueError(
            f'expected frames [B, T={num_steps}, C, H, W], got {list(x.shape)}, which may be one recording without a '
            'batch: pass x.unsqueeze(0); or a batch of still images, as many as there are steps: pass '
            f'x.unsqueeze(1).expand(-1, {num_steps}, -1, -1, -1)'
        )


def merge_time(x: Tensor) -> Tensor:
    """[T, B, ...] -> [T * B, ...], for layers without a notion of time. Neurons never see the result."""
    return x.flatten(0, 1)


def split_time(x: Tensor, num_steps: int) -> Tensor:
    """[T * B, ...] -> [T, B, ...], the inverse of `merge_time`."""
    return x.unflatten(0, [num_steps, -1])


# The next two functions take a channels_last map through a view with channels last. Autograd's expanded gradients have
# no memory order of their own: in the usual view they come out contiguous, and every layer before copies them back.


@register_notrace_function  # branches on strides
def repeat_for_steps(x: Tensor, num_steps: int) -> Tensor:
    """One step for all: [1, B, C, H, W] -> [T, B, C, H, W] without a copy; all T steps are left as they are."""
    if x.stride(2) == 1:
        y = x.movedim(2, 4)
        return y.flatten(1).expand(num_steps, -1).unflatten(1, [-1, y.shape[2], y.shape[3], y.shape[4]]).movedim(4, 2)
    return x.expand(num_steps, -1, -1, -1, -1)


@register_notrace_function
def mean_over_time(x: Tensor) -> Tensor:
    """[T, B, C, H, W] -> [B, C, H, W]."""
    if x.stride(2) == 1:
        x = x.movedim(2, 4)
        return x.flatten(1).mean(0).view(-1, x.shape[2], x.shape[3], x.shape[4]).movedim(3, 1)
    return x.mean(0)


class DropPath(nn.Module):
    """Stochastic depth per sample (arXiv 1603.09382): a sample's branch is dropped for all of its time steps or none.

    timm's DropPath draws one mask entry per element of axis 0, which is time here. What is kept is scaled by
    1 / (1 - drop_prob). Shape: [T, B, ...] -> the same.
    """

    def __init__(self, drop_prob: float = 0.0) -> None:
        super().__init__()
        if not 0 <= drop_prob < 1:
            raise ValueError(f'stochastic depth needs 0 <= drop_prob < 1, got {drop_prob}')
        self.drop_prob = drop_prob

    def forward(self, x: Tensor) -> Tensor:
        if self.drop_prob == 0.0 or not self.training:
            return x
        keep_prob = 1.0 - self.drop_prob
        mask = x.new_empty([1, x.shape[1]] + [1] * (x.ndim - 2)).bernoulli_(keep_prob)
        return x * (mask / keep_prob)

    def extra_repr(self) -> str:
        return f'drop_prob={self.drop_prob:g}'
