"""ConvBn, ConvBnLif and LifConvBn, the bricks that every block is built from."""

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.fx import Proxy

from ..ops.bn_lif import choose_implementation, fire_normalised, fire_pooled
from ..ops.fixed import max_pool
from ..ops.sparse_conv import conv2d
from .frozen import FrozenBatchNorm2d
from .neuron import FUSED, LIF, neuron_for
from .registry import LayerFn
from .temporal import merge_time, split_time

__all__ = ['ConvBn', 'ConvBnLif', 'LifConvBn', 'pool_spikes', 'skip_zeros']


class ConvBn(nn.Module):
    """Convolution, batch norm, optional 3x3 max pooling with stride 2: real values, for a membrane to integrate.

    Both act on every step alone; batch statistics are taken over T and B together, as all published models do. Pooling
    and strides round an odd size up, so that branches which halve it differently meet again. A kernel of even size
    must be as large as its stride: it cuts the map into patches and drops what is left over at the border.
    `conv_layer`, such as `RepConv`, replaces the convolution: `conv_layer(in_chs, out_chs)`, [N, C, H, W] -> the same.

    Shape: [T, B, in_chs, H, W] -> [T, B, out_chs, H', W']; with `dims=1` tokens, [T, B, C, N] instead.
    Raises: ValueError for an even kernel_size with another stride.
    """

    def __init__(
        self,
        in_chs: int,
        out_chs: int,
        kernel_size: int = 1,
        stride: int = 1,
        pool: bool = False,
        bias: bool = False,
        groups: int = 1,
        dims: Literal[1, 2] = 2,
        conv_layer: LayerFn | None = None,
        device=None,
        dtype=None,
    ) -> None:
        if kernel_size % 2 == 0 and kernel_size != stride:
            raise ValueError(
                f'{type(self).__name__} takes odd kernels, or even ones as large as their stride, got '
                f'kernel_size={kernel_size} and stride={stride}'
            )
        if conv_layer is not None and (kernel_size, stride, bias, groups, dims) != (1, 1, False, 1, 2):
            raise ValueError(
                'a conv_layer has its own kernel, stride, bias and groups, and takes maps: pass none of them'
            )
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        usual_conv, pool_layer = {1: (TokenConv, nn.MaxPool1d), 2: (MapConv, nn.MaxPool2d)}[dims]
        padding = kernel_size // 2 if kernel_size % 2 else 0
        if conv_layer is not None:
            self.conv = conv_layer(in_chs, out_chs, **dd)
        else:
            self.conv = usual_conv(in_chs, out_chs, kernel_size, stride, padding, groups=groups, bias=bias, **dd)
        # Tokens are maps of one row to it: timm, torchvision and transformers freeze BatchNorm2d and no other class.
        self.bn = nn.BatchNorm2d(out_chs, **dd)
        self.dims = dims
        self.pool = pool_layer(3, 2, 1) if pool else nn.Identity()

    def current(self, x: Tensor) -> Tensor:
        return split_time(self.pool(self._normalised(merge_time(x))), x.shape[0])

    def _normalised(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.bn(y) if self.dims == 2 else self.bn(y.unsqueeze(2)).squeeze(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.current(x)


class ConvBnLif(ConvBn):
    """Convolution, batch norm, optional pooling, neuron: `ConvBn` and what fires on it.

    Its `current`, without spikes, can be computed once for steps with the same input.

    Shape: [T, B, in_chs, H, W] -> spikes [T, B, out_chs, H', W']; with `dims=1` tokens, [T, B, C, N] instead.
    """

    def __init__(
        self,
        in_chs: int,
        out_chs: int,
        kernel_size: int = 1,
        stride: int = 1,
        pool: bool = False,
        bias: bool = False,
        groups: int = 1,
        dims: Literal[1, 2] = 2,
        conv_layer: LayerFn | None = None,
        lif_layer: LayerFn = LIF,
        device=None,
        dtype=None,
    ) -> None:
        dd = {'device': device, 'dtype': dtype}
        super().__init__(in_chs, out_chs, kernel_size, stride, pool, bias, groups, dims, conv_layer, **dd)
        self.lif = neuron_for(out_chs, lif_layer).to(**dd)

    def forward(self, x: Tensor) -> Tensor:
        if torch.jit.is_scripting() or not self._can_fuse(x):
            return self.lif(self.current(x))
        return self._fused(x)

    @torch.jit.unused
    def _can_fuse(self, x: Tensor) -> bool:
        """Whether one op may stand for batch norm, pooling and neuron: no subclass, hook or tracer would miss them."""
        bn = self.bn  # looked up once, which nn.Module does in Python
        return (
            is_plain(self.lif, FUSED)
            and is_plain(bn, (nn.Identity, nn.BatchNorm2d, FrozenBatchNorm2d))
            and (type(bn) is nn.Identity or _is_usual(bn))
            and is_plain(self.pool, (nn.MaxPool1d, nn.MaxPool2d, nn.Identity))
            and not isinstance(x, Proxy)
        )

    @torch.jit.unused
    def _fused(self, x: Tensor) -> Tensor:
        bn: Any = self.bn
        lif: Any = self.lif
        conv: Any = self.conv
        has_norm, pool, neuron = not isinstance(bn, nn.Identity), not isinstance(self.pool, nn.Identity), lif.neuron
        training = has_norm and bn.training
        learned = lif.learned()
        implementation = choose_implementation(x, neuron, learned, lif.backend, pool=pool, training=training)
        offset = conv.bias if implementation.takes_offset and is_plain(conv, (MapConv, TokenConv)) else None
        y = merge_time(x)
        y = split_time(conv(y) if offset is None else conv._conv_forward(y, conv.weight, None), x.shape[0])
        unit = dict(pool=pool, offset=offset, neuron=neuron, learned=learned)
        if not has_norm:
            return fire_pooled(implementation, y, **unit)
        if training:
            bn.num_batches_tracked.add_(1)
        norm = (bn.weight, bn.bias, bn.running_mean, bn.running_var)
        return fire_normalised(implementation, y, norm, training, bn.momentum, bn.eps, **unit)


class LifConvBn(nn.Module):
    """Neuron, convolution, batch norm: a unit between two currents, for membrane shortcuts.

    Shape: currents [T, B, in_chs, H, W] -> currents [T, B, out_chs, H', W']. Raises: as `ConvBn`.
    """

    def __init__(
        self,
        in_chs: int,
        out_chs: int,
        kernel_size: int = 1,
        stride: int = 1,
        bias: bool = False,
        groups: int = 1,
        lif_layer: LayerFn = LIF,
        device=None,
        dtype=None,
    ) -> None:
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        self.lif = neuron_for(in_chs, lif_layer).to(**dd)
        self.unit = ConvBn(in_chs, out_chs, kernel_size, stride, bias=bias, groups=groups, **dd)

    def forward(self, x: Tensor) -> Tensor:
        return self.unit(self.lif(x))


def _is_usual(bn: Any) -> bool:
    """Affine, with running statistics that are averaged exponentially."""
    return bn.affine and bn.track_running_stats and bn.momentum is not None


class MapConv(nn.Conv2d):
    """Conv2d of spikes: one that can skip zeros, see `timm_snn.ops.sparse_spikes`.

    With `skips_zeros`, which `skip_zeros` sets, it does so by itself where it can.
    """

    __constants__: ClassVar = [*nn.Conv2d.__constants__, 'skips_zeros']  # type: ignore[misc]
    skips_zeros = False

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        stride, padding = self.stride, self.padding
        return conv2d(input, weight, bias, stride, padding, self.groups, self.skips_zeros)  # type: ignore[arg-type]


class TokenConv(nn.Conv1d):
    """The same of tokens. It leaves channels_last ones as they are; Conv1d copies them to contiguous ones and back."""

    __constants__: ClassVar = [*nn.Conv1d.__constants__, 'skips_zeros']  # type: ignore[misc]
    skips_zeros = False

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        stride, padding = (1, self.stride[0]), (0, self.kernel_size[0] // 2)
        row, weight = input.unsqueeze(2), weight.unsqueeze(2)
        return conv2d(row, weight, bias, stride, padding, self.groups, self.skips_zeros).squeeze(2)


def skip_zeros(model: nn.Module, fewest_channels: int = 32) -> None:
    """Let convolutions of spikes in the model skip zeros where they can, but inside `sparse_spikes`, which says.

    Those with fewer inputs or outputs stay as they are. By default that is where it paid at no density, in inference on
    two cores with AVX2.
    """
    for module in model.modules():
        if isinstance(module, (MapConv, TokenConv)) and min(module.in_channels, module.out_channels) >= fewest_channels:
            module.skips_zeros = True


def pool_spikes(x: Tensor) -> Tensor:
    """3x3 max pooling of every step, which halves a map of spikes: a window fires if one in it does.

    Shape: [T, B, C, H, W] -> [T, B, C, H', W'], rounded up.
    """
    return split_time(max_pool(merge_time(x)), x.shape[0])


def is_plain(module: nn.Module, types: tuple[type, ...]) -> bool:
    """Whether a module does what its class says and nobody watches it."""
    return type(module) in types and not (
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )
