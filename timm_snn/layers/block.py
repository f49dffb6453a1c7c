"""Residual blocks.

Spiking transformers add a branch to the stream in one of two places. The branch decides which; the sum is the same:

* SEW (arXiv 2102.04159): branches end in a neuron and the stream holds small integers, s' = s + SN(BN(W s)).
* Membrane shortcut (MS, arXiv 2112.08954): branches begin with a neuron and end in a batch norm, and the stream holds
  membrane currents, u' = u + BN(W SN(u)). Layers have this order with `pre_activation=True`.
"""

from torch import Tensor, nn

from .temporal import DropPath

__all__ = ['SpikingBlock', 'SpikingResidual']


class SpikingBlock(nn.Module):
    """X' = attn(X) + X, then mlp(X') + X', with stochastic depth per sample. Shape: [T, B, dim, H, W] -> the same.

    A family writes these two lines again, with the equations of its paper, so that its file shows its block.
    """

    def __init__(self, attn: nn.Module, mlp: nn.Module, drop_path: float = 0.0) -> None:
        super().__init__()
        self.attn = attn
        self.mlp = mlp
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.attn(x))
        x = x + self.drop_path(self.mlp(x))
        return x


class SpikingResidual(nn.Module):
    """branch(X) + X, with stochastic depth per sample. Shape: [T, B, dim, H, W] -> the same."""

    def __init__(self, branch: nn.Module, drop_path: float = 0.0) -> None:
        super().__init__()
        self.branch = branch
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop_path(self.branch(x))
