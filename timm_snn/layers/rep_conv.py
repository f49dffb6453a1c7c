"""RepConv: a convolution that is trained as three."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .conv import MapConv

__all__ = ['RepConv']


class RepConv(nn.Module):
    """Re-parameterised convolution (arXiv 2404.03663): BN2(W2 D(BN1(W1 x))), linear, so it is one 3x3 convolution.

    W1 and W2 are 1x1 convolutions, D a depthwise one of 3x3. D pads the map with BN1(0), the value of a pixel without
    spikes, and not with zeros: with zeros the border would not be the same 3x3 convolution. As in the released code
    there is no gradient through the border. In training BN1(0) has the statistics of the batch, as the map has; the
    released code takes the running ones, which change while they are used.

    Stands for the convolution of a `ConvBn`. Shape: [N, in_chs, H, W] -> [N, out_chs, H, W].
    """

    def __init__(self, in_chs: int, out_chs: int, device=None, dtype=None) -> None:
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        self.pw1 = MapConv(in_chs, in_chs, 1, bias=False, **dd)
        self.bn1: nn.Module = nn.BatchNorm2d(in_chs, **dd)
        self.dw = nn.Conv2d(in_chs, in_chs, 3, groups=in_chs, bias=False, **dd)
        self.pw2 = nn.Conv2d(in_chs, out_chs, 1, bias=False, **dd)
        self.bn2: nn.Module = nn.BatchNorm2d(out_chs, **dd)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pw1(x)
        border = self._norm_of_zero(x).to(x.dtype)
        x = self.bn1(x)
        sides = [self.dw.dilation[0]] * 4
        outside = 1 - F.pad(torch.ones_like(x[:1, :1]), sides)
        x = F.pad(x, sides) + outside * border.view(1, -1, 1, 1)
        return self.bn2(self.pw2(self.dw(x)))

    def _norm_of_zero(self, x: Tensor) -> Tensor:
        """BN1(0), with the statistics that BN1 has for x [N, C, H, W]. Shape: [C]."""
        bn: Any = self.bn1
        if isinstance(bn, nn.Identity):  # `fuse` folded it into W1
            return self.pw1.bias  # type: ignore[return-value]
        if not isinstance(bn, nn.BatchNorm2d):  # frozen by a library, whose class need not have the attributes
            return bn(torch.zeros_like(x[:1, :, :1, :1])).flatten().detach()
        mean: Any = bn.running_mean
        var: Any = bn.running_var
        if bn.training:
            var, mean = torch.var_mean(x.detach().to(var.dtype), [0, 2, 3], correction=0)
        return (bn.bias - mean * bn.weight / torch.sqrt(var + bn.eps)).detach()

    @torch.no_grad()
    @torch.jit.unused
    def merged(self) -> nn.Conv2d:
        """One dense 3x3 convolution with bias that computes what this does in eval mode.

        It sees spikes alone and needs no products, for hardware that gains from that; elsewhere it is more work.
        """
        scales, shifts = [], []
        norms: Any = (self.bn1, self.bn2)
        for bn in norms:
            scale = bn.weight.double() / torch.sqrt(bn.running_var.double() + bn.eps)
            scales.append(scale)
            shifts.append(bn.bias.double() - bn.running_mean.double() * scale)
        w1 = scales[0].view(-1, 1) * self.pw1.weight.double().flatten(1)  # [C, in]
        w2 = scales[1].view(-1, 1) * self.pw2.weight.double().flatten(1)  # [out, C]
        taps = self.dw.weight.double().squeeze(1)  # [C, 3, 3]
        weight, dilation = self.pw1.weight, self.dw.dilation[0]
        conv = nn.Conv2d(
            w1.shape[1],
            w2.shape[0],
            3,
            padding=dilation,
            dilation=dilation,
            device=weight.device,
            dtype=weight.dtype,
        )
        conv.weight.copy_(torch.einsum('oc,chw,ci->oihw', w2, taps, w1))
        conv.bias.copy_(w2 @ (taps.sum((1, 2)) * shifts[0]) + shifts[1])  # type: ignore[union-attr]
        return conv
