"""SpikingResformer's layers: dual spike self-attention (DSSA) and the group-wise feed-forward network (GWSFFN)."""

import torch
from timm.layers import register_notrace_module
from torch import Tensor, nn

from ..ops.neuron import membrane_dtype
from .attention import head_dim_of
from .block import SpikingResidual
from .conv import ConvBn, LifConvBn
from .neuron import LIF, neuron_for
from .registry import LayerFn

__all__ = ['DualSpikeSelfAttention', 'GroupWiseMlp', 'RunningFiringRate']


class DualSpikeSelfAttention(nn.Module):
    """Dual spike self-attention (DSSA, arXiv 2403.14302), for membrane shortcuts.

    The spikes s = SN(u) meet, head by head, patches of themselves, real-valued convolutions of p x p pixels:

        Y1, Y2 = BN(Conv_p(s))
        A = SN(Y1^T s * c1)               c1 = 1 / sqrt(f_s * d)
        out = BN(Conv(SN(Y2 A * c2)))     c2 = 1 / sqrt(f_A * L)

    with d channels of a head, L patches, and f the firing rates of s and A (`RunningFiringRate`). In the products one
    operand is of spikes, the other real. `num_patches` is L; None is that of the input at hand, as the authors' models
    have it at the size that they were made for. Pixels beyond the last whole patch are attended by, not to.

    It is not in `timm_snn.layers.attentions`: it takes other arguments and has no threshold of its own. Only
    SpikingResformer takes its name.

    Shape: currents [T, B, dim, H, W], H and W at least patch_size -> currents of the same shape.
    Raises: ValueError if num_heads does not divide dim.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        patch_size: int,
        num_patches: int | None = None,
        lif_layer: LayerFn = LIF,
        device=None,
        dtype=None,
    ) -> None:
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = head_dim_of(dim, num_heads)
        self.num_patches = num_patches
        self.lif = neuron_for(dim, lif_layer).to(**dd)
        self.patches = ConvBn(dim, 2 * dim, patch_size, patch_size, **dd)
        self.lif_rate = RunningFiringRate(num_heads, **dd)
        self.attn_lif = neuron_for(num_heads, lif_layer).to(**dd)
        self.attn_rate = RunningFiringRate(num_heads, **dd)
        self.out_lif = neuron_for(num_heads, lif_layer).to(**dd)
        self.proj = ConvBn(dim, dim, **dd)

    def forward(self, x: Tensor) -> Tensor:
        H, W = x.shape[3], x.shape[4]
        s = self.lif(x)
        y = (
            self.patches_of(s).flatten(3).unflatten(2, [self.num_heads, 2, self.head_dim])
        )  # [T, B, heads, 2, D, N / p^2]
        s = s.flatten(3).unflatten(2, [self.num_heads, self.head_dim])  # [T, B, heads, D, N]
        # The scales on Y are those on the products, which are larger.
        y1 = y[:, :, :, 0] * self.lif_rate(s, self.head_dim)
        attn = self.attn_lif(y1.transpose(-2, -1) @ s)  # [T, B, heads, N / p^2, N]
        num_patches = y.shape[5] if self.num_patches is None else self.num_patches
        y2 = y[:, :, :, 1] * self.attn_rate(attn, num_patches)
        out = self.out_lif(y2 @ attn)
        return self.proj(out.flatten(2, 3).unflatten(3, [H, W]))

    def patches_of(self, s: Tensor) -> Tensor:
        """Y1 and Y2 of spikes: [T, B, dim, H, W] -> [T, B, 2 dim, H / p, W / p]."""
        return self.patches(s)


@register_notrace_module  # a leaf for torch.fx, whose graph would hold the rate of today
class RunningFiringRate(nn.Module):
    """DSSA's scale, 1 / sqrt(f * length), by the firing rate f of every head (arXiv 2403.14302).

    f is a running mean over batches, which a checkpoint holds: in training it takes a `momentum` of the batch's rate,
    then scales this batch, without a gradient; in eval mode it stays. It begins with the rate of the first batch in
    which the head fires; until there was one, in eval mode too, the rate of the batch at hand is used. A head that has
    never fired is scaled by 0. (The released code starts from a silent batch, too, and divides by 0 before training.)

    Shape: spikes [T, B, heads, D, N] -> scale [heads, 1, 1]. The rate is float32 or better, whatever the dtype.
    """

    running: Tensor

    def __init__(self, num_heads: int, momentum: float = 0.001, device=None, dtype=None) -> None:
        super().__init__()
        self.momentum = momentum
        # bfloat16 would lose what a momentum of 0.001 adds
        dtype = membrane_dtype(dtype or torch.get_default_dtype())
        self.register_buffer('running', torch.zeros(num_heads, device=device, dtype=dtype))

    def forward(self, spikes: Tensor, length: int) -> Tensor:
        running = self.running
        batch = spikes.detach().mean([0, 1, 3, 4], dtype=running.dtype)
        rate = torch.where(running == 0, batch, running)
        if self.training and not torch.jit.is_scripting() and not _in_backward():
            rate = rate.lerp(batch, self.momentum)
            running.copy_(rate)
        scale = torch.where(rate == 0, 0, (rate * length).rsqrt())  # NaN stays
        return scale.to(spikes.dtype).view(-1, 1, 1)

    def extra_repr(self) -> str:
        return f'num_heads={len(self.running)}, momentum={self.momentum:g}'


@torch.jit.ignore
def _in_backward() -> bool:
    """True while activation checkpointing runs the forward pass again: this batch is in the running rate already."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


class GroupWiseMlp(nn.Module):
    """Group-wise spiking feed-forward network (GWSFFN, arXiv 2403.14302), for membrane shortcuts.

    Between two 1x1 convolution units, dim -> hidden_dim -> dim, lies a 3x3 one of groups of `group_size` channels with
    a shortcut of its own: each is neuron, convolution, batch norm.

    Shape: currents [T, B, dim, H, W] -> currents of the same shape.
    Raises: ValueError if group_size does not divide hidden_dim.
    """

    def __init__(
        self, dim: int, hidden_dim: int, group_size: int = 64, lif_layer: LayerFn = LIF, device=None, dtype=None
    ) -> None:
        if hidden_dim % group_size:
            raise ValueError(f'group_size={group_size} does not divide the hidden width {hidden_dim}')
        layer = {'lif_layer': lif_layer, 'device': device, 'dtype': dtype}
        super().__init__()
        self.up = LifConvBn(dim, hidden_dim, **layer)
        self.conv = SpikingResidual(LifConvBn(hidden_dim, hidden_dim, 3, groups=hidden_dim // group_size, **layer))
        self.down = LifConvBn(hidden_dim, dim, **layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.conv(self.up(x)))
