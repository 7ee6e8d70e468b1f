"""Multimodal LLMs of the real classes as prompt encoders."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_multimodal import FAMILIES, make_multimodal

from mmdit.encoders.multimodal import MultimodalEncoder
from mmdit.encoders.prompts import load_prompt_encoder, make_prompt_encoder
from mmdit.errors import UserError
from mmdit.models.interleaved import InterleavedConditioner
from mmdit.models.prompted import PromptInputs
from mmdit.prompt import Prompt, Span, parse


def _picture(seed: int, width: int = 32, height: int = 32) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.fixture(scope="module", params=FAMILIES)
def family(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def folder(family, tmp_path_factory):
    path = tmp_path_factory.mktemp(family)
    for part in make_multimodal(family):
        part.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def encoder(folder) -> MultimodalEncoder:
    return load_prompt_encoder("interleaved", str(folder))


PER_IMAGE = {"idefics3": 4, "smolvlm": 4, "llava": 16, "qwen2.5": 4, "qwen3": 4}


def test_images_stand_where_the_words_were(encoder, family):
    """The states are those that the model itself gives for the processor's own reading of the interleaved text."""
    one, two = _picture(0), _picture(1)
    encoded = encoder([parse("a {gizmo} left of a {red cone}", [one, two])])
    mark = "<|vision_start|><|image_pad|><|vision_end|>" if family.startswith("qwen") else "<image>"
    inputs = encoder.processor(text=[f"a {mark} left of a {mark}"], images=[[one, two]], return_tensors="pt")
    with torch.no_grad():
        output = encoder.model(**inputs, output_hidden_states=True)
    torch.testing.assert_close(encoded.states, output.hidden_states[-1], atol=1e-5, rtol=1e-4)
    at_images = (inputs["input_ids"] == encoder.model.config.image_token_id)[0]
    assert torch.equal(encoded.subjects[0] >= 0, at_images)
    count = PER_IMAGE[family]
    assert encoded.subjects[0][at_images].tolist() == [0] * count + [1] * count
    assert encoded.mask.all()


def test_words_and_images_are_located_by_what_they_stand_for(encoder):
    prompts = [parse("a red torus left of a {blue cone}", [_picture(0)]), None, parse("a torus beside a red cone")]
    mentions = [
        Prompt("a red torus left of a blue cone", (Span(2, 11, 0), Span(22, 31, 1))),
        None,
        Prompt("a torus beside a red cone", (Span(17, 25, 0),)),
    ]
    read = encoder.read(prompts)
    located = encoder.locate(mentions, read)
    assert located.shape == encoder(prompts).mask.shape
    tokens = {row: inputs["input_ids"][i] for rows, _, inputs, _ in read["groups"] for i, row in enumerate(rows)}

    def words(row: int, number: int) -> str:
        found = tokens[row][(located[row] == number)[: len(tokens[row])]]
        return encoder.processor.tokenizer.decode(found, skip_special_tokens=True).strip()

    assert (words(0, 0), words(2, 2)) == ("red torus", "red cone")
    of_image = tokens[0] == encoder.model.config.image_token_id
    assert torch.equal((located[0] == 1)[: len(of_image)], of_image)
    assert (located[1] < 0).all()
    assert {*located.flatten().tolist()} == {-1, 0, 1, 2}


def test_words_behind_an_image_are_those_of_the_text(encoder):
    words = encoder._words(parse("{torus} red cone", [_picture(0)]))
    assert [(start, end) for _, start, end in words] == [(6, 9), (10, 14)]
    assert encoder.processor.tokenizer.convert_ids_to_tokens([token for token, _, _ in words]) == ["red", "cone"]


def test_words_are_not_located_where_the_tokenizer_does_not_say(encoder, monkeypatch):
    read = encoder.read([parse("a red torus")])
    monkeypatch.setattr(type(encoder.processor.tokenizer), "is_fast", False)
    with pytest.raises(UserError, match="does not say which words its tokens come from: give subjects instead"):
        encoder.locate([Prompt("a red torus", (Span(2, 11, 0),))], read)


def test_subjects_are_counted_over_the_batch(encoder, family):
    prompts = [
        parse("a red torus"),
        parse("{torus} in front of {torus}", {"torus": _picture(0)}),
        None,
        parse("{} left of {cone}", [_picture(1), _picture(2)]),
    ]
    encoded = encoder(prompts)
    count = PER_IMAGE[family]
    found = [[n for n in row.tolist() if n >= 0] for row in encoded.subjects]
    assert found == [[], [0] * 2 * count, [], [1] * count + [2] * count]
    assert encoded.present.tolist() == [True, True, False, True]
    assert not encoded.mask[2].any()
    assert encoded.mask.any(1).tolist() == [True, True, False, True]
    nobody = encoder([None, None])
    assert nobody.states.shape == (2, 1, 16)
    assert not nobody.mask.any()


def test_neither_padding_nor_batch_mates_matter(encoder):
    prompts = [
        parse("a {torus}", [_picture(0)]),
        parse("a red cone beside a blue torus in front of a cone"),
        parse("a {torus} left of a {cone} in front", [_picture(1, 48, 32), (_picture(2), np.eye(32) > 0)]),
        parse("a cone"),
    ]
    together = encoder(prompts)
    for row, prompt in enumerate(prompts):
        alone = encoder([prompt])
        length = int(alone.mask.sum())
        assert together.mask[row].tolist() == [True] * length + [False] * (together.mask.shape[1] - length)
        torch.testing.assert_close(together.states[row, :length], alone.states[0], atol=1e-5, rtol=1e-4)
        same = (together.subjects[row, :length] >= 0) == (alone.subjects[0] >= 0)
        assert same.all()


def test_the_conditioner_reads_them(encoder):
    """Another picture changes its own sample alone, from the picture's place on: the LLM is causal."""
    torch.manual_seed(0)
    conditioner = InterleavedConditioner(3, 8, text_width=encoder.width)
    conditioner.reset_parameters()
    outs = []
    for seed in (0, 7):
        encoded = encoder([parse("a red {torus} left", [_picture(seed)]), parse("a {cone}", [_picture(9)])])
        outs.append(conditioner(PromptInputs(torch.tensor([-1, 1]), encoded)))
    changed = (outs[0].tokens - outs[1].tokens).abs().amax(-1) > 1e-6
    first = int((outs[0].subject_ids[0] == 0).nonzero()[0])
    assert not changed[0, :first].any()
    assert changed[0, first:][outs[0].token_mask[0, first:]].all()
    assert not changed[1].any()


def test_another_layer(folder, encoder, tmp_path):
    prompt = parse("a {torus} left", [_picture(0)])
    with torch.no_grad():
        inputs = encoder._inputs([encoder._interleaved(prompt)], [[prompt.images[0]]])
        states = encoder.model(**inputs, output_hidden_states=True).hidden_states
    for layer in (0, 1, -2, 2):
        other = MultimodalEncoder.load(str(folder), hidden_layer=layer)
        torch.testing.assert_close(other([prompt]).states, states[layer], atol=1e-5, rtol=1e-4)
    other.model.save_pretrained(tmp_path)
    other.processor.save_pretrained(tmp_path)
    assert MultimodalEncoder.load(str(tmp_path)).hidden_layer == 2, "the choice is saved with the model"
    with pytest.raises(UserError, match="hidden_layer is 3: the model has 2 layers, give -3 to 2"):
        MultimodalEncoder.load(str(folder), hidden_layer=3)


@pytest.mark.parametrize(
    ("prompt", "told"),
    [
        (lambda: parse("a crimson torus"), "doesn't know 'crimson'"),
        (lambda: parse("{gizmo} lift of a cone", [_picture(0)]), "doesn't know 'lift'; nearest are left"),
        (lambda: parse("a {torus}", ["torus.png"]), "a subject is a str"),
        (lambda: parse("a <unk>"), "'<unk>' is a mark of the model's own"),
        (lambda: parse("{a} {a} {a} {a} {a}", [_picture(i) for i in range(5)]), "has 5 subjects, the model takes 4"),
        (
            lambda: parse("a cone " * 31 + "left of a torus"),
            "has 68 tokens with its images, the model reads 64: 'of a torus",
        ),
    ],
)
def test_bad_prompts(encoder, prompt, told):
    for call in (encoder, encoder.check):
        with pytest.raises(UserError) as error:
            call([prompt()])
        assert told in str(error.value)


def test_the_mark_of_an_image_is_refused_as_text(encoder):
    mark = encoder.processor.tokenizer.convert_ids_to_tokens(encoder.model.config.image_token_id)
    with pytest.raises(UserError, match="is a mark of the model's own: leave it out"):
        encoder([parse(f"a {mark} torus")])


def test_large_images_are_not_split():
    model, processor = make_multimodal("idefics3")
    processor.image_processor.do_image_splitting = True
    processor.image_processor.size = {"longest_edge": 96}
    mark = {"text": ["<image>"], "images": [[_picture(0, 96, 96)]]}
    assert (processor(**mark)["input_ids"][0].count(model.config.image_token_id)) == 40
    encoded = MultimodalEncoder(model, processor)([parse("a {torus}", [_picture(0, 96, 96)])])
    assert (encoded.subjects == 0).sum() == 4


def test_as_components_of_a_pipeline(encoder):
    assert encoder.widths == {"text_width": 16}
    made = make_prompt_encoder("interleaved", {**encoder.components, "tokenizer": None})
    prompt = parse("a {torus}", [_picture(0)])
    assert torch.equal(made([prompt]).states, encoder([prompt]).states)
    made.check([prompt, None])
    with pytest.raises(UserError, match="this model has no processor, which its prompts need"):
        make_prompt_encoder("interleaved", {"text_encoder": encoder.model})


def test_a_model_without_a_head_gives_the_same(encoder):
    prompt = parse("a {torus} left", [_picture(0)])
    headless = MultimodalEncoder(encoder.model.base_model, encoder.processor)
    torch.testing.assert_close(headless([prompt]).states, encoder([prompt]).states)


def test_bfloat16_stays_so_and_is_read_in_the_conditioners_type(folder, tmp_path):
    encoder = MultimodalEncoder.load(str(folder)).to(torch.bfloat16)
    encoder.model.save_pretrained(tmp_path)
    encoder.processor.save_pretrained(tmp_path)
    encoded = MultimodalEncoder.load(str(tmp_path))([parse("a {torus}", [_picture(0)])])
    assert encoded.states.dtype == torch.bfloat16
    conditioner = InterleavedConditioner(3, 8, text_width=16)
    assert conditioner(PromptInputs(torch.tensor([1]), encoded)).tokens.dtype == torch.float32


def test_bad_folders(folder, tmp_path):
    with pytest.raises(
        UserError, match=r"'no/such-model' can't be fetched from the Hub and is not in its cache \(the Hub"
    ):
        MultimodalEncoder.load("no/such-model")
    with pytest.raises(UserError, match="can't be loaded"):
        MultimodalEncoder.load(str(tmp_path))
    for file in folder.iterdir():
        if file.is_file() and file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    torch.save({"weight": torch.zeros(1)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="holds no weights"):
        MultimodalEncoder.load(str(tmp_path))
    with pytest.raises(UserError, match="a multimodal LLM reads images itself"):
        MultimodalEncoder.load(str(folder), str(folder))


def test_code_in_a_folder_is_not_run(folder, tmp_path):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    marker = tmp_path / "ran"
    (tmp_path / "theirs.py").write_text(f"open({str(marker)!r}, 'w').close()\nclass Theirs: pass\n")
    config = json.loads((tmp_path / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "theirs.Theirs", "AutoModelForImageTextToText": "theirs.Theirs"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="auto_map"):
        MultimodalEncoder.load(str(tmp_path))
    del config["auto_map"]
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "theirs"}))
    with pytest.raises(UserError, match="can't be loaded"):
        MultimodalEncoder.load(str(tmp_path))
    assert not marker.exists()


def test_a_text_encoder_is_no_multimodal_llm():
    from tiny_encoders import make_model, make_tokenizer

    with pytest.raises(UserError, match=r"BertModel with .* reads no images as tokens of its text"):
        MultimodalEncoder(make_model("bert"), make_tokenizer())
