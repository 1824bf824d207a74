"""Counting the bytes of tensors: known sums by hand, and the same on real tensors and on fake ones."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from testing.footprint import Footprint, cuda_autocast, without_data

KIB = 1024


def tensor(kib: int = 1) -> torch.Tensor:
    return torch.zeros(kib * KIB // 4)


def test_peak_of_a_small_computation():
    x = tensor()
    with Footprint() as footprint:
        y = x + 1
        z = y * 2
        del y
        assert footprint.live == 2 * KIB
        z = z.double()
    assert footprint.live == 3 * KIB
    assert footprint.peak == 4 * KIB


def test_views_and_operations_in_place_add_nothing():
    x = tensor()
    with Footprint() as footprint:
        x.view(2, -1).t()[3:].add_(1).mul_(2)
        x[:5].detach().zero_()
    assert footprint.live == footprint.peak == KIB


def test_a_view_keeps_its_whole_storage():
    with Footprint() as footprint:
        x = tensor() + 0
        view = x[:1]
        del x
        assert footprint.live == KIB
        del view
        assert footprint.live == 0


def test_weights_count_from_the_start_and_once():
    layer = nn.Linear(16, 16).requires_grad_(False)
    with Footprint(nn.Sequential(layer, layer)) as footprint:
        assert footprint.live == 4 * (16 * 16 + 16)
        y = layer(torch.zeros(1, 16))
        assert footprint.live == 4 * (16 * 16 + 16) + y.nbytes


def test_what_backward_needs_lives_until_backward():
    x = tensor().requires_grad_()
    with Footprint() as footprint:
        y = x.exp().exp().exp().sum()
        assert footprint.live == 4 * KIB + 4
        y.backward()
        assert footprint.live == 2 * KIB + 4  # x, its gradient and the sum.


@pytest.mark.parametrize("fake", [False, True])
def test_checkpointing_keeps_one_layer_at_a_time(fake):
    """Forward keeps the input of each layer instead of its insides, which backward makes again."""

    def peak(checkpointing: bool) -> int:
        layers = [nn.Sequential(nn.Linear(64, 64), *[nn.Tanh() for _ in range(7)]) for _ in range(4)]
        if fake:
            without_data(*layers)
        x = torch.zeros(256, 64, requires_grad=True)
        with Footprint() as footprint:
            for layer in layers:
                x = checkpoint(layer, x, use_reentrant=False) if checkpointing else layer(x)
            x.sum().backward()
        return footprint.peak

    activation, weights = 256 * 64 * 4, 4 * (64 * 64 + 64) * 4
    assert peak(False) >= 4 * 7 * activation + weights
    assert (4 + 7) * activation + weights <= peak(True) <= (4 + 7 + 3) * activation + 2 * weights


@pytest.mark.parametrize("checkpointing", [False, True])
def test_nothing_computed_counts_the_same_as_the_real_run(checkpointing):
    from diffusers import AutoencoderKL

    from diffprivacy.backends.diffusers import DiffusersAutoencoder
    from diffprivacy.identity.energies import Energy, latent_gradient

    real = DiffusersAutoencoder(
        AutoencoderKL(
            block_out_channels=(8, 16),
            norm_num_groups=4,
            layers_per_block=1,
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
        ),
        checkpointing,
    ).requires_grad_(False)
    fake = copy.deepcopy(real)
    without_data(fake)

    def peak(autoencoder: DiffusersAutoencoder) -> int:
        energy = Energy(lambda seen, _: seen.images.square().mean(dim=(1, 2, 3)))
        with Footprint(autoencoder) as footprint:
            latent_gradient(energy, autoencoder.decode)(torch.zeros(2, 4, 16, 16), seed=0)
        return footprint.peak

    assert peak(fake) == peak(real)


def test_elements_of_fake_tensors_are_one():
    layer = nn.Linear(2, 2)
    without_data(layer)
    with Footprint():
        y = layer(torch.zeros(3, 2))
        assert y.isfinite().all()
        assert y.sum().item() == 1


def test_cuda_autocast_lowers_matrices_and_keeps_norms():
    x = torch.zeros(1, 4, 8, 8, dtype=torch.bfloat16)
    convolution, norm = nn.Conv2d(4, 4, 1), nn.GroupNorm(2, 4).bfloat16()
    with cuda_autocast():
        assert convolution(x.float()).dtype == torch.bfloat16
        assert norm(x).dtype == torch.float32
        assert nn.functional.silu(x).dtype == torch.bfloat16


def test_cuda_autocast_holds_in_checkpointed_layers():
    layer = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)).bfloat16()
    x = torch.randn(2, 4, requires_grad=True)
    with cuda_autocast():
        checkpoint(layer, x, use_reentrant=False).square().sum().backward()
    assert x.grad is not None and x.grad.dtype == torch.float32
