"""The leaky integrate-and-fire neuron over time, without state: the public ops and their checks."""

from torch import Tensor

from .backend import resolve_backend
from .neuron import Neuron, describe_neuron, membrane_dtype
from .surrogate import Surrogate

__all__ = ['check_input', 'fire', 'lif', 'lif_stream']


def lif(
    x: Tensor,
    *,
    tau: float | Tensor = 2.0,
    v_threshold: float = 1.0,
    v_reset: float | None = 0.0,
    decay_input: bool = True,
    surrogate: str | Surrogate = 'sigmoid',
    detach_reset: bool = True,
    backend: str | None = None,
) -> Tensor:
    """Leaky integrate-and-fire over time; every call starts at rest and leaves nothing behind.

    With the resting potential r = v_reset (0 for a soft reset) and v = r before the first step, at every step

        h = v + (x - (v - r)) / tau        with decay_input
        h = v - (v - r) / tau + x          without
        s = 1 where h >= v_threshold, 0 where h < v_threshold, NaN where h is NaN
        v = r where h >= v_threshold, else h        hard reset
        v = h - s * v_threshold                     soft reset (v_reset=None)

    A comparison with NaN is false, so that a neuron which only compared would answer what is no number with silence,
    and a network with a class. Here NaN stays in the membrane and goes out as the spike, from that step on. An infinite
    current is a current: the neuron fires and is reset. An infinite membrane has no gradient through its reset.

    Args:
        x: Input current.
        tau: Membrane time constant in steps, at least 1. A tensor of one element is learnable and gets a gradient; its
            value is not checked, since reading it would wait for the device. math.inf, with decay_input=False, is the
            integrate-and-fire neuron, which does not leak.
        v_threshold: In units of the membrane, which are those of x.
        v_reset: None for a soft reset.
        decay_input: Whether the current is divided by tau as well.
        surrogate: Gradient of the spike, by name or as an object with its alpha (`timm_snn.ops.surrogate`).
        detach_reset: Whether the reset is a constant in the backward pass.
        backend: By name; None leaves the choice to the switches in `timm_snn.ops.backend`.

    Shape: x [T, B, ...] -> spikes [T, B, ...] in {0, 1, NaN}, in the dtype of x. The membrane is float32 for float16
    and bfloat16 input and has the dtype of x otherwise.
    Source: MSViT, arXiv 2505.14719, Eq. 13-16; semantics of SpikingJelly's LIFNode.
    Raises: ValueError for arguments out of range; BackendUnavailable if a named backend cannot run.
    """
    neuron, learned = describe_neuron(tau, v_threshold, v_reset, decay_input, surrogate, detach_reset)
    return fire(x, learned, neuron, backend)


def lif_stream(
    x: Tensor,
    v: Tensor | None = None,
    *,
    tau: float | Tensor = 2.0,
    v_threshold: float = 1.0,
    v_reset: float | None = 0.0,
    decay_input: bool = True,
    surrogate: str | Surrogate = 'sigmoid',
    detach_reset: bool = True,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """`lif` for a stream that arrives in pieces: takes the membrane v after the last piece and returns the next one.

        spikes_1, v = lif_stream(x[:3])
        spikes_2, v = lif_stream(x[3:], v)     # together they equal lif(x)

    Shape: x [T, B, ...], v [B, ...] or None for a neuron at rest -> (spikes [T, B, ...], v [B, ...]). v has the
    membrane's dtype, see `lif`.
    """
    check_input(x)
    neuron, learned = describe_neuron(tau, v_threshold, v_reset, decay_input, surrogate, detach_reset)
    if v is not None and (v.shape != x.shape[1:] or v.dtype != membrane_dtype(x.dtype)):
        raise ValueError(
            f'lif_stream needs v {tuple(x.shape[1:])} of {membrane_dtype(x.dtype)}, got {tuple(v.shape)} of {v.dtype}: '
            'pass the v that the last call returned'
        )
    return resolve_backend(backend, x, neuron.surrogate).lif(x, v, on_device(learned, x), neuron, True)


def fire(x: Tensor, tau: Tensor | None, neuron: Neuron, backend: str | None) -> Tensor:
    """`lif` with its settings as one value, and tau if that is learned."""
    check_input(x)
    return resolve_backend(backend, x, neuron.surrogate).lif(x, None, on_device(tau, x), neuron, False)[0]


def on_device(tau: Tensor | None, x: Tensor) -> Tensor | None:
    """A learned tau where x is."""
    return tau if tau is None else tau.to(x.device)


def check_input(x: Tensor) -> None:
    """Raises ValueError for what is not a sequence of currents."""
    if x.ndim < 2 or x.shape[0] == 0 or not x.is_floating_point():
        raise ValueError(f'lif needs floating-point x [T, B, ...] with T >= 1, got {tuple(x.shape)} of {x.dtype}')
