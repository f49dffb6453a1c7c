"""What becomes of labelled samples."""

import signal

import pytest
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

from timm_snn.training.data import Samples
from timm_snn.training.evaluation import check_labels, evaluate, mean_metrics, running_logits
from timm_snn.training.progress import StopSignal


def test_early_exit_is_the_model_with_fewer_steps_in_float64(small):
    """For images, which are shown t times, and for event frames, of which the first t are."""
    for shape in ((3, 1, 28, 28), (3, 4, 1, 20, 28)):
        x = torch.rand(shape, dtype=torch.float64)
        small.num_steps = 4
        running = running_logits(small, x)
        assert running.shape == (3, 4, 10) and running.dtype == torch.float64
        for t in (1, 2, 3, 4):
            small.num_steps = t
            expected = small(x if x.ndim == 4 else x[:, :t])
            torch.testing.assert_close(running[:, t - 1], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ('labels', 'message'),
    [
        (torch.tensor([0, 3]), 'labels must be 0 to 2, as the model has 3 classes, got 3'),
        (torch.tensor([-1, 0]), 'got -1: it is for other classes, or the split has no labels'),
        (torch.tensor([[0, 1, 1]]), 'labels must be whole numbers, one a sample'),
        (torch.tensor([0.5]), 'labels must be whole numbers'),
        (['cat', 'dog'], r"whole numbers, one a sample, got \['cat', 'dog'\]: --target-key names their column"),
    ],
)
def test_labels_that_are_not_classes_are_refused(labels, message):
    with pytest.raises(ValueError, match=message):
        check_labels(labels, 3)


def test_logits_that_are_not_finite_are_refused():
    model = torch.nn.Linear(2, 3)
    model.num_classes = 3
    with pytest.raises(ValueError, match='sample 0 has pixels that are not finite'):
        evaluate(model, [(torch.full((1, 2), float('inf')), torch.tensor([0]))])


@pytest.mark.parametrize('pixel', [float('nan'), float('inf'), 1e38])
def test_the_sample_without_a_finite_answer_is_named(pixel):
    pixels = torch.rand(7, 2)
    pixels[5] = pixel
    samples = Samples([(pixel, 0) for pixel in pixels], range(7))
    model = torch.nn.Linear(2, 3)
    torch.nn.init.constant_(model.weight, 100.0)  # 1e38 overflows
    model.num_classes = 3
    what = 'gets an answer of the model that is' if pixel == 1e38 else 'has pixels that are'
    with pytest.raises(ValueError, match=f'sample 5 {what} not finite'):
        evaluate(model, DataLoader(samples, 3))
    accelerator, stop = Accelerator(cpu=True), StopSignal()
    assert mean_metrics(model, accelerator.prepare(DataLoader(samples, 3)), accelerator, stop) == {}
    assert f'sample 5 {what} not finite' in str(stop.unreadable) and stop.came_to(accelerator)


@pytest.mark.parametrize('is_silent', [True, False])
def test_a_network_that_answers_every_sample_alike_is_said_to_be(is_silent, caplog):
    accelerator, learner = Accelerator(cpu=True), torch.nn.Linear(2, 3)
    torch.nn.init.constant_(learner.weight, 0.0 if is_silent else 1.0)
    batches = [(torch.rand(4, 2), torch.tensor([0, 1, 2, 0])) for _ in range(2)]
    before = signal.getsignal(signal.SIGTERM)
    try:
        mean_metrics(learner, accelerator.prepare(DataLoader(Batches(batches), None)), accelerator, StopSignal())
    finally:
        signal.signal(signal.SIGTERM, before)
    assert ('gives the same answer to every sample' in caplog.text) == is_silent


class Batches(torch.utils.data.Dataset):
    def __init__(self, batches):
        self.batches = batches

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, index):
        return self.batches[index]
