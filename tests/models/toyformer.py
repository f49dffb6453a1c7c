"""Toyformer: the shortest family there can be, one file outside the package.

    python -m pytest -p tests.models.toyformer tests/models/test_families.py tests/models/test_shapes.py -k toyformer

runs what every family promises on it; `test_contributing.py` does so.

Shapes of toyformer_3_16:

    input       [B, 3, 32, 32]
    stem        [T, B, 8, 32, 32]       a 3x3 convolution unit: convolution, batch norm, LIF
    stages.0    [T, B, 16, 16, 16]      pooling to half the size, then a block
    stages.1    [T, B, 16, 8, 8]        the same
    stages.2    [T, B, 16, 4, 4]        the same
    logits      [B, 10]                 mean over T, height and width, then a linear layer
"""

from typing import Any

from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from timm_snn.layers import DropPath, LayerFn, SpikingMlp, SpikingPatchEmbed, SpikingStem
from timm_snn.models import (
    KEEP,
    POOL,
    SpikingStage,
    SpikingTransformer,
    build_spiking_model,
    check_state_dict,
    neuron_layer,
    pretrained_cfgs,
)

__all__ = ['Toyformer']

CITATION = 'arXiv:2505.14719'
LIMITATIONS = 'It mixes tokens in its patch embeddings alone.'


class ToyformerBlock(nn.Module):
    """An MLP, added after its last neuron. Shape: [T, B, dim, H, W] -> the same."""

    def __init__(self, dim: int, drop_path: float, lif_layer: LayerFn, device=None, dtype=None) -> None:
        super().__init__()
        self.mlp = SpikingMlp(dim, 2 * dim, lif_layer=lif_layer, device=device, dtype=dtype)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop_path(self.mlp(x))


class Toyformer(SpikingTransformer):
    """Three stages of one block. Shape: images [B, C, H, W] or frames [B, T, C, H, W] -> logits [B, num_classes]."""

    def __init__(
        self,
        num_classes: int = 10,
        in_chans: int = 3,
        global_pool: str = 'avg',
        embed_dim: int = 16,
        num_steps: int = 2,
        lif_layer: str | LayerFn = 'lif',
        backend: str | None = None,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device=None,
        dtype=None,
    ) -> None:
        dd = {'device': device, 'dtype': dtype}
        layer: dict[str, Any] = {'lif_layer': neuron_layer(lif_layer, backend), **dd}
        chs = [embed_dim // 2, embed_dim, embed_dim]
        super().__init__(
            SpikingStem(in_chans, chs[:1], (KEEP,), **layer),
            [
                SpikingStage(
                    SpikingPatchEmbed(chs[i], (embed_dim,), (POOL,), **layer),
                    [ToyformerBlock(embed_dim, drop_path_rate, **layer)],
                    num_chs=embed_dim,
                    reduction=2 ** (i + 1),
                )
                for i in range(3)
            ],
            num_classes=num_classes,
            in_chans=in_chans,
            global_pool=global_pool,
            num_steps=num_steps,
            drop_rate=drop_rate,
            **dd,
        )


def checkpoint_filter_fn(state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    check_state_dict(state_dict, model, 'our keys (stem.units.0.conv.weight)')
    return state_dict


default_cfgs = generate_default_cfgs(
    pretrained_cfgs(
        {'toyformer_3_16': 'cifar10'}, paper_ids=CITATION, paper_name='Improving Spiking Vision Transformer'
    )
)


@register_model
def toyformer_3_16(pretrained: bool = False, **kwargs: Any) -> Toyformer:
    return build_spiking_model(
        Toyformer,
        'toyformer_3_16',
        pretrained,
        checkpoint_filter_fn,
        **dict(dict(embed_dim=16), **kwargs),
    )
