"""Surrogate gradients: what replaces the derivative of the spike, which is a step.

A neuron fires when its membrane h reaches the threshold. The forward pass keeps that step; the backward pass uses the
derivative of a smooth curve through it, the *primitive*. Shapes and default sharpness follow SpikingJelly, so that
training settings carry over.

| name                | primitive                       | derivative                              | default alpha |
|---------------------|---------------------------------|-----------------------------------------|---------------|
| sigmoid             | p = sigmoid(alpha x)            | alpha p (1 - p)                         | 4             |
| atan                | atan(pi/2 alpha x)/pi + 1/2     | alpha/2 / (1 + (pi/2 alpha x)^2)        | 2             |
| piecewise_quadratic | a parabola on |x| < 1/alpha     | alpha - alpha^2 |x|, 0 outside          | 1             |
| erf                 | (1 + erf(alpha x))/2            | alpha/sqrt(pi) exp(-(alpha x)^2)        | 2             |

`make_surrogate` makes one of another shape, and `spike` is the step with any of them, for neurons of one's own.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

__all__ = ['ATan', 'Erf', 'PiecewiseQuadratic', 'Sigmoid', 'Surrogate', 'get_surrogate', 'make_surrogate', 'spike']


@dataclass(frozen=True)
class Surrogate:
    """A smooth stand-in for the step at x = h - v_threshold; larger `alpha` is sharper.

    A subclass is one shape: it has a `name`, a default for alpha, the two methods, and no other fields.
    Raises: ValueError if alpha is not positive.
    """

    alpha: float
    name: ClassVar[str]

    def __post_init__(self) -> None:
        if not self.alpha > 0:
            raise ValueError(f'{type(self).__name__} needs alpha > 0, got {self.alpha}')

    def primitive(self, x: Tensor) -> Tensor:
        """The smooth curve itself, from 0 to 1; only tests and pictures need it."""
        raise NotImplementedError

    def derivative(self, x: Tensor) -> Tensor:
        """Its derivative, which the backward pass multiplies with."""
        raise NotImplementedError


@dataclass(frozen=True)
class Sigmoid(Surrogate):
    """Logistic curve; the default of the Spikformer line of models."""

    alpha: float = 4.0
    name: ClassVar[str] = 'sigmoid'

    def primitive(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.alpha * x)

    def derivative(self, x: Tensor) -> Tensor:
        p = torch.sigmoid(self.alpha * x)
        return self.alpha * p * (1 - p)


@dataclass(frozen=True)
class ATan(Surrogate):
    """Arc tangent, with heavier tails than the sigmoid."""

    alpha: float = 2.0
    name: ClassVar[str] = 'atan'

    def primitive(self, x: Tensor) -> Tensor:
        return torch.atan(math.pi / 2 * self.alpha * x) / math.pi + 0.5

    def derivative(self, x: Tensor) -> Tensor:
        return self.alpha / 2 / (1 + (math.pi / 2 * self.alpha * x).square())


@dataclass(frozen=True)
class PiecewiseQuadratic(Surrogate):
    """A triangle as derivative: no gradient further than 1/alpha from the threshold."""

    alpha: float = 1.0
    name: ClassVar[str] = 'piecewise_quadratic'

    def primitive(self, x: Tensor) -> Tensor:
        x = x.clamp(-1 / self.alpha, 1 / self.alpha)
        return -(self.alpha**2) / 2 * x.abs() * x + self.alpha * x + 0.5

    def derivative(self, x: Tensor) -> Tensor:
        return (self.alpha - self.alpha**2 * x.abs()).clamp(min=0)


@dataclass(frozen=True)
class Erf(Surrogate):
    """Gaussian as derivative."""

    alpha: float = 2.0
    name: ClassVar[str] = 'erf'

    def primitive(self, x: Tensor) -> Tensor:
        return (1 + torch.erf(self.alpha * x)) / 2

    def derivative(self, x: Tensor) -> Tensor:
        return self.alpha / math.sqrt(math.pi) * torch.exp(-(self.alpha * x).square())


SURROGATES: dict[str, type[Surrogate]] = {cls.name: cls for cls in (Sigmoid, ATan, PiecewiseQuadratic, Erf)}
_OWN: dict[str, type[Surrogate]] = {}  # of `make_surrogate`

Curve = Callable[[Tensor], Tensor]


def make_surrogate(name: str, derivative: Curve, primitive: Curve | None = None, alpha: float = 1.0) -> type[Surrogate]:
    """A surrogate of one's own, from the functions that are its derivative and its primitive at alpha = 1.

        Rectangle = make_surrogate('rectangle', lambda x: (x.abs() < 0.5).to(x.dtype), lambda x: (x + 0.5).clamp(0, 1))
        timm_snn.lif(x, surrogate=Rectangle(alpha=2.0))
        timm.create_model('msvit_4_96', lif_layer=partial(LIF, surrogate='rectangle'))

    A larger alpha makes it sharper: p(alpha x) is the primitive then, and alpha p'(alpha x) the derivative. Until the
    process ends the name stands for it, with the `alpha` given here; a second call with the name replaces it. It runs
    on the backends 'torch' and 'compile', which 'auto' takes for it, and the others refuse it. It can be pickled for a
    process that makes it too. Training needs the derivative alone; `primitive` is for pictures and tests.

    Raises: ValueError for a name of the table above, or functions that do not map a tensor to one of its shape and
    dtype.
    """
    if not isinstance(name, str) or name in SURROGATES or not name.isidentifier():
        raise ValueError(
            f'a surrogate of your own is named by an identifier other than {sorted(SURROGATES)}, got {name!r}'
        )
    points = torch.linspace(-2, 2, 5, dtype=torch.float64)
    for function in filter(None, (derivative, primitive)):
        y = function(points)
        if not isinstance(y, Tensor) or (y.shape, y.dtype) != (points.shape, points.dtype):
            got = f'{tuple(y.shape)} of {y.dtype}' if isinstance(y, Tensor) else repr(y)
            raise ValueError(
                f'the functions of surrogate {name!r} must map x to a tensor of its shape and dtype, as y.to(x.dtype): '
                f'expected (5,) of torch.float64, got {got}'
            )
    default = alpha

    @dataclass(frozen=True)
    class Own(Surrogate):
        alpha: float = default

        def primitive(self, x: Tensor) -> Tensor:
            return super().primitive(x) if primitive is None else primitive(self.alpha * x)

        def derivative(self, x: Tensor) -> Tensor:
            return self.alpha * derivative(self.alpha * x)

        def __deepcopy__(self, memo: dict[int, Any]) -> 'Own':
            return self  # which a name that was replaced would not find

        def __reduce__(self) -> tuple[Any, ...]:
            return _restore, (self.name, self.alpha)

    Own.name = Own.__name__ = Own.__qualname__ = name
    Own()  # checks alpha
    _OWN[name] = Own
    return Own


def _restore(name: str, alpha: float) -> Surrogate:
    """A surrogate of `make_surrogate` that was pickled."""
    return type(get_surrogate(name))(alpha)


def get_surrogate(surrogate: str | Surrogate) -> Surrogate:
    """A surrogate by name, 'atan' with its default alpha or 'atan:3.0' with another; a `Surrogate` as it is.

    Raises: ValueError for a name that is not in the table above, nor of `make_surrogate`, or an alpha that is not a
    positive number.
    """
    if isinstance(surrogate, Surrogate):
        return surrogate
    name, colon, alpha = surrogate.partition(':') if isinstance(surrogate, str) else ('', '', '')
    shape: Any = SURROGATES.get(name) or _OWN.get(name)  # all have a default alpha
    if shape is None:
        raise ValueError(
            f'unknown surrogate {surrogate!r}: use one of {sorted([*SURROGATES, *_OWN])}, perhaps with an alpha, as '
            "'atan:3.0', a Surrogate object, or one of timm_snn.ops.make_surrogate"
        )
    try:
        return shape(float(alpha)) if colon else shape()
    except ValueError as error:
        raise ValueError(f"surrogate {surrogate!r} needs a number above 0 after its colon, as 'atan:3.0'") from error


def name_surrogate(surrogate: Surrogate) -> str | Surrogate:
    """The inverse of `get_surrogate`; one that has no name there is returned as it is."""
    shape: Any = SURROGATES.get(surrogate.name) or _OWN.get(surrogate.name)
    has_name = type(surrogate) is shape
    if not has_name:
        return surrogate
    return surrogate.name if surrogate == shape() else f'{surrogate.name}:{surrogate.alpha}'


def is_known(surrogate: Surrogate) -> bool:
    """Whether it is of the table above, and not a user's own."""
    return SURROGATES.get(surrogate.name) is type(surrogate)


class _Spike(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, surrogate: Surrogate) -> Tensor:
        # Ties fire and NaN stays. Any negative x, the smallest too, brings the sum below 1. Arithmetic is several
        # times as fast on a CPU as a comparison, a cast and a choice.
        one = torch.ones((), dtype=x.dtype, device=x.device)
        return torch.add(one, x, alpha=torch.finfo(x.dtype).max).clamp_(0, 1).floor_()

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        x, ctx.surrogate = inputs
        ctx.save_for_backward(x)

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad * ctx.surrogate.derivative(x), None


def spike(x: Tensor, surrogate: str | Surrogate = 'sigmoid') -> Tensor:
    """Heaviside step with the gradient of a surrogate: what a neuron of one's own fires with.

        s = spike(h - v_threshold, 'atan')

    1 where x >= 0, 0 where x < 0, NaN where x is, in the dtype of x; the gradient is `surrogate.derivative(x)`. That is
    differentiable in turn, so that second derivatives are those of the surrogate, which is 0 almost everywhere for
    shapes that are made of straight lines. It runs under torch.func, torch.compile and in exports, on any device.

    Shape: x [...] -> the same. There is no time and no state.
    Raises: ValueError for an unknown surrogate or x that is not floating-point.
    """
    if not x.is_floating_point():
        raise ValueError(f'spike needs floating-point x, got {x.dtype}')
    return _Spike.apply(x, as_constant(get_surrogate(surrogate)))


def as_constant(surrogate: Surrogate) -> Surrogate:
    """The same, with an alpha that is a constant to torch.compile."""
    return type(surrogate)(constant(surrogate.alpha)) if torch.compiler.is_compiling() else surrogate


def constant(value: float) -> float:
    """The same, as a constant to torch.compile.

    It makes a symbol of a float that changed, or of any with dynamic=True, and autograd functions cannot be traced
    through a symbol. A string is a constant.
    """
    return float.fromhex(float(value).hex()) if torch.compiler.is_compiling() else value
