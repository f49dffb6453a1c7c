"""Which classes a model has, and which the data means."""

import pytest
import timm

import timm_snn  # noqa: F401
from timm_snn.training.labels import renew_classifier
from timm_snn.training.tables import make_table, wide_console

WEIGHTS = 'msvit_4_96.fashion_mnist'


@pytest.fixture
def model():
    return timm.create_model(WEIGHTS, pretrained=True)


def test_other_classes_of_the_same_number_get_a_new_classifier(model):
    known, before = list(model.pretrained_cfg['label_names']), model.head.fc.weight.detach().clone()
    assert renew_classifier(model, known) is None
    assert (model.head.fc.weight == before).all()
    assert 'new classifier, as the data has other classes, 10 (0, 1, 2 ...)' in renew_classifier(
        model, list('0123456789')
    )
    assert (model.head.fc.weight != before).any()
    assert 'new classifier' in renew_classifier(model, known[::-1])


def test_without_names_the_classifier_is_kept_and_that_is_said(model):
    before = model.head.fc.weight.detach().clone()
    assert 'the data does not name them' in renew_classifier(model, None)
    assert (model.head.fc.weight == before).all()


def test_another_number_of_classes_has_a_new_one_by_timm():
    assert renew_classifier(timm.create_model(WEIGHTS, pretrained=True, num_classes=3), ['a', 'b', 'c']) is None


def test_names_of_a_stranger_are_no_commands_to_a_terminal(capsys):
    wide_console().print(make_table(['name'], [['\x1b[31mcat\x07'], ['dog\nline']]))
    shown = capsys.readouterr().out
    assert '\x1b[31m' not in shown and '\x07' not in shown and '\\x1b[31mcat' in shown and 'dog\\nline' in shown
