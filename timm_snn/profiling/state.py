"""What a network keeps between calls, such as membranes: put at rest before every batch, and put back afterwards."""

import inspect
from collections import deque
from collections.abc import Callable, Iterator
from types import FunctionType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

__all__ = ['ModuleState']

_OF_TORCH = set(vars(nn.Module())) - {'_buffers'}


class ModuleState:
    """Buffers and attributes of all modules of `model`, as they were at the start.

    Tensors are kept by value, containers by their items, down to the containers in objects that a module holds.
    Parameters are not looked at. `rest` runs before every batch, `restore` at the end.
    """

    def __init__(self, model: nn.Module, is_neuron: Callable[[nn.Module], bool]) -> None:
        self._items: list[tuple[str, Any, Any]] = []  # label, container, a copy of its items
        self._tensors: list[tuple[str, Tensor, Tensor]] = []  # label, tensor, its values
        self._known: dict[int, Any] = {}  # by id, and held, so that no other object gets the id
        self._resets: list[Callable[[], Any]] = []
        reset: list[str] = []
        for name, module in model.named_modules():
            self._look(name, vars(module), 0)
            if own := list(_resets_of(module, is_neuron)):
                self._resets += own
                reset.append(f'{name}.')
        self._reset_names = tuple(reset)

    def _look(self, label: str, value: Any, depth: int) -> None:
        if isinstance(value, (nn.Module, nn.Parameter, type, FunctionType, ModuleType)) or id(value) in self._known:
            return
        if isinstance(value, Tensor):
            self._known[id(value)] = value
            self._tensors.append((label, value, value.detach().clone()))
        elif isinstance(value, (dict, list, tuple, deque, set)):
            self._known[id(value)] = value
            if not isinstance(value, tuple):
                self._items.append((label, value, _copy(value)))
            for key, item in list(value.items() if isinstance(value, dict) else enumerate(value)):
                if depth == 0 and key in _OF_TORCH:
                    continue
                self._look(f'{label}.{key}' if isinstance(value, dict) else label, item, max(depth, 1))
        elif depth < 2 and hasattr(value, '__dict__'):
            self._look(label, vars(value), 2)

    def restore(self) -> None:
        for _, container, items in self._items:
            _put_back(container, items)
        for _, tensor, values in self._tensors:
            if not _same(tensor, values):
                with torch.inference_mode(tensor.is_inference()), torch.no_grad():
                    if tensor.shape == values.shape:
                        tensor.copy_(values)
                    else:
                        tensor.data = values.clone()

    def rest(self) -> None:
        """As at the start, with the neurons that can be reset at rest."""
        self.restore()
        for reset in self._resets:
            reset()

    def refuse_leftovers(self, run: Callable[[], Any]) -> None:
        """Raises ValueError if what `run` returns depends on values that an earlier batch has left.

        Numbers that are all the same, such as a membrane at rest, are none. The others are set to zero for a second
        run.
        """
        left = {label: x for label, x in self._changed() if len(x.flatten()[:1]) and not (x == x.flatten()[0]).all()}
        if not left:
            return
        outputs = []
        for erased in (False, True):
            self.rest()
            for _, tensor, _ in self._tensors if erased else ():
                if any(tensor is x for x in left.values()):
                    tensor.zero_()
            try:
                with torch.random.fork_rng():
                    torch.manual_seed(0)
                    outputs.append([x for x in tree_leaves(run()) if isinstance(x, Tensor)])
            except RuntimeError:  # of another batch size
                outputs.append([torch.full((1,), torch.nan)])
        if len(outputs[0]) != len(outputs[1]) or not all(map(_same, *outputs)):
            raise ValueError(
                f'{next(iter(left))} of the network holds values of an earlier batch, and its output depends on them: '
                'reset the network before it is profiled'
            )

    def _changed(self) -> Iterator[tuple[str, Tensor]]:
        """Tensors that a run has replaced or changed in place, without those of neurons that are reset."""
        replaced = tuple(
            f'{label}.{key}' if isinstance(items, dict) else label
            for label, container, items in self._items
            for key in (items if isinstance(items, dict) else range(len(items)))
            if not _has(container, items, key)
        )
        for label, tensor, values in self._tensors:
            if not label.startswith(self._reset_names) and (label.startswith(replaced) or not _same(tensor, values)):
                yield label.lstrip('.').replace('_buffers.', ''), tensor


def _resets_of(module: Any, is_neuron: Callable[[nn.Module], bool]) -> Iterator[Callable[[], Any]]:
    """How neurons of other libraries, and others that declare themselves, are put at rest."""
    if isinstance(getattr(module, '_memories', None), dict) or is_neuron(module):  # SpikingJelly's, snnTorch's
        for name in ('reset', 'reset_mem'):
            reset = getattr(module, name, None)
            if callable(reset) and not any(
                p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
                for p in inspect.signature(reset).parameters.values()
            ):
                yield reset


def _copy(container: Any) -> Any:
    return dict(container) if isinstance(container, dict) else list(container)


def _has(container: Any, items: Any, key: Any) -> bool:
    """Whether the container still holds this item."""
    if isinstance(items, dict):
        return key in container and container[key] is items[key]
    now = list(container)
    return key < len(now) and now[key] is items[key]


def _put_back(container: Any, items: Any) -> None:
    now = _copy(container)
    if isinstance(items, dict):
        for key in now.keys() - items.keys():
            del container[key]
        for key, value in items.items():
            if key not in now or now[key] is not value:
                container[key] = value
    elif len(now) != len(items) or any(a is not b for a, b in zip(now, items, strict=True)):
        container.clear()
        container.update(items) if isinstance(container, set) else container.extend(items)


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b)
