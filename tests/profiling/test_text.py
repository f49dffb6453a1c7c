"""Tables for terminals and model cards show every number's notice."""

import io
import re

import pytest

from timm_snn.profiling import CONVENTIONS, NOTICE
from timm_snn.profiling.style import styled
from timm_snn.profiling.text import significant


def test_markdown_is_a_card_with_two_tables(reports):
    text = reports[0].to_markdown()
    assert reports[0]._repr_markdown_() == text  # in a notebook
    assert len(repr(reports[0]).splitlines()) == 1 and reports[0].describe() in repr(reports[0])
    assert NOTICE in text and '3 images of 1 x 28 x 28, T = 4, top-1' in text and text == str(reports[0])
    tables = re.findall(r'(?:^\|.*\|\n)+', text, re.M)
    assert len(tables) == 2
    for table in tables:
        assert len({line.count('|') for line in table.splitlines()}) == 1
    assert all(f'\n| {name} |' in text for name in (*CONVENTIONS, 'ANN twin', 'stages.2', 'total'))


def test_the_terminal_table_shows_every_layer(reports):
    console = pytest.importorskip('rich.console')
    file = io.StringIO()
    console.Console(file=file, width=240).print(reports[0].table())
    text = file.getvalue()
    assert all(layer.name in text for layer in reports[0].layers) and text.count(NOTICE) >= 2


def test_a_missing_library_says_what_to_install(reports, monkeypatch):
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"needs rich: pip install 'timm-snn\[profile\]'"):
        reports[0].table()
    with pytest.raises(ModuleNotFoundError, match='needs matplotlib'), styled():
        pass
    assert reports[0].to_html().startswith('<!DOCTYPE html>')  # which needs neither


@pytest.mark.parametrize(
    ('number', 'digits', 'text'),
    [
        *((0, 3, '0'), (0.07, 3, '0.0700'), (0.0000193, 2, '0.000019'), (4.4621e-6, 3, '4.46e-06')),
        *((123.456, 3, '123'), (1234.56, 3, '1235'), (-0.5, 2, '-0.50')),
    ],
)
def test_numbers_keep_so_many_digits(number, digits, text):
    assert significant(number, digits) == text
