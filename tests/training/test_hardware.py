"""Precision, as Accelerate, an option and the machine decide it."""

import pytest

from tests.support.scripts import accelerator_of_its_own
from timm_snn.training import hardware
from timm_snn.training.errors import UserError


@pytest.fixture
def precision_of(tmp_path, monkeypatch):
    """How a run with this option says what it takes, on a CPU that has or has not the instructions."""
    monkeypatch.setenv('ACCELERATE_USE_CPU', '1')

    def start(option: str | None, launched: str, has_instructions: bool) -> str:
        monkeypatch.setattr(hardware, 'multiplies_bfloat16', lambda: has_instructions)
        monkeypatch.setenv('ACCELERATE_MIXED_PRECISION', launched)
        with accelerator_of_its_own():
            accelerator = hardware.make_accelerator(tmp_path, log_with='none', seed=0, mixed_precision=option)
            return hardware.device_and_precision(accelerator)

    return start


@pytest.mark.parametrize(
    ('option', 'launched', 'has_instructions', 'precision'),
    [
        (None, 'no', True, 'cpu'),
        (None, 'bf16', False, 'cpu, bf16'),
        ('auto', 'no', True, 'cpu, bf16'),
        ('auto', 'no', False, 'cpu'),
        ('auto', 'bf16', False, 'cpu, bf16'),
        ('no', 'bf16', True, 'cpu'),
        ('bf16', 'no', False, 'cpu, bf16'),
    ],
)
def test_an_option_wins_over_what_was_launched_and_auto_asks_the_machine(
    precision_of, option, launched, has_instructions, precision
):
    assert precision_of(option, launched, has_instructions) == precision


@pytest.mark.parametrize(
    ('capabilities', 'is_faster'),
    [
        ({'cpu_name': 'AMD Zen 4', 'avx512_bf16': True, 'amx_bf16': False}, True),
        ({'cpu_name': 'Intel Xeon', 'avx512_bf16': True, 'amx_bf16': False}, False),
        ({'cpu_name': 'Intel Xeon', 'avx512_bf16': True, 'amx_bf16': True}, True),
        ({'cpu_name': 'AMD Zen 3', 'avx512_bf16': False, 'amx_bf16': False}, False),
        ({}, False),
    ],
)
def test_bfloat16_is_only_for_a_cpu_on_which_it_is_faster(monkeypatch, capabilities, is_faster):
    """AVX-512-BF16 of Intel without AMX is slower than float32, and a name alone says nothing."""
    monkeypatch.setattr(hardware.torch.cpu, 'get_capabilities', lambda: capabilities, raising=False)
    assert hardware.multiplies_bfloat16() is is_faster


def test_a_run_in_float32_hears_of_what_is_faster_where_it_is_and_nobody_chose(precision_of, capsys):
    advice = 'this CPU multiplies bfloat16: --mixed-precision auto trains'
    precision_of(None, 'no', True)
    assert advice in capsys.readouterr().err
    precision_of('no', 'no', True), precision_of(None, 'no', False), precision_of('auto', 'no', True)
    assert advice not in capsys.readouterr().err


def test_float16_on_a_cpu_is_refused(precision_of):
    with pytest.raises(UserError, match='fp16 needs a GPU: pass --mixed-precision bf16 or no'):
        precision_of('fp16', 'no', True)
