"""The VAE's encoder as a teacher."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny

from mmdit.encoders.vae_teacher import VAETeacher
from mmdit.errors import UserError


def test_features_are_those_that_the_latents_are_made_of() -> None:
    torch.manual_seed(0)
    vae = AutoencoderKL(in_channels=12, out_channels=12, block_out_channels=(8,), norm_num_groups=4).eval()
    teacher = VAETeacher(vae, patch_size=2)
    images = torch.rand(2, 3, 8, 12) * 2 - 1  # behind a 2x pixel-unshuffle: 4 x 6 cells, 2 x 3 tokens
    features = teacher.features(images)
    assert features.shape == (2, 6, 8 * 4)
    hidden = torch.nn.functional.pixel_shuffle(features.transpose(1, 2).unflatten(2, (2, 3)), 2)  # (B, D, h, w)
    encoder = vae.encoder
    moments = vae.quant_conv(encoder.conv_out(encoder.conv_act(encoder.conv_norm_out(hidden))))
    torch.testing.assert_close(moments[:, :4], teacher.codec.moments(images)[:, :4])
    assert not any(p.requires_grad for p in teacher.parameters())
    assert not vae.encoder.mid_block._forward_hooks


def test_a_vae_of_another_class_is_named() -> None:
    with pytest.raises(UserError, match="'vae' reads an AutoencoderKL, the VAE is a AutoencoderTiny: give 'latents'"):
        VAETeacher(
            AutoencoderTiny(
                encoder_block_out_channels=(8,),
                decoder_block_out_channels=(8,),
                num_encoder_blocks=(1,),
                num_decoder_blocks=(1,),
            ),
            2,
        )
