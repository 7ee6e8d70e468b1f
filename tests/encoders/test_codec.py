import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

from mmdit.encoders.codec import LatentCodec
from mmdit.errors import UserError
from mmdit.modalities import MODALITIES


def make_vae(unshuffle: int = 2, levels: int = 2, latent_channels: int = 4, **kwargs) -> AutoencoderKL:
    torch.manual_seed(0)
    return AutoencoderKL(
        in_channels=3 * unshuffle**2,
        out_channels=3 * unshuffle**2,
        block_out_channels=(8,) * levels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        norm_num_groups=4,
        latent_channels=latent_channels,
        mid_block_add_attention=False,
        **kwargs,
    ).eval()


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize(("unshuffle", "levels", "downsampling"), [(1, 3, 4), (2, 2, 4), (4, 1, 4), (1, 1, 1)])
def test_unshuffle_and_downsampling_follow_from_the_config(unshuffle, levels, downsampling):
    codec = LatentCodec(make_vae(unshuffle, levels), MODALITIES)
    assert (codec.unshuffle, codec.downsampling) == (unshuffle, downsampling)
    moments = codec.moments(torch.randn(2, 3, 16, 24))
    assert moments.shape == (2, 8, 16 // downsampling, 24 // downsampling)
    assert codec.decode(codec.latents(moments, "rgb"), "rgb").shape == (2, 3, 16, 24)


def test_moments_and_decoding_are_the_vae_behind_a_pixel_unshuffle():
    vae = make_vae(2, 1)
    codec = LatentCodec(vae, MODALITIES)
    images = torch.randn(2, 3, 8, 8)
    # Pixel-unshuffle written out: channel (c, i, j) holds pixels (2y + i, 2x + j).
    unshuffled = images.view(2, 3, 4, 2, 4, 2).permute(0, 1, 3, 5, 2, 4).reshape(2, 12, 4, 4)
    with torch.no_grad():
        posterior = vae.encode(unshuffled).latent_dist
        torch.testing.assert_close(codec.moments(images), torch.cat([posterior.mean, posterior.logvar], dim=1))
        decoded = vae.decode(posterior.mean).sample
        expected = decoded.view(2, 3, 2, 2, 4, 4).permute(0, 1, 4, 2, 5, 3).reshape(2, 3, 8, 8)
        torch.testing.assert_close(codec.decode_raw(posterior.mean), expected)


def test_the_mean_without_a_generator_and_samples_with_one(generator):
    codec = LatentCodec(make_vae(), MODALITIES)
    mean, logvar = torch.randn(1, 4, 64, 64), torch.full((1, 4, 64, 64), -2.0)
    moments = torch.cat([mean, logvar], dim=1)
    assert torch.equal(codec.sample(moments), mean)
    drawn = codec.sample(moments, generator)
    assert (drawn - mean).std().item() == pytest.approx(torch.tensor(-1.0).exp().item(), rel=0.02)
    assert torch.equal(drawn, codec.sample(moments, torch.Generator().manual_seed(0)))


def test_scaling_and_shift_of_the_vae_are_used_without_statistics():
    vae = make_vae(scaling_factor=0.5, shift_factor=0.25)
    codec = LatentCodec(vae, MODALITIES)
    moments = torch.randn(1, 8, 4, 4)
    latents = codec.latents(moments, "depth")
    torch.testing.assert_close(latents, (moments[:, :4] - 0.25) * 0.5)
    with torch.no_grad():
        torch.testing.assert_close(codec.decode(latents, "depth"), codec.decode_raw(moments[:, :4]))


def test_whitening_gives_zero_mean_unit_std_and_is_undone_by_decode(generator):
    mean, std = (1.0, -2.0, 0.5, 3.0), (2.0, 0.5, 1.0, 4.0)
    white = MODALITIES["normal"].replace(latents_mean=mean, latents_std=std)
    codec = LatentCodec(make_vae(), {"rgb": MODALITIES["rgb"], "normal": white})
    z = torch.tensor(mean)[:, None, None] + torch.tensor(std)[:, None, None] * torch.randn(8, 4, 16, 16)
    moments = torch.cat([z, torch.full_like(z, -30.0)], dim=1)
    latents = codec.latents(moments, "normal", generator)
    assert latents.mean(dim=(0, 2, 3)).abs().max() < 0.1
    torch.testing.assert_close(latents.std(dim=(0, 2, 3)), torch.ones(4), atol=0.05, rtol=0)
    with torch.no_grad():
        torch.testing.assert_close(codec.decode(latents, "normal"), codec.decode_raw(z), atol=1e-5, rtol=1e-4)


def test_all_modalities_at_once_equal_one_by_one(generator):
    white = MODALITIES["depth"].replace(latents_mean=(1.0,) * 4, latents_std=(2.0,) * 4)
    codec = LatentCodec(make_vae(), {"rgb": MODALITIES["rgb"], "depth": white})
    images = torch.randn(3, 2, 3, 8, 8)
    with torch.no_grad():
        moments = codec.encode_all(images)
        latents = codec.latents_all(moments)
        decoded = codec.decode_all(latents)
        for m, name in enumerate(codec.modalities):
            torch.testing.assert_close(moments[:, m], codec.moments(images[:, m]), atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(latents[:, m], codec.latents(moments[:, m], name))
            torch.testing.assert_close(decoded[:, m], codec.decode(latents[:, m], name), atol=1e-5, rtol=1e-4)


def test_log_variance_is_clamped():
    vae = make_vae()
    with torch.no_grad():
        vae.quant_conv.bias[4:] = -100.0
    moments = LatentCodec(vae, MODALITIES).moments(torch.randn(1, 3, 8, 8))
    assert (moments[:, 4:] == -30).all()


def test_slicing_and_half_precision_work():
    vae = make_vae()
    codec = LatentCodec(vae, MODALITIES)
    images = torch.randn(3, 3, 8, 8)
    with torch.no_grad():
        whole = codec.decode(codec.latents(codec.moments(images), "rgb"), "rgb")
        vae.enable_slicing()
        sliced = codec.decode(codec.latents(codec.moments(images), "rgb"), "rgb")
        torch.testing.assert_close(whole, sliced, atol=1e-5, rtol=1e-4)
        vae.to(torch.bfloat16)
        low = codec.decode(codec.latents(codec.moments(images), "rgb"), "rgb")
    assert low.dtype == torch.bfloat16
    assert F.cosine_similarity(low.float().flatten(), whole.flatten(), dim=0) > 0.99


def test_gradients_reach_the_vae():
    vae = make_vae()
    codec = LatentCodec(vae, MODALITIES)
    codec.decode_raw(codec.sample(codec.moments(torch.randn(1, 3, 8, 8)))).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in vae.parameters())


def test_bad_input_is_named():
    codec = LatentCodec(make_vae(), MODALITIES)
    with pytest.raises(UserError, match=r"18 x 16.*multiples of 4"):
        codec.moments(torch.randn(1, 3, 18, 16))
    with pytest.raises(UserError, match=r"\(B, 4, …\).*\(2, 3, 3, 8, 8\)"):
        codec.encode_all(torch.randn(2, 3, 3, 8, 8))
    with pytest.raises(UserError, match="5 input"):
        LatentCodec(AutoencoderKL(in_channels=5, block_out_channels=(8,), norm_num_groups=4), MODALITIES)
    short = {"rgb": MODALITIES["rgb"].replace(latents_mean=(0.0,), latents_std=(1.0,))}
    with pytest.raises(UserError, match=r"'rgb'.*4 numbers"):
        LatentCodec(make_vae(), short)
