"""The loss of a segmenter, and what is measured of its answers."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from timm_snn.training.errors import UserError
from timm_snn.training.segmentation import SegmentationLearner, SegmentationMetric, class_weights

NAMES = ['sky', 'road', 'tree', 'car']


def logits_for(labels, number=4):
    return 5 * F.one_hot(labels, number).movedim(-1, -3).float()


def test_the_mean_iou_leaves_out_what_is_ignored_and_what_is_nowhere():
    """Road is half right, a tree is predicted that is in no mask, and there are no cars."""
    truth = torch.tensor([[0, 0, 1, 1], [0, 0, 9, 9]])
    found = torch.tensor([[0, 0, 1, 2], [0, 0, 3, 3]])
    metric = SegmentationMetric(NAMES, ignore_index=9)
    metric.update(logits_for(found)[None], truth[None])
    measured = metric.compute()
    assert measured['mean_iou'] == pytest.approx(100 * (1 + 0.5 + 0) / 3, rel=1e-6)
    assert measured['pixel_accuracy'] == pytest.approx(100 * 5 / 6, rel=1e-6)
    assert [row['iou'] for row in metric.by_class] == [100.0, 50.0, 0.0, None]
    assert [row['name'] for row in metric.by_class] == NAMES


def test_masks_are_measured_at_their_own_size_and_all_pixels_count_alike():
    """In batches or one by one, pictures of one size or of several."""
    torch.manual_seed(0)
    logits = [torch.randn(4, 5, 6), torch.randn(4, 8, 8)]
    masks = [torch.randint(0, 5, (10, 12)), torch.randint(0, 5, (8, 8))]
    metric = SegmentationMetric(NAMES, ignore_index=4)
    metric.update(logits, masks)
    crossed, losses = torch.zeros(4, 4), []
    for answer, mask in zip(logits, masks, strict=True):
        large = F.interpolate(answer[None], size=mask.shape, mode='bilinear')
        losses.append(F.cross_entropy(large, mask[None], ignore_index=4, reduction='none')[mask[None] != 4])
        crossed.index_put_((mask[mask != 4], large.argmax(1)[0][mask != 4]), torch.tensor(1.0), accumulate=True)
    ious = crossed.diag() / (crossed.sum(0) + crossed.sum(1) - crossed.diag())
    measured = metric.compute()
    assert measured['mean_iou'] == pytest.approx(100 * ious.mean().item(), rel=1e-5)
    assert measured['loss'] == pytest.approx(torch.cat(losses).mean().item(), rel=1e-5)


def test_an_ignored_label_may_be_that_of_a_class():
    metric = SegmentationMetric(NAMES, ignore_index=0)
    labels = torch.tensor([[0, 1], [1, 1]])
    metric.update(logits_for(torch.tensor([[1, 1], [1, 2]]))[None], labels[None])
    assert metric.compute()['mean_iou'] == pytest.approx(100 * (2 / 3 + 0) / 2, rel=1e-6)
    assert metric.by_class[0]['iou'] is None


@pytest.mark.parametrize('dice', [0.0, 0.5])
def test_the_loss_is_of_the_pixels_that_count(dice):
    torch.manual_seed(0)
    learner = SegmentationLearner(nn.Conv2d(3, 4, 1), ignore_index=255, dice=dice).train()
    images, masks = torch.randn(2, 3, 4, 4), torch.randint(0, 4, (2, 4, 4))
    losses = learner(images, masks)
    torch.testing.assert_close(losses['cross_entropy'], F.cross_entropy(learner.model(images), masks))
    assert list(losses) == (['cross_entropy', 'dice'] if dice else ['cross_entropy'])
    nothing = learner(images, torch.full_like(masks, 255))
    total = sum(nothing.values())
    total.backward()
    assert total.isfinite() and all(parameter.grad.isfinite().all() for parameter in learner.parameters())
    right = learner.model(images).argmax(1)
    assert sum(learner(images, right).values()) < sum(losses.values())


def test_pictures_of_several_sizes_are_answered_one_by_one_and_not_trained_on():
    learner = SegmentationLearner(nn.Conv2d(3, 4, 1), ignore_index=255)
    images = [torch.randn(3, 4, 4), torch.randn(3, 6, 5)]
    answers = learner.eval()(images)
    assert [tuple(answer.shape) for answer in answers] == [(4, 4, 4), (4, 6, 5)]
    torch.testing.assert_close(learner(torch.stack([images[0]] * 2))[1], answers[0])
    with pytest.raises(UserError, match='of several sizes: pass --crop-size H W'):
        learner.train()(images, images)


def test_rare_classes_weigh_more_in_the_loss():
    masks = [torch.tensor([[0, 0, 0, 0, 1, 1, 2, 255]]), torch.tensor([[0, 0, 0, 0]])]
    weights = class_weights(masks, 4, 255, 1.0)
    assert weights.tolist() == [2 / 8, 1.0, 2.0, 2.0]  # the last is in no mask
    assert class_weights(masks, 4, 255, 0.5).tolist() == pytest.approx(weights.sqrt().tolist())
    assert class_weights([torch.tensor([255])], 2, 255, 1.0).tolist() == [1.0, 1.0]
    torch.manual_seed(0)
    learner = SegmentationLearner(nn.Conv2d(3, 4, 1), ignore_index=255, weights=weights).train()
    images, labels = torch.randn(1, 3, 1, 8), masks[0][None]
    expected = F.cross_entropy(learner.model(images), labels, weights, ignore_index=255)
    torch.testing.assert_close(learner(images, labels)['cross_entropy'], expected)
    assert not [name for name in learner.state_dict() if 'weights' in name]
