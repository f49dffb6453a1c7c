"""hub/equal_terms.py: what the picture of the families shows."""

from pathlib import Path

from tests.support.scripts import load


def test_every_family_has_a_point_a_line_over_its_seeds_and_a_name_that_can_be_read():
    script = load('hub/equal_terms.py')
    accuracies = {'MSViT': ['80.00', '82.00', '81.00'], 'QKFormer': ['80.90'], 'MaxFormer': ['74.00']}
    members = [script.Small(family, Path(), 5, 2_000_000, 1, top1) for family, top1 in accuracies.items()]
    (axes,) = script.draw(members).axes
    lines = [line.get_xydata().tolist() for line in axes.lines]
    assert lines == [[[2, 80], [2, 82]], [[2, 81]], [[2, 80.9]] * 2, [[2, 80.9]], [[2, 74]] * 2, [[2, 74]]]
    assert [text.get_text() for text in axes.texts] == list(accuracies)
    assert [text.get_ha() for text in axes.texts] == ['right', 'left', 'left']
