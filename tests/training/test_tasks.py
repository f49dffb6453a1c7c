"""What a model is trained to do."""

import torch
from torch import nn

from timm_snn.training.tasks import StepLogits, StepTask


def test_tet_is_the_mean_over_steps_and_a_pull_to_the_threshold(small):
    images, labels = torch.rand(3, 1, 28, 28).double(), torch.tensor([1, 2, 3])
    task = StepTask(StepLogits(small), nn.CrossEntropyLoss(), weight=0.25)
    steps = small.forward_steps(images)
    mean = sum(nn.functional.cross_entropy(steps[:, t], labels) for t in range(4)) / 4
    result = task(images, labels)
    torch.testing.assert_close(result['loss'], 0.75 * mean + 0.25 * ((steps - 1) ** 2).mean())
    torch.testing.assert_close(result['output'], small(images))
    soft = nn.functional.one_hot(labels, 10).double()
    torch.testing.assert_close(task(images, soft)['loss'], result['loss'])
