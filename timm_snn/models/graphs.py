"""CUDA graphs of a model for inference: one for each size of the input, captured when that size first comes."""

import threading
import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..ops.backend import asked_for
from ..ops.switches import is_exporting, switches

__all__ = ['GraphedMethod', 'use_graphs']

_MOST = 8  # graphs of one method; of more sizes, that which was used longest ago is captured anew
_WARM_UP = 3  # passes before a capture, which compile kernels and choose algorithms


def use_graphs(model: nn.Module) -> None:
    """Let the model replay graphs of what it has of `forward` and `forward_steps`. Raises: ValueError without CUDA."""
    if devices := {str(x.device) for x in (*model.parameters(), *model.buffers()) if not _is_on_gpu(x)}:
        raise ValueError(
            f'fuse(cuda_graphs=True) needs all of a model on a CUDA device, got {type(model).__name__} on '
            f'{", ".join(sorted(devices))}: call model.cuda() first, or leave cuda_graphs out'
        )
    for name in ('forward', 'forward_steps'):
        if hasattr(model, name):
            setattr(model, name, GraphedMethod(model, name))


class GraphedMethod:
    """Stands for a method of a model, on that model itself, and replays a CUDA graph of it where that is the same.

    The method runs as it is for what no graph holds: gradients, training mode, hooks and other watchers, exports,
    torch.compile, a capture of the user's own, arguments other than one tensor on a CUDA device.

    Graphs read the weights where they lie, so a change in place counts; for weights that have moved, and for another
    size, layout, dtype, `num_steps`, backend or autocast, another graph is captured. Calls from several threads and
    streams take turns, since all graphs share their memory. A copy or a pickle of the model begins without graphs.
    """

    def __init__(self, model: nn.Module, name: str) -> None:
        self._model, self._name = weakref.ref(model), name  # a cycle would keep graphs of a deleted model in memory
        self._graphs: dict[tuple, _Graph] = {}  # in the order of their last use
        self._lock = threading.Lock()
        self._pool: Any = None
        self._done: Any = None  # an event at the end of the last replay

    def __getstate__(self) -> dict[str, Any]:
        return {'model': self._model(), 'name': self._name}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    @property
    def __wrapped__(self) -> Any:
        """The method of the class, whose signature `inspect` takes for ours."""
        model = self._model()
        return getattr(type(model), self._name).__get__(model)

    @property
    def __code__(self) -> Any:
        return self.__wrapped__.__code__  # torch.export looks at it

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        key = None if kwargs or len(args) != 1 else _key(self._model(), *args)
        return self.__wrapped__(*args, **kwargs) if key is None else self._replay(key, *args)

    def _replay(self, key: tuple, x: Tensor) -> Any:
        with self._lock, torch.cuda.device(x.device):
            stream = torch.cuda.current_stream()
            if self._done is None:
                self._pool = torch.cuda.graph_pool_handle()
            else:
                stream.wait_event(self._done)
            graph = self._graphs.pop(key, None)
            if graph is None:
                if len(self._graphs) == _MOST:
                    torch.cuda.synchronize()  # the oldest may be running
                    del self._graphs[next(iter(self._graphs))]
                graph = _Graph(self.__wrapped__, x, self._pool)
            self._graphs[key] = graph
            output = graph.replay(x)
            self._done = stream.record_event()
        return output


class _Graph:
    """A captured pass, with the input that it reads and the output that it writes.

    Raises: RuntimeError if it cannot be captured.
    """

    def __init__(self, method: Any, x: Tensor, pool: Any) -> None:
        precision: dict[str, Any] = dict(
            dtype=torch.get_autocast_dtype('cuda'), enabled=torch.is_autocast_enabled('cuda')
        )
        # a cast of a weight that autocast keeps is gone at the end of its block
        with torch.inference_mode(False), torch.no_grad(), torch.autocast('cuda', cache_enabled=False, **precision):
            self._input = x.clone()
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(_WARM_UP):
                    method(self._input)
            torch.cuda.current_stream().wait_stream(side)
            self._graph = torch.cuda.CUDAGraph()
            try:
                # other threads, such as one that pins memory, may go on
                with torch.cuda.graph(self._graph, pool=pool, capture_error_mode='thread_local'):
                    self._output = method(self._input)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                raise RuntimeError(
                    f'cannot capture a CUDA graph for input of shape {tuple(x.shape)}: a layer may read numbers from '
                    'the device in between, which a graph cannot; fuse the model without cuda_graphs'
                ) from error

    def replay(self, x: Tensor) -> Any:
        self._input.copy_(x)
        self._graph.replay()
        return _cloned(self._output)


def _key(model: Any, x: Any) -> tuple | None:
    """All that a graph is captured for; None where a graph must not stand for the model."""
    if torch.compiler.is_compiling() or is_exporting() or type(x) is not Tensor or not _is_on_gpu(x) or x.numel() == 0:
        return None
    needs_gradient = torch.is_grad_enabled()
    if switches().watch or (needs_gradient and x.requires_grad) or torch.cuda.is_current_stream_capturing():
        return None
    steps, weights = [], []
    for module in _modules(model):
        if module.training or module._forward_hooks or module._forward_pre_hooks:
            return None
        steps.append(vars(module).get('num_steps'))
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            if tensor is not None:
                if needs_gradient and tensor.requires_grad:
                    return None
                weights.append((tensor.data_ptr(), tensor.dtype))
    autocast = torch.is_autocast_enabled('cuda') and torch.get_autocast_dtype('cuda')
    return x.device, x.shape, x.stride(), x.dtype, autocast, asked_for(None)[0], tuple(steps), tuple(weights)


def _modules(model: nn.Module) -> Iterator[Any]:
    """Those of `model.modules()` in some order, several times as fast: it is done before every pass."""
    found: list[Any] = [model]
    while found:
        module = found.pop()
        yield module
        found += [child for child in module._modules.values() if child is not None]


def _is_on_gpu(x: Tensor) -> bool:
    return x.is_cuda


def _cloned(output: Any) -> Any:
    """A tensor, or a list or tuple of such, for the caller to keep."""
    if isinstance(output, Tensor):
        return output.clone()
    return type(output)(_cloned(item) for item in output)
