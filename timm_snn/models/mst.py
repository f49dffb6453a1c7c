"""MST, the masked spiking transformer: a Swin transformer that is trained as an artificial network and then converted.

Paper: "Masked Spiking Transformer", arXiv 2210.01208 (ICCV 2023); the activation is that of arXiv 2303.04347.

timm's Swin with three changes. Batch norms take the place of layer norms, since they are affine once trained and so
commute with a mean over time. Every matrix product with weights inside a block is fed by a neuron: after the norms,
after Q, K and V, after attention and in the MLP. And random spike masking drops some of the spikes that enter the
attention and the MLP.

`mst_tiny_ann` is the network to train, whose neurons are quantised clip-floor-shift activations; `mst_tiny`, of the
same weights, has integrate-and-fire neurons, and is what `timm_snn.convert` makes of it. docs/conversion.md
has the steps from one to the other.

* The public text leaves open where exactly neurons and masks sit, whether masked spikes are scaled up, and how the
  softmax meets spikes. Here the softmax and the two products around it, of Q with K and of its result with V, stay
  real-valued and see running means (`timm_snn.layers.OnRunningMean`).
* There are no outputs of the authors' code to compare with, and their files do not load.
* The current of the image is the same at every step, so that the first neurons convert exactly.

Shapes of mst_tiny, tokens channels last; T * B are a batch for timm's layers:

    input         [B, 3, 224, 224]
    patch_embed   [T * B, 56, 56, 96]     a 4x4 convolution with stride 4 and a batch norm
    layers.0      [T * B, 56, 56, 96]     2 blocks of windows of 7x7 tokens
    layers.1      [T * B, 28, 28, 192]    2 blocks
    layers.2      [T * B, 14, 14, 384]    6 blocks
    layers.3      [T * B, 7, 7, 768]      2 blocks
    logits        [B, 1000]               mean over tokens, a linear layer, mean over T
"""

from functools import partial
from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import get_device_dtype
from timm.models import SwinTransformer, generate_default_cfgs, register_model
from timm.models.swin_transformer import WindowAttention
from timm.models.swin_transformer import checkpoint_filter_fn as swin_filter_fn
from torch import Tensor, nn

from ..layers import ClipFloorShift
from .builder import build_spiking_model
from .conversion import ConvertedModel
from .heads import let_heads_be_reset
from .untrusted import check_state_dict

__all__ = ['MaskedSpikingTransformer', 'QuantizedSwin']

CITATION = 'arXiv:2210.01208'
LIMITATIONS = (
    'The softmax of the attention and the products around it are real-valued, and spikes are worth a learned number: '
    'these layers multiply, and do not only accumulate.'
)


class QuantizedNorm(nn.BatchNorm1d):
    """Batch norm over all tokens, then the activation. Shape: [..., dim] -> the same."""

    def __init__(self, dim: int, act_layer: Any, device=None, dtype=None) -> None:
        super().__init__(dim, device=device, dtype=dtype)
        self.act = act_layer(device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(super().forward(x.flatten(0, -2)).view(x.shape))


class WindowSoftmax(nn.Module):
    """What stays real-valued of attention: softmax(q k^T + bias) v.

    Shape: q, k, v [B * windows, heads, N, D], bias [windows or 1, heads, N, N] -> [B * windows, heads, N, D].
    """

    def __init__(self, drop: nn.Module) -> None:
        super().__init__()
        self.drop = drop

    def forward(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        scores = q @ k.transpose(-2, -1)
        scores = (scores.unflatten(0, (-1, len(bias))) + bias).view(scores.shape)
        return self.drop(scores.softmax(-1)) @ v


class QuantizedWindowAttention(WindowAttention):
    """timm's attention in windows, with activations after Q, K, V and the weighted sum.

    Shape: x [B * windows, N, dim], mask [windows, N, N] or None -> [B * windows, N, dim].
    """

    def __init__(self, act_layer: Any, device=None, dtype=None, **kwargs: Any) -> None:
        dd = {'device': device, 'dtype': dtype}
        super().__init__(**kwargs, **dd)
        self.q_act, self.k_act, self.v_act, self.act = (act_layer(**dd) for _ in range(4))
        self.attend = WindowSoftmax(self.attn_drop)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        bias = self._get_rel_pos_bias()  # [1, heads, N, N]
        if mask is not None:
            bias = bias + mask.unsqueeze(1)
        x = self.attend(self.q_act(q) * self.scale, self.k_act(k), self.v_act(v), bias)
        return self.proj_drop(self.proj(self.act(x).transpose(1, 2).flatten(2)))


class QuantizedSwin(SwinTransformer):
    """Swin with batch norms and quantised clip-floor-shift activations: the network that MST is converted from.

    Args:
        levels: Of the activations, L.
        mask_ratio: Activations, and after conversion spikes, that are dropped before attention and in the MLP.
        kwargs: Of `timm.models.SwinTransformer`.
    """

    def __init__(self, levels: int = 8, mask_ratio: float = 0.0, **kwargs: Any) -> None:
        act_layer = partial(ClipFloorShift, levels)
        masked = partial(act_layer, mask_ratio=mask_ratio)
        norm_layer: Any = partial(QuantizedNorm, act_layer=act_layer)
        super().__init__(**kwargs, norm_layer=norm_layer)
        dd = get_device_dtype(self)
        patch_embed: Any = self.patch_embed
        patch_embed.norm.act = nn.Identity()  # the stream begins with currents of both signs
        stages: Any = self.layers
        for block in (block for stage in stages for block in stage.blocks):
            attn = block.attn
            block.attn = QuantizedWindowAttention(
                dim=attn.dim,
                num_heads=attn.num_heads,
                head_dim=attn.qkv.out_features // 3 // attn.num_heads,
                window_size=attn.window_size,
                qkv_bias=attn.qkv.bias is not None,
                attn_drop=attn.attn_drop.p,
                proj_drop=attn.proj_drop.p,
                act_layer=act_layer,
                **dd,
            )
            block.norm1.act, block.norm2.act, block.mlp.act = (masked(**dd) for _ in range(3))
        let_heads_be_reset(self)
        if kwargs.get('weight_init') != 'skip':
            self.init_weights(needs_reset=False)  # of the new layers too


class MaskedSpikingTransformer(ConvertedModel):
    """`QuantizedSwin` with integrate-and-fire neurons, for inference (arXiv 2210.01208).

    Args:
        num_steps: T, which may be assigned later.
        mask_ratio: Spikes that are dropped at random before attention and in the MLP, others at every call.
        levels: Of the activations that it was trained with; has no effect here.
        img_size, patch_size, in_chans, num_classes, global_pool, embed_dim: As of `timm.models.SwinTransformer`.
        depths, num_heads, window_size, strict_img_size, mlp_ratio, qkv_bias, drop_rate, drop_path_rate: Likewise.

    Shape: images [B, C, H, W] or frames [B, T, C, H, W] -> logits [B, num_classes], of H and W = img_size unless
    strict_img_size=False.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 4,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = 'avg',
        embed_dim: int = 96,
        depths: tuple[int, ...] = (2, 2, 6, 2),
        num_heads: tuple[int, ...] = (3, 6, 12, 24),
        window_size: int | tuple[int, ...] = 7,
        strict_img_size: bool = True,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.1,
        levels: int = 8,
        mask_ratio: float = 0.0,
        num_steps: int = 128,
        device=None,
        dtype=None,
    ) -> None:
        swin = QuantizedSwin(
            levels,
            mask_ratio,
            img_size=img_size,
            patch_size=patch_size,
            in_chans=in_chans,
            num_classes=num_classes,
            global_pool=global_pool,
            embed_dim=embed_dim,
            depths=depths,
            num_heads=num_heads,
            window_size=window_size,
            strict_img_size=strict_img_size,
            mlp_ratio=mlp_ratio,
            qkv_bias=qkv_bias,
            drop_rate=drop_rate,
            drop_path_rate=drop_path_rate,
            device=device,
            dtype=dtype,
        )
        attention = [name for name, module in swin.named_modules() if isinstance(module, WindowSoftmax)]
        super().__init__(swin, num_steps, dict.fromkeys(attention, frozenset({0, 1, 2})))

    @property
    def _model_args(self) -> dict[str, Any]:
        # what timm writes to config.json; `num_steps` may have been assigned
        return dict(self._timm_args, num_steps=self.num_steps)

    @_model_args.setter
    def _model_args(self, args: dict[str, Any]) -> None:
        self._timm_args = args


def checkpoint_filter_fn(state_dict: dict[str, Tensor], model: Any) -> dict[str, Tensor]:
    """Weights of either network to the keys of either, for other sizes of windows and patches too."""
    is_spiking = isinstance(model, MaskedSpikingTransformer)
    state_dict = {key.removeprefix('model.'): value for key, value in state_dict.items()}
    state_dict = swin_filter_fn(state_dict, model.model if is_spiking else model)
    if is_spiking:
        state_dict = {f'model.{key}': value for key, value in state_dict.items()}
    check_state_dict(state_dict, model, 'the keys of mst_tiny_ann or mst_tiny')
    return state_dict


def _cfg(**cfg: Any) -> dict[str, Any]:
    return {
        'num_classes': 1000,
        'input_size': (3, 224, 224),
        'pool_size': (7, 7),
        'crop_pct': 0.9,
        'interpolation': 'bicubic',
        'mean': IMAGENET_DEFAULT_MEAN,
        'std': IMAGENET_DEFAULT_STD,
        'license': 'apache-2.0',
        'paper_ids': CITATION,
        'paper_name': 'Masked Spiking Transformer',
        'origin_url': 'https://github.com/bic-L/Masked-Spiking-Transformer',
        **cfg,
    }


default_cfgs = generate_default_cfgs(
    {
        'mst_tiny_ann': _cfg(first_conv='patch_embed.proj', classifier='head.fc'),
        'mst_tiny': _cfg(first_conv='model.patch_embed.proj', classifier='model.head.fc'),
    }
)


def _create_mst(model_cls: Any, variant: str, pretrained: bool, **kwargs: Any) -> Any:
    return build_spiking_model(model_cls, variant, pretrained, checkpoint_filter_fn, **kwargs)


# Never change a default below: saved models record only what their users passed.
@register_model
def mst_tiny_ann(pretrained: bool = False, **kwargs: Any) -> QuantizedSwin:
    """The network to train, with activations for neurons; the parameters of `mst_tiny`."""
    return _create_mst(QuantizedSwin, 'mst_tiny_ann', pretrained, **kwargs)


@register_model
def mst_tiny(pretrained: bool = False, **kwargs: Any) -> MaskedSpikingTransformer:
    """28,288,442 parameters with 1000 classes, 88 of which are thresholds; T=128."""
    return _create_mst(MaskedSpikingTransformer, 'mst_tiny', pretrained, **kwargs)
