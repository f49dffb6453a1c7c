"""Updates as a CUDA graph: recorded once, then started with one call instead of thousands."""

from collections.abc import Callable, Iterable

import torch
from accelerate import Accelerator
from torch import Tensor

from .errors import UserError
from .watch import can_defer

__all__ = ['CudaGraph', 'Replayed', 'check_graph']

Batch = tuple[Tensor, Tensor]
WARM_UP = 3  # updates before the recording, in which kernels are compiled and the optimizer makes its state


def check_graph(
    accelerator: Accelerator,
    optimizer: torch.optim.Optimizer,
    *,
    opt: str,
    compile: bool,
    grad_checkpointing: bool,
    packed_spikes: bool,
) -> None:
    """Raises: UserError, with the reason, for a run whose updates cannot be recorded."""
    for is_so, reason in (
        (accelerator.device.type != 'cuda', f'it needs a CUDA device, and this run is on {accelerator.device.type}'),
        (accelerator.num_processes > 1, 'it takes one process, for it does not record how several share gradients'),
        (accelerator.scaler is not None, 'the scaler of fp16 skips updates on the host: use --mixed-precision bf16'),
        (compile, 'recording compiled layers is not supported: leave out --compile'),
        (grad_checkpointing, '--grad-checkpointing reads random states on the host, which cannot be recorded'),
        (packed_spikes, '--packed-spikes looks at values on the host, which cannot be recorded'),
        (not can_defer(accelerator, optimizer), f'--opt {opt} cannot be recorded: use sgd, adam, adamw or muon'),
    ):
        if is_so:
            raise UserError(f'--cuda-graph: {reason}')


class CudaGraph:
    """A function without arguments, recorded; what it reads and writes keeps its place in memory."""

    def __init__(self, function: Callable[[], None]) -> None:
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            function()

    def replay(self) -> None:
        self._graph.replay()


class Replayed:
    """A function that makes an update by some batches, recorded after a few calls and replayed from then on.

    The calls before run on a stream of their own, as recording wants; they are updates like all others. The learning
    rates are read from the optimizer at every call. Raises: UserError if the shape of the batches changes without
    `forget`.
    """

    def __init__(self, function: Callable[[Iterable[Batch]], None], optimizer: torch.optim.Optimizer) -> None:
        self.function, self.optimizer = function, optimizer
        self._calls = 0
        self._graph: CudaGraph | None = None
        self._batches: list[Batch] = []
        device = optimizer.param_groups[0]['params'][0].device
        self._rates = [torch.zeros((), device=device) for _ in optimizer.param_groups]
        self._stream = torch.cuda.Stream(device) if device.type == 'cuda' else None

    def forget(self) -> None:
        """Record anew, after some calls, for other shapes or another T."""
        self._calls, self._graph, self._batches = 0, None, []

    def __call__(self, batches: Iterable[Batch]) -> None:
        self._calls += 1
        if self._calls <= WARM_UP:
            self._on_own_stream(batches)
            return
        if self._graph is None:
            self._batches = [(images.clone(), targets.clone()) for images, targets in batches]
            self._set_rates()
            self._graph = self._recorded()
        else:
            self._set_rates()
            for kept, batch in zip(self._batches, batches, strict=True):
                for to, tensor in zip(kept, batch, strict=True):
                    if to.shape != tensor.shape or to.dtype != tensor.dtype:
                        raise UserError(
                            f'--cuda-graph: recorded with a batch of {list(to.shape)}, {to.dtype}, and now one of '
                            f'{list(tensor.shape)}, {tensor.dtype} came: the graph takes no other; run without it'
                        )
                    to.copy_(tensor)
        self._graph.replay()

    def _on_own_stream(self, batches: Iterable[Batch]) -> None:
        if self._stream is None:
            self.function(batches)
            return
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            self.function(batches)
        current.wait_stream(self._stream)

    def _set_rates(self) -> None:
        for rate, group in zip(self._rates, self.optimizer.param_groups, strict=True):
            rate.fill_(group['lr'])

    def _recorded(self) -> CudaGraph:
        """The graph, which reads the rates from tensors: a number would be recorded as it is now."""
        groups = self.optimizer.param_groups
        before = [dict(group) for group in groups]
        for group, rate in zip(groups, self._rates, strict=True):
            group.update(lr=rate, capturable=True)
        try:
            return CudaGraph(lambda: self.function(self._batches))
        finally:
            for group, settings in zip(groups, before, strict=True):
                group.clear()
                group.update(settings)
