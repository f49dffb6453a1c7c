"""A model as it is exported: fused, of plain operators, on a CPU, and traced for any batch."""

import copy
from collections.abc import Container
from typing import Any

import torch
from timm.data import resolve_model_data_config
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_leaves

from ..files import printable
from ..layers import ConvBn
from ..models.fuse import fuse
from ..wrappers import unwrapped

__all__ = ['capture', 'example_input', 'flat', 'prepared']


def prepared(model: nn.Module) -> nn.Module:
    """A copy for inference: fused, if there are batch norms to fold, in eval mode, contiguous, on the CPU.

    fuse lays weights out channels_last, and runtimes take that for another order of the axes or refuse it.
    Raises: ValueError for a model that cannot be copied or fused, with the layer and the reason.
    """
    model = unwrapped(model)
    if any(isinstance(module, ConvBn) and isinstance(module.bn, _BatchNorm) for module in model.modules()):
        model = fuse(model)
    else:
        model = copy.deepcopy(model).requires_grad_(False).eval()
    return model.cpu().to(memory_format=torch.contiguous_format)


def example_input(model: Any) -> Tensor:
    """Two random images, or recordings for a model of events, as the model takes them.

    Raises: ValueError for a model that does not say what it takes.
    """
    if not getattr(model, 'pretrained_cfg', None):
        raise ValueError(
            f'a {type(model).__name__} does not say what its input looks like: pass example=, a batch of at least two'
        )
    _, height, width = resolve_model_data_config(model)['input_size']
    channels = getattr(model, 'in_chans', None) or resolve_model_data_config(model)['input_size'][0]
    steps = (model.num_steps,) if getattr(model, 'takes_events', False) else ()
    random = torch.Generator().manual_seed(0)
    # a quantised model has no real numbers, but takes real images
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    return torch.randn(2, *steps, channels, height, width, generator=random).to(dtype)


def capture(
    model: nn.Module, example: Tensor, *, known: Container[Any] = (), max_batch: int | None = None
) -> ExportedProgram:
    """The model as torch.export sees it, for any number of images in a batch, or at most `max_batch`.

    `known` are operators beside torch's own that the format translates itself.
    Raises: ValueError for what cannot be traced, draws random numbers or is no plain operator, with the layer.
    """
    dynamic = ({0: Dim('batch', min=1, max=max_batch)},)
    try:
        with torch.no_grad():
            program = torch.export.export(model, (example,), dynamic_shapes=dynamic, strict=False)
    except Exception as error:  # of any class: it is what the model's own code raises on symbols
        reason = printable(str(error).strip().partition('\n')[0] or type(error).__name__, 400)
        raise ValueError(
            f'torch.export cannot trace this {type(model).__name__} for batches of any size: {reason}'
        ) from error
    for node in program.graph.nodes:
        if node.op == 'call_function' and node.target not in known and (wrong := _why_not(node.target, node.args)):
            raise ValueError(f'cannot export {layer_of(node)}: {wrong}')
    return program


def layer_of(node: Any) -> str:
    """Of a node of a traced graph, the innermost module that it is in, by name and class."""
    stack = list((node.meta.get('nn_module_stack') or {}).values())
    name, kind = stack[-1] if stack else ('', 'the model')
    return f'{name or "the model"}, a {str(kind).rpartition(".")[2]}'


def _why_not(target: Any, args: tuple[Any, ...]) -> str | None:
    if not isinstance(target, torch._ops.OpOverload):
        return None  # Python's own arithmetic on sizes
    if target.namespace != 'aten':
        return f'{target} is an operator that other machines do not have; a layer of plain torch can be exported'
    is_idle = target is torch.ops.aten.dropout.default and args[2] is False  # as in eval mode
    if torch.Tag.nondeterministic_seeded in target.tags and not is_idle:
        return f'{target} draws random numbers, other ones in every call: switch that off, such as a mask_ratio'
    return None


def flat(outputs: Any) -> list[Tensor]:
    """The tensors that a model returns, in order: of a classifier its logits, with features_only one for each level."""
    return [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)]
