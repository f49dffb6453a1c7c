"""Stems and patch embeddings."""

import pytest
import torch

from timm_snn.layers import SpikingPatchEmbed, SpikingStem


@pytest.mark.parametrize('size', [(1, 1), (1, 6), (7, 4), (9, 9)])
@pytest.mark.parametrize('pools', [(False,), (True, False), (False, True), (True, True)])
def test_both_branches_of_the_patch_embedding_meet_at_any_size(size, pools):
    embed = SpikingPatchEmbed(3, (4,) * len(pools), pools)
    y = embed(torch.rand(2, 1, 3, *size))
    assert y.shape[3:] == tuple(-(-side // 2 ** sum(pools)) for side in size)


def test_the_stem_computes_the_current_of_an_image_once():
    stem = SpikingStem(3, (4, 8), (True, False)).eval()
    image = torch.rand(1, 2, 3, 9, 6)
    steps = []
    stem.units[0].conv.register_forward_hook(lambda module, args, output: steps.append(len(args[0])))
    once = stem(image, 5)
    repeated = stem(image.repeat(5, 1, 1, 1, 1), 5)
    assert steps == [2, 10]  # T * B
    assert torch.equal(once, repeated)


def test_held_current_gives_the_same_batch_norm_gradient():
    torch.manual_seed(3)
    image = torch.rand(1, 4, 3, 9, 6, dtype=torch.float64)
    gradients = []
    for x in (image, image.repeat(5, 1, 1, 1, 1)):
        torch.manual_seed(0)
        stem = SpikingStem(3, (4, 8), (True, False)).double().train()
        stem(x, 5).sum().backward()
        gradients.append([p.grad for p in stem.parameters()])
    for once, repeated in zip(*gradients, strict=True):
        torch.testing.assert_close(once, repeated)
