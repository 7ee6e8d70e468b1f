"""A small multimodal LLM of our own size (Idefics3, arXiv 2408.12637): a ViT, a connector, a Llama.

B examples, L tokens, N tokens of answers, V words.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from tokenizers.models import WordLevel
from torch import Tensor
from transformers import (
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessor,
    Idefics3Processor,
    PreTrainedTokenizerFast,
)

from mmdit.encoders.contrastive import copy_layers, tower_sizes
from mmdit.encoders.pretrained import PretrainedFolder
from mmdit.encoders.scene_teacher import SceneTeacher
from mmdit.errors import UserError

# The marks that Idefics3's processor puts into a text; a tokenizer for it knows them.
MARKS = ("<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>")
IGNORED = -100


def make_captioner(
    tokenizer: PreTrainedTokenizerFast,
    image_size: int = 64,
    *,
    patch_size: int = 8,
    scale_factor: int = 4,
    vision_hidden_size: int = 160,
    vision_depth: int = 4,
    vision_num_heads: int = 5,
    hidden_size: int = 192,
    depth: int = 4,
    num_heads: int = 4,
    teacher: SceneTeacher | None = None,
) -> tuple[Idefics3ForConditionalGeneration, Idefics3Processor]:
    """Build a model with random weights, and its processor.

    Args:
        tokenizer: has ``MARKS``; its vocabulary and its longest text are the model's.
        image_size: side to which images are brought, in pixels.
        patch_size: of the ViT.
        scale_factor: side of the square of patches that become one token: an image has (image_size / patch_size /
            scale_factor)² tokens.
        vision_hidden_size, vision_depth, vision_num_heads: of the ViT.
        hidden_size, depth, num_heads: of the Llama.
        teacher: where the ViT takes its weights and sizes from, with which it sees as the teacher does; None = random ones.

    Raises:
        UserError: sizes that don't divide, or a teacher of another image size.
    """
    vision = {
        "patch_size": patch_size,
        "hidden_size": vision_hidden_size,
        "intermediate_size": 4 * vision_hidden_size,
        "num_hidden_layers": vision_depth,
        "num_attention_heads": vision_num_heads,
    }
    if teacher is not None:
        vision = tower_sizes(teacher, image_size, "captioner")
        patch_size = vision["patch_size"]
    cell = patch_size * scale_factor
    if image_size % cell:
        raise UserError(
            f"captioner.image_size {image_size} is not a multiple of patch_size x scale_factor = {patch_size} x {scale_factor}"
        )
    for width, heads, name in (
        (vision["hidden_size"], vision["num_attention_heads"], "vision_hidden_size"),
        (hidden_size, num_heads, "hidden_size"),
    ):
        if width % heads:
            raise UserError(f"captioner.{name} {width} is not a multiple of its {heads} heads")
    edge = {"longest_edge": image_size}
    images = Idefics3ImageProcessor(size=edge, max_image_size=edge, do_image_splitting=False)
    processor = Idefics3Processor(images, tokenizer, image_seq_len=(image_size // cell) ** 2)
    config = Idefics3Config(
        vision_config={**vision, "image_size": image_size},
        text_config={
            "model_type": "llama",
            "vocab_size": len(tokenizer),
            "hidden_size": hidden_size,
            "intermediate_size": 8 * hidden_size // 3,
            "num_hidden_layers": depth,
            "num_attention_heads": num_heads,
            "num_key_value_heads": num_heads,
            "max_position_embeddings": tokenizer.model_max_length,
            "pad_token_id": tokenizer.pad_token_id,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
        },
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        pad_token_id=tokenizer.pad_token_id,
        scale_factor=scale_factor,
    )
    model = Idefics3ForConditionalGeneration(config)
    if teacher is not None:
        start_vision(model, teacher)
    return model, processor


@torch.no_grad()
def start_vision(model: Idefics3ForConditionalGeneration, teacher: SceneTeacher) -> None:
    """Copy a teacher's ViT, which has the same layers: the tower's features are then the teacher's, behind a plain norm."""
    tower, vit = model.model.vision_model, teacher.vit
    for part in ("weight", "bias"):
        getattr(tower.embeddings.patch_embedding, part).copy_(getattr(vit.patch_embed.proj, part))
    tower.embeddings.position_embedding.weight.copy_(vit.pos_embed[0])
    copy_layers(tower.encoder.layers, vit.blocks)


def save_captioner(folder: Path, model: Idefics3ForConditionalGeneration, processor: Idefics3Processor) -> None:
    """Write model and processor, as transformers lays them out."""
    model.save_pretrained(folder, safe_serialization=True)
    processor.save_pretrained(folder)


def load_captioner(folder: str) -> tuple[Idefics3ForConditionalGeneration, Idefics3Processor]:
    """Load what ``save_captioner`` wrote, frozen.

    Raises:
        UserError: a folder that is missing or damaged, or holds another kind of model.
    """
    source = PretrainedFolder.find(folder, "captioner")
    refusal = UserError(f"{source.title}: is no captioner of recipe 'captioner', an Idefics3 that reads whole words")
    if source.config.get("model_type") != "idefics3":
        raise refusal
    processor = source.load(Idefics3Processor)
    if not isinstance(processor.tokenizer.backend_tokenizer.model, WordLevel):
        raise refusal
    return source.load_model(Idefics3ForConditionalGeneration), processor


class CaptionerObjective:
    """Cross-entropy of the answers' words: the mean of each answer's, of each example's, so that a short one counts as a long.

    And of the names of what an image shows, told from the mean of its tokens alone, in any order: a model that starts from
    nothing would long answer by guessing, before its words found the image.

    Args:
        processor: the model's; its tokenizer is one of whole words, so that an answer's tokens don't depend on the text.
        names_weight: weight of the names.
    """

    def __init__(self, processor: Idefics3Processor, names_weight: float = 1.0) -> None:
        self.processor, self.names_weight = processor, names_weight

    def inputs(
        self, turns: Sequence[Sequence[tuple[str, str]]], pictures: Sequence[Sequence[Image.Image]]
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Texts and answers in one sequence, padded on the right.

        Args:
            turns: of each example, pairs (text, answer); images stand in the first text.
            pictures: of each example.

        Returns:
            The model's inputs, and (B, L) int64: the number of the answer, counted over the batch, that a token belongs to; the
            mark of the end belongs to the last one. ``IGNORED`` = to none.
        """
        said = [" ".join(f"{text} {answer}" for text, answer in listed) for listed in turns]
        images = {"images": [list(listed) for listed in pictures]} if any(pictures) else {}
        inputs = dict(self.processor(text=said, **images, padding=True, padding_side="right", return_tensors="pt"))
        numbers = torch.full_like(inputs["input_ids"], IGNORED)
        number = 0
        for row, (listed, length) in enumerate(zip(turns, inputs["attention_mask"].sum(1).tolist(), strict=True)):
            number += len(listed)
            end = length
            for back, (text, answer) in enumerate(reversed(listed), start=1):
                start = end - self._length(answer) - (1 if back == 1 else 0)
                numbers[row, start:end] = number - back
                end = start - self._length(text)  # that of the first text, with its images, is not used
        return inputs, numbers

    def _length(self, text: str) -> int:
        return len(self.processor.tokenizer(text, add_special_tokens=False)["input_ids"])

    def __call__(self, model: Any, batch: dict[str, Any]) -> dict[str, Tensor | tuple[Tensor, int]]:
        """Losses of a batch of ``mmdit.data.instructions.Instructions``.

        Returns:
            "loss"; "names"; and for each kind in the batch, with how many they are of, "<kind>", its loss, and "<kind>_right":
            the share of answers all of whose words are the likeliest, which is what is said when the likeliest word is taken
            each time.
        """
        turns = batch["turns"]
        seen: list[Tensor] = []  # (pictures, tokens of each, width)
        hook = model.model.connector.register_forward_hook(lambda module, arguments, output: seen.append(output))
        try:
            logits, words, numbers = self._predictions(model, turns, batch["pictures"])
        finally:
            hook.remove()
        device = logits.device
        examples = torch.tensor([row for row, listed in enumerate(turns) for _ in listed], device=device)
        per_answer = _means(F.cross_entropy(logits, words, reduction="none"), numbers, len(examples))
        per_example = _means(per_answer, examples, len(turns))
        right = _all_likeliest(logits, words, numbers, len(examples))
        loss = per_example.mean()
        losses: dict[str, Tensor | tuple[Tensor, int]] = {}
        if seen:
            listed = [name for names in batch["names"] for name in names]
            names_loss = self._names_loss(model.lm_head(seen[0].mean(1)).float(), listed)
            losses["names"] = names_loss.detach(), len(listed)
            loss = loss + self.names_weight * names_loss
        losses["loss"] = loss
        for kind in dict.fromkeys(batch["kind"]):
            rows = torch.tensor([other == kind for other in batch["kind"]], device=device)
            of_kind = right[rows[examples]]
            losses[kind] = per_example[rows].mean().detach(), int(rows.sum())
            losses[f"{kind}_right"] = of_kind.float().mean(), len(of_kind)
        return losses

    @torch.no_grad()
    def answered_rightly(
        self, model: Any, turns: Sequence[Sequence[tuple[str, str]]], pictures: Sequence[Sequence[Image.Image]]
    ) -> list[bool]:
        """Tell of each answer, in the order of ``turns``, whether all of its words are the likeliest."""
        count = sum(map(len, turns))
        return _all_likeliest(*self._predictions(model, turns, pictures), count).tolist()

    def _predictions(
        self, model: Any, turns: Sequence[Sequence[tuple[str, str]]], pictures: Sequence[Sequence[Image.Image]]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Where the N tokens of answers stand: the model's logits (N, V), the token, and the number of its answer, (N,)."""
        inputs, numbers = self.inputs(turns, pictures)
        inputs = _on_device_of(model, inputs)
        logits = model(**inputs, use_cache=False).logits[:, :-1].float()
        words, numbers = inputs["input_ids"][:, 1:], numbers[:, 1:].to(logits.device)
        counted = numbers != IGNORED
        return logits[counted], words[counted], numbers[counted]

    def _names_loss(self, logits: Tensor, names: list[str]) -> Tensor:
        """Cross-entropy of logits (pictures, V) with equal shares of each picture's words."""
        targets = torch.zeros_like(logits)
        tokenizer = self.processor.tokenizer
        for row, ids in enumerate(tokenizer(names, add_special_tokens=False)["input_ids"]):
            targets[row, sorted(set(ids))] = 1
        return F.cross_entropy(logits, targets / targets.sum(1, keepdim=True))


def _on_device_of(model: Any, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    device = next(model.parameters()).device
    return {key: value.to(device) for key, value in inputs.items()}


def _all_likeliest(logits: Tensor, words: Tensor, numbers: Tensor, count: int) -> Tensor:
    """(count,) bool: of each answer, whether all its words (N,), by their answer's number (N,), are the likeliest of (N, V)."""
    return _means((logits.argmax(-1) == words).float(), numbers, count) == 1


def _means(values: Tensor, groups: Tensor, count: int) -> Tensor:
    """Mean of ``values`` (N,) in each of the ``groups`` (N,), 0 … count - 1: -> (count,)."""
    sums = values.new_zeros(count).index_add(0, groups, values)
    return sums / values.new_zeros(count).index_add(0, groups, torch.ones_like(values))


@torch.no_grad()
def say(model: Any, processor: Any, text: str, pictures: Sequence[Image.Image], max_words: int = 40) -> str:
    """What the model says behind a text with ``<image>`` where the pictures stand, the likeliest word each time.

    For tokenizers of ``mmdit.encoders.vocabulary``, whose mark of the end is taken off the text.
    """
    images = {"images": [list(pictures)]} if pictures else {}
    inputs = dict(processor(text=[text], **images, return_tensors="pt"))
    inputs = {key: value[:, :-1] if key in ("input_ids", "attention_mask") else value for key, value in inputs.items()}
    inputs = _on_device_of(model, inputs)
    end = processor.tokenizer.eos_token_id
    ids = model.generate(**inputs, max_new_tokens=max_words, do_sample=False, eos_token_id=end)
    return processor.tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
