"""The leaky integrate-and-fire neuron over time, without state: the public ops and their checks."""

from torch import Tensor

from .backend import resolve_backend
from .neuron import Learned, Neuron, by_channel, describe_neuron, membrane_dtype
from .surrogate import Surrogate

__all__ = ['check_input', 'fire', 'fire_on', 'lif', 'lif_stream', 'scaled']


def lif(
    x: Tensor,
    *,
    tau: float | Tensor = 2.0,
    v_threshold: float | Tensor = 1.0,
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
        tau: Membrane time constant in steps, at least 1. math.inf, with decay_input=False, is the integrate-and-fire
            neuron, which does not leak. A tensor of one element, or of C for the channels of x [T, B, C, ...], is
            learnable and gets a gradient; its values are not checked, since reading them would wait for the device.
        v_threshold: In units of the membrane, which are those of x. A tensor, of one element or C, is learnable as tau
            is. Its distance from r must be positive: x is divided by that, and so is v - r in what goes on inside,
            which is another unit for the same spikes. The surrogate is then taken of (h - r) / (v_threshold - r) - 1,
            in units of the threshold; that of a number, and of snnTorch's `learn_threshold`, is of h - v_threshold.
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
    return fire(x, neuron, learned, backend)


def lif_stream(
    x: Tensor,
    v: Tensor | None = None,
    *,
    tau: float | Tensor = 2.0,
    v_threshold: float | Tensor = 1.0,
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
    membrane's dtype, see `lif`. With a learned threshold the two differ in their last bits: v is in units of x, and is
    converted to those of the threshold and back.
    """
    neuron, learned = describe_neuron(tau, v_threshold, v_reset, decay_input, surrogate, detach_reset)
    return fire_on(x, v, neuron, learned, backend)


def fire_on(
    x: Tensor, v: Tensor | None, neuron: Neuron, learned: Learned, backend: str | None
) -> tuple[Tensor, Tensor]:
    """`lif_stream` with its settings as values."""
    check_input(x)
    learned = learned.of(x)
    if v is not None and (v.shape != x.shape[1:] or v.dtype != membrane_dtype(x.dtype)):
        raise ValueError(
            f'lif_stream needs v {tuple(x.shape[1:])} of {membrane_dtype(x.dtype)}, got {tuple(v.shape)} of {v.dtype}: '
            'pass the v that the last call returned'
        )
    run = resolve_backend(backend, x, neuron).lif
    if learned.scale is None:
        return run(x, v, learned.tau, neuron, True)
    scale, v_rest = by_channel(learned.scale, x.ndim - 1), neuron.v_rest
    v = None if v is None else v_rest + ((v - v_rest) / scale).to(v.dtype)
    spikes, v = run(scaled(x, learned), v, learned.tau, neuron, True)
    return spikes, v_rest + ((v - v_rest) * scale).to(v.dtype)


def fire(x: Tensor, neuron: Neuron, learned: Learned, backend: str | None) -> Tensor:
    """`lif` with its settings as values."""
    check_input(x)
    learned = learned.of(x)
    run = resolve_backend(backend, x, neuron).lif
    return run(scaled(x, learned), None, learned.tau, neuron, False)[0]


def scaled(x: Tensor, learned: Learned) -> Tensor:
    """The current x [T, B, C, ...] in units in which the threshold is the neuron's number."""
    return x if learned.scale is None else (x / by_channel(learned.scale, x.ndim - 1)).to(x.dtype)


def check_input(x: Tensor) -> None:
    """Raises ValueError for what is not a sequence of currents."""
    if x.ndim < 2 or x.shape[0] == 0 or not x.is_floating_point():
        raise ValueError(f'lif needs floating-point x [T, B, ...] with T >= 1, got {tuple(x.shape)} of {x.dtype}')
