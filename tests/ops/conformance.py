"""What a backend has to do: every case here as plain torch does it, within one table of tolerances.

`assert_matches_reference(case, backend)` makes one call of a public op and compares spikes, last membrane, running
statistics and every gradient with those of the backend 'torch' on the CPU. Spikes and membranes are equal to the bit.
With a batch norm in front the current may differ in its last bits, so its numbers are drawn until no membrane lies that
close to the threshold; spikes are then equal too.
"""

import contextlib
import functools
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from itertools import cycle, product
from typing import Any, NamedTuple

import torch
from torch import Tensor

from timm_snn.ops import bn_lif, lif, lif_stream, mssa, pool_lif
from timm_snn.ops.neuron import membrane_dtype
from timm_snn.ops.surrogate import SURROGATES

__all__ = [
    'CASES',
    'DTYPES',
    'LARGE',
    'LAYOUTS',
    'Case',
    'assert_matches_reference',
    'every_setting',
    'run',
    'seed_of',
]

HALF = (torch.float16, torch.bfloat16)
DTYPES = (torch.float32, torch.float64, *HALF)


class Tolerance(NamedTuple):
    """Of gradients and statistics; what is absolute is in units of the largest value, if that is more than 1."""

    relative: float
    absolute: float
    absolute_of_sums: float  # of terms that were rounded themselves, as in the gradient of a batch norm or of a mask


TOLERANCES = {
    torch.float64: Tolerance(1e-10, 1e-10, 1e-10),
    torch.float32: Tolerance(1e-5, 1e-5, 1e-5),
    torch.float16: Tolerance(2e-3, 1e-5, 1e-3),  # two units in the last place, and one
    torch.bfloat16: Tolerance(1.6e-2, 1e-5, 8e-3),
}
# How near to the threshold the rounding of a normalised current can move a membrane over it.
MARGINS = {torch.float64: 1e-10, torch.float32: 1e-5}


def channels_last(x: Tensor) -> Tensor:
    return x.movedim(2, -1).contiguous().movedim(-1, 2)


def shifted(x: Tensor) -> Tensor:
    """Begins one element after an aligned address."""
    return x.new_empty(x.numel() + 1)[1:].view(x.shape).copy_(x)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    'contiguous': lambda x: x,
    'channels_last': channels_last,
    'batch_first': lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    'static': lambda x: x[:1].expand_as(x),  # one image, the same memory at every step
    'shifted': shifted,
    'every_other': lambda x: x.repeat_interleave(2, -1)[..., ::2],
    'padded_steps': lambda x: torch.cat([x, x], 1)[:, : x.shape[1]],
    'tokens_of_heads': lambda x: x.movedim(-1, 2).contiguous().movedim(2, -1),  # [T, B, N, heads, D] in memory
}


@dataclass(frozen=True)
class Case:
    """One call of an op: the settings of its neuron, and what its tensors are like."""

    op: str = 'lif_stream'  # of timm_snn.ops
    dtype: torch.dtype = torch.float32
    num_steps: int = 4
    shape: tuple[int, ...] = (3, 5, 7)  # of a step
    layout: str = 'contiguous'  # in LAYOUTS
    on_grid: bool = False  # currents are multiples of 1/2, so that membranes meet the threshold exactly
    not_finite: tuple[float, ...] = ()  # the first currents of the last step but one
    upstream: str = 'dense'  # gradient of the spikes: 'dense', 'transposed' or 'constant', which has strides of 0
    grad: bool = True  # else under no_grad
    autocast: bool = False

    tau: float = 2.0
    learned: torch.dtype | None = None  # a tensor of this dtype holds tau
    learned_threshold: torch.dtype | None = None  # the same of v_threshold
    by_channel: bool = False  # what is learned differs from channel to channel
    v_threshold: float = 1.0
    v_reset: float | None = 0.0
    decay_input: bool = True
    surrogate: str = 'sigmoid'
    detach_reset: bool = True

    given_v: bool = False  # lif_stream goes on from a membrane
    outputs: tuple[str, ...] = ('spikes', 'v')  # of lif_stream, those that are differentiated

    pool: bool = False  # of bn_lif and pool_lif
    offset: bool = False
    training: bool = True  # of bn_lif
    num_queries: int = 2  # of mssa
    layout_of_keys: str = ''  # of mssa, if it is not that of its queries

    def __str__(self) -> str:
        """What differs from the defaults; the name of its test."""
        words = [self.op]
        for field in fields(self)[1:]:
            value = getattr(self, field.name)
            if value != field.default:
                words.append(f'{field.name}={value}'.replace('torch.', '').replace(' ', ''))
        return ' '.join(words)

    @property
    def rounds_the_current(self) -> bool:
        """Whether what drives the neuron is the result of arithmetic whose rounding is a backend's own."""
        return self.op == 'bn_lif' or (self.op == 'pool_lif' and self.offset)


def inputs_of(case: Case, seed: int, device: str, wide: bool) -> dict[str, Tensor]:
    """All tensors of a call; `wide` makes those of half precision float32, with the same numbers."""
    generator = torch.Generator().manual_seed(seed)
    dtype = membrane_dtype(case.dtype) if wide else case.dtype
    shape = (case.num_steps, *case.shape)

    def randn(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64)

    def whole(low: int, high: int) -> Tensor:
        return torch.randint(low, high, shape, generator=generator).double()

    def sequence(x: Tensor, layout: str = case.layout) -> Tensor:
        x[max(len(x) - 2, 0)].flatten()[: len(case.not_finite)] = torch.tensor(case.not_finite, dtype=x.dtype)
        return LAYOUTS[layout](x.to(case.dtype).to(device, dtype))

    def parameter(x: Tensor) -> Tensor:
        return x.to(device, membrane_dtype(case.dtype))

    def learned(number: float, dtype: torch.dtype) -> Tensor:
        if case.by_channel:
            return (number + 0.3 * torch.arange(case.shape[1])).to(device, dtype)
        return torch.tensor(number if dtype == torch.float32 else [number], dtype=dtype, device=device)

    inputs: dict[str, Tensor] = {}
    if case.op == 'mssa':  # sums of whole numbers are exact in any order
        inputs = {f'query {i}': sequence(whole(-2, 4)) for i in range(case.num_queries)}
        inputs['k'] = sequence(whole(-2, 4), case.layout_of_keys or case.layout)
    elif case.op == 'bn_lif':  # channels differ in mean and spread
        x = 3 * randn(*shape) + 5 * randn(case.shape[1], *[1] * (len(shape) - 3))
        inputs['x'] = sequence(x)
    else:
        inputs['x'] = sequence(whole(-4, 9) / 2 if case.on_grid else 1.5 * randn(*shape) + 0.5)
    if case.op == 'bn_lif':
        inputs['weight'] = parameter(randn(case.shape[1]) + 1.5)
        inputs['bias'] = parameter(0.3 * randn(case.shape[1]) + (-0.5 if case.pool else 1.0))
        inputs['running_mean'] = parameter(randn(case.shape[1]))
        inputs['running_var'] = parameter(9 * torch.rand(case.shape[1], generator=generator).double() + 1)
    if case.offset:
        inputs['offset'] = parameter(randn(case.shape[1]))
    if case.given_v:
        inputs['v'] = shifted(parameter(randn(*case.shape)))
    if case.learned:
        inputs['tau'] = learned(case.tau, case.learned)
    if case.learned_threshold:
        inputs['v_threshold'] = learned(case.v_threshold, case.learned_threshold)
    return inputs


def call(case: Case, inputs: dict[str, Tensor], backend: str, v_threshold: float) -> dict[str, Tensor]:
    """The op's outputs. Running statistics are updated in place."""
    how = dict(
        tau=inputs.get('tau', case.tau),
        v_threshold=inputs['v_threshold'] + (v_threshold - case.v_threshold) if case.learned_threshold else v_threshold,
        v_reset=case.v_reset,
        decay_input=case.decay_input,
        surrogate=case.surrogate,
        detach_reset=case.detach_reset,
        backend=backend,
    )
    x, offset = inputs.get('x'), inputs.get('offset')
    if case.op == 'lif':
        return {'spikes': lif(x, **how)}
    if case.op == 'lif_stream':
        return dict(zip(('spikes', 'v'), lif_stream(x, inputs.get('v'), **how), strict=True))
    if case.op == 'mssa':
        queries = [inputs[f'query {i}'] for i in range(case.num_queries)]
        return {'spikes': mssa(queries, inputs['k'], **how)}
    if case.op == 'pool_lif':
        return {'spikes': pool_lif(x, pool=case.pool, offset=offset, **how)}
    norm = [inputs[name] for name in ('weight', 'bias', 'running_mean', 'running_var')]
    return {'spikes': bn_lif(x, *norm, training=case.training, pool=case.pool, offset=offset, **how)}


def run(
    case: Case,
    backend: str,
    device: str = 'cpu',
    *,
    wide: bool = False,
    v_threshold: float | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Everything that a call gives: outputs, running statistics and the gradient of each input, by name."""
    inputs = inputs_of(case, seed, device, wide)
    running = {name: inputs[name] for name in inputs if name.startswith('running_')}
    leaves = {name: inputs[name].requires_grad_() for name in inputs if case.grad and name not in running}
    with torch.set_grad_enabled(case.grad), torch.autocast(device, torch.bfloat16, enabled=case.autocast):
        outputs = call(case, inputs, backend, v_threshold or case.v_threshold)
    results = {name: output.detach() for name, output in outputs.items()} | running
    if case.grad:
        wanted = {name: outputs[name] for name in case.outputs if name in outputs}
        upstream = [_gradient_from_above(case, name, output) for name, output in wanted.items()]
        found = torch.autograd.grad(list(wanted.values()), list(leaves.values()), upstream, allow_unused=True)
        results |= {f'gradient of {name}': grad for name, grad in zip(leaves, found, strict=True)}
    return results


def _gradient_from_above(case: Case, name: str, output: Tensor) -> Tensor:
    """The gradient that comes from above; of the membrane it is always dense."""
    generator = torch.Generator().manual_seed(len(name))
    kind = case.upstream if name == 'spikes' else 'dense'
    shape = {'dense': output.shape, 'transposed': output.shape[::-1], 'constant': ()}[kind]
    grad = torch.randn(shape, generator=generator, dtype=torch.float64).to(case.dtype).to(output.device, output.dtype)
    return grad.permute(*reversed(range(output.ndim))) if kind == 'transposed' else grad.expand(output.shape)


@functools.cache
def seed_of(case: Case) -> int:
    """The first seed whose spikes stay the same if the threshold moves by a rounding of the current."""
    if not case.rounds_the_current:
        return 0
    quiet = replace(case, grad=False, autocast=False)
    margin = MARGINS[membrane_dtype(case.dtype)]
    for seed in range(100):
        spikes = [
            run(quiet, 'torch', wide=True, v_threshold=case.v_threshold + by, seed=seed)['spikes']
            for by in (-margin, margin)
        ]
        if torch.equal(*(s.nan_to_num(-1) for s in spikes)):
            return seed
    raise ValueError(f'no seed keeps the membranes of {case} away from the threshold: take fewer neurons')


@functools.cache
def references(case: Case) -> list[dict[str, Any]]:
    """What plain torch gives. In half precision an op may round what drives its neuron, as plain torch does, or not."""
    case, seed = replace(case, autocast=False), seed_of(case)
    may_be_wide = case.dtype in HALF and case.op in ('bn_lif', 'pool_lif', 'mssa')
    return [run(case, 'torch', wide=wide, seed=seed) for wide in ([True, False] if may_be_wide else [False])]


def assert_matches_reference(case: Case, backend: str, device: str = 'cpu') -> None:
    """Raises AssertionError with the case and the output that differs."""
    ours = run(case, backend, device, seed=seed_of(case))
    ours = {name: result if result is None else result.cpu() for name, result in ours.items()}
    *others, last = references(case)
    for expected in others:
        with contextlib.suppress(AssertionError):
            return _compare(case, ours, expected)
    _compare(case, ours, last)


def _compare(case: Case, ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    spikes = theirs['spikes']
    assert spikes.numel() < 100 or 0 < spikes.count_nonzero() < spikes.numel(), f'nothing happens in {case}'
    assert ours['spikes'].dtype == case.dtype
    for name, result in ours.items():
        where, expected = f'{name} of {case}', theirs[name]
        if result is None or expected is None:  # an input without a gradient
            assert result is expected, where
        elif name in ('spikes', 'v'):
            differ = (result != expected) & ~(result.isnan() & expected.isnan())
            assert not differ.any(), f'{where}: {differ.sum()} of {differ.numel()} differ'
        else:
            # an infinity or NaN, by the order of the operations
            assert torch.equal(result.isfinite(), expected.isfinite()), f'{where}: not finite elsewhere'
            result, expected = (t.where(expected.isfinite(), 0.0) for t in (result, expected))
            sums = ('gradient' in name and not case.op.startswith('lif')) or name == 'gradient of v_threshold'
            exact = not sums and result.dtype not in HALF
            tolerance = TOLERANCES[membrane_dtype(case.dtype) if exact else case.dtype]
            absolute = tolerance.absolute_of_sums if sums else tolerance.absolute
            largest = expected.abs().max().item() if expected.numel() else 0.0
            torch.testing.assert_close(
                result,
                expected.to(case.dtype) if result.dtype == case.dtype else expected,  # of a wide reference
                rtol=tolerance.relative,
                atol=absolute * max(1.0, largest),
                msg=lambda text, where=where: f'{where}: {text}',
            )


def _formulas() -> Iterator[dict[str, Any]]:
    """Every combination of what the equations and their gradient depend on."""
    names = ('surrogate', 'v_reset', 'decay_input', 'detach_reset')
    for values in product(SURROGATES, (0.0, -0.2, None), (True, False), (True, False)):
        yield dict(zip(names, values, strict=True))


def _neurons() -> Iterator[Case]:
    """Every formula in every dtype, with the rest drawn at random."""
    draw = random.Random(0).choice
    for formula, dtype in product(_formulas(), DTYPES):
        tau, learned = draw([(2.0, None), (4.0, None), (1.7, None), (2.0, torch.float32), (1.7, torch.float64)])
        layout = draw([name for name in LAYOUTS if name != 'tokens'])
        yield Case(
            dtype=dtype,
            num_steps=draw([1, 2, 4, 8, 9, 17]),
            shape=draw([(2, 8, 4, 2), (3, 5, 7), (2, 3, 2), (1, 6), (2, 16, 5, 4)]),
            layout=layout,
            upstream=draw(['dense', 'transposed', 'constant']),
            tau=tau,
            learned=learned,
            v_threshold=draw([1.0, 0.6]),
            given_v=draw([True, False]),
            op=draw(['lif', 'lif_stream']),
            **formula,
        )


def _more_neurons() -> Iterator[Case]:
    """What a drawn case may miss."""
    smooth = dict(surrogate='erf', detach_reset=False)
    for dtype, num_steps, learned in product(DTYPES, (4, 17), (None, torch.float64)):
        yield Case(dtype=dtype, num_steps=num_steps, shape=(3, 5), tau=2.3, learned=learned, given_v=True, **smooth)
    for layout, upstream in product(LAYOUTS, ('dense', 'transposed', 'constant')):
        yield Case(num_steps=9, shape=(2, 5, 3, 3), layout=layout, upstream=upstream)
    for num_steps, *shape in [
        (1, 1), (4, 1), (4, 1, 1), (1, 31), (3, 32), (9, 5, 7, 3, 1), (2, 4097), (4, 3, 1367), (4, 3, 5003),
        (3, 0, 4), (4, 0, 5), (2, 1, 0), (9, 2, 0),
    ]:  # fmt: skip
        yield Case(num_steps=num_steps, shape=tuple(shape), tau=2.5, learned=torch.float32)
    for dtype, v_reset in product(DTYPES, (0.0, -0.5, None)):
        yield Case(dtype=dtype, num_steps=6, shape=(5, 40), on_grid=True, v_reset=v_reset)
    for dtype, v_reset in product(DTYPES, (0.0, -0.5, None)):  # without leak
        how = dict(tau=math.inf, decay_input=False, v_reset=v_reset, detach_reset=v_reset is not None)
        yield Case(dtype=dtype, num_steps=6, shape=(5, 40), given_v=True, **how)
    for outputs in (('spikes',), ('v',)):
        yield Case(shape=(3, 5), given_v=True, outputs=outputs)
    yield Case(num_steps=6, shape=(50, 70), tau=1.7)
    yield Case(op='lif', grad=False)
    for dtype, op in product((torch.float32, torch.bfloat16), ('lif', 'lif_stream')):
        yield Case(op, dtype, shape=(3, 77), autocast=True)


# Neurons of which one case each goes with a batch norm, a pooling or a mask.
_OTHER_NEURONS = [
    dict(tau=1.7, learned=torch.float32, v_reset=-0.2, decay_input=True, surrogate='sigmoid', detach_reset=True),
    dict(tau=2.0, v_reset=None, decay_input=False, surrogate='atan', detach_reset=False),
    dict(tau=1.7, v_reset=0.0, decay_input=True, surrogate='erf', detach_reset=False),
    dict(tau=2.5, learned=torch.float64, v_reset=None, decay_input=True, surrogate='piecewise_quadratic'),
    dict(tau=1.7, v_threshold=0.8, v_reset=None, decay_input=False, surrogate='atan', detach_reset=False),
    dict(tau=math.inf, v_reset=None, decay_input=False),
]


def _batch_norms() -> Iterator[Case]:
    neurons = cycle(_OTHER_NEURONS)
    image, tokens = (2, 3, 5, 6), (2, 3, 7)
    for layout, pool in product(('contiguous', 'channels_last', 'static', 'batch_first', 'every_other'), (False, True)):
        yield Case('bn_lif', num_steps=2, shape=image, layout=layout, pool=pool, **next(neurons), upstream='transposed')
    for layout, pool in product(('contiguous', 'channels_last'), (False, True)):
        yield Case('bn_lif', num_steps=9, shape=image, layout=layout, pool=pool, **next(neurons), upstream='transposed')
        yield Case('bn_lif', num_steps=2, shape=tokens, layout=layout, pool=pool, **next(neurons), upstream='constant')
    for dtype, pool in product(DTYPES, (False, True)):
        yield Case('bn_lif', dtype, num_steps=3, shape=image, pool=pool, **next(neurons))
    for dtype, pool, offset in product((torch.float32, torch.float64), (False, True), (False, True)):
        for training, grad in ((True, False), (False, True), (False, False)):
            how = dict(training=training, grad=grad, pool=pool, offset=offset)
            yield Case('bn_lif', dtype, shape=image, layout='channels_last', **how, **next(neurons))
        yield Case('bn_lif', dtype, shape=image, pool=pool, offset=True, **next(neurons))
    for dtype, pool, layout in product(HALF, (False, True), ('contiguous', 'static')):
        yield Case('bn_lif', dtype, 3, image, layout, training=False, grad=False, pool=pool, **next(neurons))
    for pool, training in product((False, True), (False, True)):
        yield Case('bn_lif', num_steps=3, shape=(0, 2, 4, 4), pool=pool, training=training)
    yield Case('bn_lif', torch.bfloat16, shape=(3, 7, 4), autocast=True)


def _poolings() -> Iterator[Case]:
    neurons = cycle(_OTHER_NEURONS)
    for layout, pool, offset, grad in product(('contiguous', 'channels_last', 'static'), *[(False, True)] * 3):
        how = dict(pool=pool, offset=offset, grad=grad)
        yield Case('pool_lif', num_steps=3, shape=(2, 3, 7, 5), layout=layout, **how, **next(neurons))
        yield Case('pool_lif', num_steps=3, shape=(2, 3, 9), layout=layout, **how, **next(neurons))
    for dtype, offset, grad in product((torch.float64, *HALF), (False, True), (False, True)):
        yield Case('pool_lif', dtype, shape=(2, 3, 5, 6), pool=True, offset=offset, grad=grad, **next(neurons))
    yield Case('pool_lif', num_steps=3, shape=(0, 2, 4, 4), pool=True, grad=False)


def _masks() -> Iterator[Case]:
    neurons = cycle(_OTHER_NEURONS)
    attention = (2, 3, 5, 7)  # B, heads, D, N
    for layout, num_queries, num_steps in product(('contiguous', 'tokens_of_heads', 'static'), (1, 2, 3), (2, 9)):
        how = dict(num_queries=num_queries, upstream='transposed', grad=num_steps == 2 or num_queries != 2)
        yield Case('mssa', num_steps=num_steps, shape=attention, layout=layout, **how, **next(neurons))
    yield Case('mssa', shape=attention, layout_of_keys='tokens_of_heads', upstream='transposed')
    for dtype in (torch.float64, *HALF):
        yield Case('mssa', dtype, shape=attention, layout_of_keys='tokens_of_heads', **next(neurons))
    for layout in ('contiguous', 'tokens_of_heads'):  # heads and images larger than a tile of a kernel
        yield Case('mssa', num_steps=2, shape=(2, 3, 130, 18), layout=layout, upstream='transposed')
    yield Case('mssa', num_steps=2, shape=(0, 3, 5, 7))


def _not_finite() -> Iterator[Case]:
    """NaN stays visible to the last step and in gradients, and an infinite current is reset as the equation says."""
    special = (math.nan, math.inf, -math.inf)
    for dtype, v_reset, num_steps in product(DTYPES, (0.0, -0.2, None), (4, 10)):
        yield Case(dtype=dtype, num_steps=num_steps, shape=(3, 40), v_reset=v_reset, not_finite=special)
    for decay_input, detach_reset, v_reset in product((False, True), (False, True), (0.0, -0.2, None)):
        how = dict(decay_input=decay_input, detach_reset=detach_reset, v_reset=v_reset, tau=1.7)
        yield Case(shape=(3, 40), not_finite=special, **how)
    for surrogate in SURROGATES:
        yield Case(shape=(3, 40), surrogate=surrogate, learned=torch.float32, not_finite=(math.nan,))
    image = (2, 3, 5, 6)
    for pool, dtype, grad in product((False, True), DTYPES, (False, True)):
        yield Case('pool_lif', dtype, shape=image, pool=pool, grad=grad, not_finite=special)
        if not (grad and dtype in HALF):  # whose rounding of the normalised current weighs as much as its gradient
            yield Case('bn_lif', dtype, shape=image, pool=pool, training=False, grad=grad, not_finite=special[:1])
    for pool, dtype in product((False, True), DTYPES):
        yield Case('bn_lif', dtype, shape=image, pool=pool, not_finite=special[:1])
    for grad in (False, True):
        yield Case('mssa', shape=(2, 3, 5, 7), grad=grad, not_finite=special[:1])


def _by_channel() -> Iterator[Case]:
    """Time constants and thresholds that are learned, for the layer or for every channel."""
    draw = random.Random(1).choice
    for op, learned, threshold, by_channel in product(
        ('lif', 'lif_stream', 'bn_lif', 'pool_lif', 'mssa'), (None, torch.float32), (None, torch.float32), (False, True)
    ):
        if not (threshold or (learned and by_channel)):
            continue
        layouts, steps = ('contiguous', 'channels_last', 'static', 'batch_first'), (4, 9, 17, 1)
        for dtype, layout, num_steps in zip(DTYPES, layouts, steps, strict=True):
            if dtype not in (torch.float32, torch.bfloat16) and not op.startswith('lif'):
                continue  # the rounding of a dtype is that of other cases
            how: dict[str, Any] = dict(learned=learned, learned_threshold=threshold, by_channel=by_channel)
            how.update(v_reset=draw([0.0, -0.2, None]), decay_input=draw([True, False]), tau=draw([2.0, 1.7]))
            how.update(surrogate=draw(list(SURROGATES)), detach_reset=draw([True, False]))
            if op == 'lif_stream':
                how.update(given_v=True)
            if op == 'pool_lif' or (op == 'bn_lif' and dtype == torch.float32):
                how.update(pool=True)
            if op in ('lif', 'lif_stream'):
                shape = draw([(3, 5, 7), (2, 5, 3, 3), (1, 7), (2, 40, 3), (2, 3, 67)])
            else:
                shape = (2, 3, 5, 7)
            yield Case(op, dtype, num_steps if op.startswith('lif') else 3, shape, layout, **how)
    yield Case(shape=(0, 3, 4), learned=torch.float32, by_channel=True)


CASES = list(
    dict.fromkeys(
        [
            *(*_neurons(), *_more_neurons(), *_batch_norms(), *_poolings(), *_masks(), *_not_finite()),
            *_by_channel(),
        ]
    )
)
LARGE = [  # sums over many positions; too slow for an interpreter
    Case('bn_lif', torch.float64, num_steps, (4, 67, 13, 14), layout, pool=pool, **neuron)
    for num_steps, layout, pool, neuron in zip(
        *zip(*product((4, 20), ('contiguous', 'channels_last'), (False, True)), strict=True),
        cycle(_OTHER_NEURONS),
        strict=False,
    )
]


def every_setting(surrogate: str, v_reset: float | None, dtype: torch.dtype) -> Iterator[Case]:
    """All that a neuron's kernels may be compiled for, of which CASES has a part: for backends that run fast."""
    for decay_input, detach_reset, num_steps, (tau, learned) in product(
        (True, False), (True, False), (1, 4, 9, 17), ((2.0, None), (1.7, None), (1.7, torch.float32))
    ):
        yield Case(
            dtype=dtype,
            num_steps=num_steps,
            shape=(3, 11),
            tau=tau,
            learned=learned,
            v_reset=v_reset,
            decay_input=decay_input,
            surrogate=surrogate,
            detach_reset=detach_reset,
            given_v=True,
        )
