import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from mmdit.errors import UserError
from mmdit.metrics.prompts.networks import ImageNetwork, ImageTextNetwork


@pytest.fixture
def pictures():
    values = np.random.default_rng(0).integers(0, 256, (3, 40, 40, 3), dtype=np.uint8)
    return [Image.fromarray(each) for each in values]


def test_clip_as_transformers_computes_it(clip_folder, pictures):
    from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel

    model = CLIPModel.from_pretrained(clip_folder).eval()
    tokens = AutoTokenizer.from_pretrained(clip_folder)(["a red torus", "a cat"], padding=True, return_tensors="pt")
    pixels = CLIPImageProcessor.from_pretrained(clip_folder)(images=pictures, return_tensors="pt")
    with torch.no_grad():
        wanted = model(
            input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"], pixel_values=pixels["pixel_values"]
        )
    network = ImageTextNetwork(str(clip_folder))
    torch.testing.assert_close(network.images(pictures), wanted.image_embeds)
    torch.testing.assert_close(network.texts(["a red torus", "a cat"]), wanted.text_embeds)
    torch.testing.assert_close(network.texts(["a cat"]), network.texts(["a red torus", "a cat"])[1:])
    assert network.texts(["a cat " * 50]).shape == (1, 16)


def test_dino_is_the_class_token(dino_folder, pictures):
    from transformers import ViTImageProcessor, ViTModel

    model = ViTModel.from_pretrained(dino_folder, add_pooling_layer=False).eval()
    pixels = ViTImageProcessor.from_pretrained(dino_folder)(images=pictures, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        states = model(pixel_values=pixels).last_hidden_state[:, 0]
    torch.testing.assert_close(
        ImageNetwork(str(dino_folder)).images(pictures), states / states.norm(dim=-1, keepdim=True)
    )


def test_refusals(clip_folder, dino_folder, tmp_path):
    with pytest.raises(UserError, match="CLIP model 'nowhere' can't be loaded: no such folder"):
        ImageTextNetwork("nowhere")
    with pytest.raises(UserError, match="is a 'vit': give a CLIP model"):
        ImageTextNetwork(str(dino_folder))
    with pytest.raises(UserError, match="is a 'clip': give one of the kinds"):
        ImageNetwork(str(clip_folder))
    damaged = tmp_path / "damaged"
    shutil.copytree(dino_folder, damaged)
    config = json.loads((damaged / "config.json").read_text())
    (damaged / "config.json").write_text(json.dumps(config | {"hidden_size": 24}))
    with pytest.raises(UserError, match=r"DINO model .* can't be loaded"):
        ImageNetwork(str(damaged))
