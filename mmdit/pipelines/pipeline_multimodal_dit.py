"""The pipeline: what a call of it does, from arguments to outputs. The denoising loop is in ``denoising``.

Shapes: B samples, M modalities, C latent channels, h w latent size, H W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from diffusers import AutoencoderKL, DiffusionPipeline
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils import logging
from PIL import Image
from torch import Tensor

from mmdit.encoders.codec import LatentCodec
from mmdit.errors import UserError
from mmdit.flow.guidance import Guidance
from mmdit.flow.path import Given
from mmdit.flow.schedulers import steps_taken
from mmdit.modalities import IMAGE, Codec, Modality, build_codecs
from mmdit.modalities.table import ordered_modalities
from mmdit.models.transformer import MultimodalDiT
from mmdit.pipelines.arguments import (
    check_choices,
    check_counts,
    images_per_prompt,
    initial_noise,
    seeded,
    split_images,
)
from mmdit.pipelines.callbacks import OnStepEnd, StepCallback
from mmdit.pipelines.calls import Call, Calls, CallsMixin, has_hooks
from mmdit.pipelines.conditions import encode_conditions, read_conditions
from mmdit.pipelines.defaults import UNDERSTANDING_STEPS, Defaults, check_internal, lacks_middle
from mmdit.pipelines.denoising import Denoiser
from mmdit.pipelines.editing import read_edit
from mmdit.pipelines.ensembling import check_ensemble, combine
from mmdit.pipelines.folder import FolderMixin
from mmdit.pipelines.images import as_outputs, at_size, clean_latents, completed, decode, spread_at_size
from mmdit.pipelines.labels import ClassLabel, check_ids, label_ids
from mmdit.pipelines.limits import check_call
from mmdit.pipelines.loading import OPTIONAL
from mmdit.pipelines.lora import LoraMixin
from mmdit.pipelines.pipeline_output import MultimodalDiTPipelineOutput
from mmdit.pipelines.prompted import PromptsMixin
from mmdit.pipelines.prompts import Branches, check_labels, fusing_scale_of
from mmdit.pipelines.sizes import read_sizes
from mmdit.storage.digests import digest_tensors

logger = logging.get_logger(__name__)


class MultimodalDiTPipeline(PromptsMixin, CallsMixin, FolderMixin, LoraMixin, DiffusionPipeline):
    """Generates all modalities of an image from a class or a prompt, or from any subset of the modalities the rest.

    Args:
        transformer: the denoiser; its config says the modalities, their order, and what it predicts.
        vae: the autoencoder shared by the modalities.
        scheduler: any flow-matching scheduler of diffusers (Euler, Heun, UniPC, DPM-Solver++) or
            ``mmdit.flow.schedulers.EulerMaruyamaScheduler``.
        modalities: name -> ``Modality`` (or its ``to_dict()``), for exactly the transformer's modalities; None = the
            defaults of ``MODALITIES``.
        id2label: class id -> name; None = classes have no names.
        text_encoder, tokenizer, image_encoder, image_processor, processor: of transformers, frozen: what reads prompts, for
            transformers whose conditioner takes them. "tiue" has a text encoder with its tokenizer, and for subjects' images
            CLIP's image encoder with its processor; "interleaved" a multimodal LLM as ``text_encoder``, with its processor.

        defaults: ``num_inference_steps`` and ``guidance_scale`` of calls that name none; None = 25 and 2.0. And
            ``internal_guidance_scale`` and its ``internal_guidance_interval``, for a model with a head on a middle block. What
            is otherwise with a prompt is ``prompt_num_inference_steps`` and so on (``Defaults``).

    ``modalities``, ``id2label`` and ``defaults`` are saved in the folder. A second pipeline on the same weights is
    ``MultimodalDiTPipeline(**pipe.components, **pipe.parameters)``.

    Threads may share a pipeline: the state of a call is its own, a copy of the scheduler included. While weights are
    offloaded or cast, or outputs cached, by hooks, calls wait for each other.

    Raises:
        UserError: modalities that are not the transformer's, or a codec, statistics or encoders that don't fit.
    """

    model_cpu_offload_seq = "text_encoder->image_encoder->transformer->vae"
    _optional_components: ClassVar[list[str]] = list(OPTIONAL)
    _callback_tensor_inputs: ClassVar[list[str]] = ["latents"]

    transformer: MultimodalDiT
    vae: AutoencoderKL

    def __init__(
        self,
        transformer: MultimodalDiT,
        vae: AutoencoderKL,
        scheduler: SchedulerMixin,
        modalities: dict[str, Any] | None = None,
        id2label: dict[Any, str] | None = None,
        text_encoder: Any = None,
        tokenizer: Any = None,
        image_encoder: Any = None,
        image_processor: Any = None,
        processor: Any = None,
        defaults: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self._calls = Calls()
        self.register_modules(transformer=transformer, vae=vae, scheduler=scheduler)
        self.register_optional(
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            image_encoder=image_encoder,
            image_processor=image_processor,
            processor=processor,
        )
        self._modalities = ordered_modalities(transformer.config.modalities, modalities)
        names = {int(key): str(name) for key, name in (id2label or {}).items()}  # JSON makes the keys strings
        check_ids(names, transformer.config.num_classes)
        self._id2label = dict(sorted(names.items()))
        self.register_to_config(
            modalities={name: modality.to_dict() for name, modality in self._modalities.items()},
            id2label=self._id2label or None,
        )
        if defaults is not None:  # else the folder is as it was before there were any
            own = Defaults.of(defaults)
            for name in ("internal_guidance_scale", "prompt_internal_guidance_scale"):
                check_internal(getattr(own, name) or 1.0, transformer, f"defaults: {name}")
            self.register_to_config(defaults=dict(defaults))
        self.codecs: dict[str, Codec] = build_codecs(self._modalities)
        LatentCodec(vae, self._modalities)  # fails here, not at the first call, where VAE and modalities don't fit
        if vae.config.latent_channels != transformer.config.in_channels:
            ours, theirs = transformer.config.in_channels, vae.config.latent_channels
            raise UserError(f"the transformer reads {ours} latent channels, the VAE makes {theirs}")
        if text_encoder is not None:
            self.prompt_encoder()  # fails here, not at the first prompt, where parts don't fit

    @property
    def modalities(self) -> dict[str, Modality]:
        """Name -> what the modality means, in the order of dimension M."""
        return dict(self._modalities)

    @property
    def id2label(self) -> dict[int, str]:
        """Class id -> name; empty if classes have no names."""
        return dict(self._id2label)

    @property
    def labels(self) -> dict[str, int]:
        """Every name that ``class_labels`` understands -> class id."""
        return label_ids(self._id2label)

    @property
    def native_size(self) -> int:
        """Height and width in pixels that the transformer was built for; the longer side where it is not square."""
        return max(self.native_shape)

    @property
    def native_shape(self) -> tuple[int, int]:
        """(height, width) in pixels that the transformer was built for."""
        scale = LatentCodec(self.vae, self._modalities).downsampling
        height, width = self.transformer.latent_shape
        return height * scale, width * scale

    @property
    def dtype(self) -> torch.dtype:
        """The transformer's; encoders of prompts may have another."""
        return self.transformer.dtype

    def weights_digest(self) -> str:
        """16 hexadecimal digits that change with any weight of a network, or with their dtype."""
        networks = [self.transformer, self.vae, self.text_encoder, self.image_encoder]
        states = [network.state_dict() for network in networks if network is not None]
        return digest_tensors(*states, described=True)

    @property
    def execution_device(self) -> torch.device:
        """Where a call computes; weights that are offloaded may be elsewhere."""
        return self._execution_device

    @property
    def defaults(self) -> Defaults:
        """Steps and guidance of a call that names none."""
        return Defaults.of(self.config.get("defaults"))

    def default_steps(self, *, understanding: bool = False, prompt: bool = False) -> int:
        """Steps of a call that names none; ``understanding``: RGB is given whole, and neither category nor prompt."""
        return UNDERSTANDING_STEPS if understanding else self.defaults.steps(prompt=prompt)

    def enable_vae_slicing(self) -> None:
        """Decode one sample at a time: less memory for large batches."""
        self.vae.enable_slicing()

    def disable_vae_slicing(self) -> None:
        """Undo ``enable_vae_slicing``."""
        self.vae.disable_slicing()

    def enable_vae_tiling(self) -> None:
        """Decode large images tile by tile: less memory."""
        self.vae.enable_tiling()

    def disable_vae_tiling(self) -> None:
        """Undo ``enable_vae_tiling``."""
        self.vae.disable_tiling()

    @torch.no_grad()
    def __call__(
        self,
        class_labels: ClassLabel | Sequence[ClassLabel] | Tensor | Image.Image | Sequence[Image.Image] = None,
        conditions: Mapping[str, Any] | Sequence[Mapping[str, Any] | None] | None = None,
        num_images: int = 1,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        condition_guidance_scale: float = 1.0,
        condition_time: float = 0.005,
        depth_values: str = "auto",
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: OnStepEnd = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        *,
        prompt: Any = None,
        subjects: Any = None,
        negative_prompt: Any = None,
        fusing_scale: float | None = None,
        mask: Any = None,
        keep: str | Sequence[str] | None = None,
        strength: float = 1.0,
        num_estimation_steps: int = 1,
        seed: int | Sequence[int] | None = None,
        processing_resolution: int | None = None,
        match_input_resolution: bool = False,
        num_images_per_prompt: int | None = None,
        ensemble_size: int = 1,
        output_uncertainty: bool = False,
        internal_guidance_scale: float | None = None,
        internal_guidance_interval: tuple[float, float] | None = None,
    ) -> MultimodalDiTPipelineOutput | tuple[Any, ...]:
        """Generate every modality that is not given.

        Args:
            class_labels: id, name, None (no label), or a list of these, which makes one sample each. A PIL image or a list of
                them is taken as ``conditions={"rgb": images}``: understanding.
            conditions: modality -> its given values, one or a batch (list, array, tensor), in raw units. rgb:
                PIL image, uint8, or floats in [0, 1]; depth: metres (0, NaN, infinity = invalid), or relative
                depth as this pipeline returns it: floats that all lie in [0, 1], or 8 bits; normal: unit vectors
                (H, W, 3); segmentation: label ids (H, W). They are resized to the size of the output; conditions of
                one sample that differ in size are refused unless ``height`` and ``width`` are given. None in a list = that
                sample lacks the modality; a list holds the conditions of each sample, None = it has none. Maps may be
                (H, W, 3) with equal channels; (3, H, W) is a batch of three that differ.
            num_images: samples per label and condition, next to each other in the output. Networks see as many at a time
                as fit into memory.
            height, width: size of the output in pixels, multiples of the VAE's downsampling times the patch size;
                None = the model's own, also for conditions of another size.
            num_inference_steps: steps of the sampler. None = 1 where every sample has the whole RGB and neither label nor
                prompt (understanding), else the model's own, ``defaults``.
            guidance_scale: classifier-free guidance on class and prompt, away from neither or from the negative prompt;
                1 = off, None = the model's own, ``defaults``.
            guidance_interval: (low, high), the timesteps (0 = data, 1 = noise) between which guidance is on.
            condition_guidance_scale: guidance on the conditions, through their absence; 1 = off.
            condition_time: t at which conditions are held, 0 = clean; the model was trained with t_c in [0, 0.01].
            depth_values: what given depth holds: "metric" (distances in any unit, 0 = invalid), "relative" (the model's own
                space, any scale and shift), "near_white" (relative, near = large), or "auto", the rule above; what it
                guesses about a picture is logged.
            generator: one for the whole batch, or a list with one per sample.
            latents: initial noise (B, M, C, h, w) instead of the generator's; conditions take their noise from it too.
            output_type: "pil" (rgb as PIL images, the rest numpy), "np", "pt", or "latent".
            return_dict: False = a tuple of the fields that are not None.
            callback_on_step_end: called as (pipeline, step, timestep, {"latents": ...}) after each step; what it returns
                replaces the latents. It may set ``pipeline._interrupt``.
            callback_on_step_end_tensor_inputs: tensors the callback is given; "latents" (float32) is the only one.
            prompt: a text, such as "a red torus left of a blue cone", or a list of texts, one sample each. ``{word}`` marks
                the words that a subject's image stands for, ``{}`` an image without a word. Conditioners that are not ours
                may take something else. Prompt and class label are both used; a prompt that names other categories than
                its label's is refused.
            subjects: word -> image (PIL, or (image, mask) with a mask (H, W), True = subject), or images in the order of the
                braces; for a list of prompts a list of these. Images are read as ``conditions`` of rgb are.
            negative_prompt: a text, or a list; guidance leads away from it instead of from no prompt. None or "" = none.
            fusing_scale: α, how the prediction from text and subjects' images and the one from the text alone are fused: 0 =
                text, 1 = images (UMM-Diffusion, arXiv 2303.09319, eq. 8). None = 0.5 where the conditioner can leave the
                images out ("tiue"); refused for one that can't. Without images it changes nothing.
            mask: (H, W) of the conditions' size, True or 1 = generate anew, 0 = keep: array, tensor or PIL image (black =
                keep). Every modality is generated inside and kept outside; those that are not in ``conditions`` are
                estimated first. Outside, the given ones come back as they are.
            keep: modalities that stay as they are, given or estimated, while the others are generated anew, given or not:
                ``conditions={"rgb": image}, keep=["depth", "normal"]`` makes another picture of the same geometry (MMGen's
                translation). [] = none, for image-to-image with ``strength``. With ``mask``, they stay inside it too.
            strength: with ``mask`` or ``keep``: how far what is generated may go from the picture, 0 = nowhere, 1 = it starts
                from pure noise; the last ``num_inference_steps`` x ``strength`` steps are taken (SDEdit, arXiv 2108.01073).
            num_estimation_steps: steps of that estimate; one is enough where RGB is given.
            seed: in place of ``generator``: one for the whole batch, or a list with one per sample; the same numbers on every
                device.
            processing_resolution: longer side in pixels, in the proportions of what is given, in place of ``height`` and
                ``width``; None = the trained size.
            match_input_resolution: return everything at the size of what is given, which is then returned as it is; with
                ``mask`` what is outside.
            num_images_per_prompt: diffusers' name of ``num_images``.
            ensemble_size: estimates of a given picture, each from noise of its own, that are combined into one (Marigold, arXiv
                2312.02145): depth by the median after alignment by scale and shift, normals by the mean, labels by votes.
            output_uncertainty: also return where those estimates disagree, ``output.uncertainty``.
            internal_guidance_scale: w of internal guidance (arXiv 2512.24176), away from what a middle block predicts, in the
                same evaluation of the network; 1 = off. It needs a model with such a head. None = the model's own,
                ``defaults``, and off in understanding, where ``guidance_scale`` is named, and with a cache of blocks.
            internal_guidance_interval: (low, high), the timesteps between which that is on; None = the model's own.

        Returns:
            ``MultimodalDiTPipelineOutput``; a given modality is returned as it was understood (resized, in the
            output's units).

        Raises:
            UserError: anything above that is out of range, unknown, or doesn't fit together.
        """
        num_images = images_per_prompt(num_images, num_images_per_prompt)
        check_counts(num_images, num_inference_steps, num_estimation_steps)
        flags = {"match_input_resolution": match_input_resolution, "output_uncertainty": output_uncertainty}
        check_choices(condition_time, output_type, depth_values, return_dict=return_dict, **flags)
        on_step_end = StepCallback.of(
            callback_on_step_end, callback_on_step_end_tensor_inputs, self._callback_tensor_inputs
        )
        alpha = fusing_scale_of(self.transformer.conditioner, fusing_scale)

        # 1. What is asked for, judged before any network computes: given images, sizes, words
        device = self._execution_device
        codec = LatentCodec(self.vae, self._modalities, device=device)
        given_labels, conditions = split_images(class_labels, conditions)
        edit = read_edit(mask, keep, strength, self._modalities)
        samples = read_conditions(conditions, self.codecs, edit=edit.asked_by, options={"depth_values": depth_values})
        unit = codec.downsampling * self.transformer.config.patch_size
        sizes = read_sizes(
            height, width, processing_resolution, match_input_resolution, samples, native=self.native_shape, unit=unit
        )
        edit = edit.at(*sizes.made)
        words = self._read_words(given_labels, prompt, subjects, negative_prompt)
        images = encode_conditions(
            samples, self.codecs, *sizes.made, sizes.may_differ, region=edit.region, originals=match_input_resolution
        )
        batch = words.count(images.counts())
        check_labels(words, self._id2label)
        understanding = edit.asked_by is None and words.is_empty and images.everywhere(IMAGE)
        if num_inference_steps is None:
            num_inference_steps = self.default_steps(understanding=understanding, prompt=words.has_prompts)
        own = self.defaults
        scale, internal = own.guided(
            guidance_scale, internal_guidance_scale, prompt=words.has_prompts, understanding=understanding
        )
        if internal_guidance_scale is None and lacks_middle(self.transformer):
            internal = 1.0
        if internal_guidance_interval is None:
            internal_guidance_interval = own.internal_guidance_interval
        guidance = Guidance(
            scale, condition_guidance_scale, guidance_interval, alpha, internal, internal_guidance_interval
        )
        check_internal(internal, self.transformer)
        steps_taken(num_inference_steps, edit.strength)  # refuses before any work
        check_ensemble(
            ensemble_size, output_uncertainty, given=images, edit=edit, latents=latents, output_type=output_type
        )
        check_call(batch * num_images, *sizes.largest, ensemble_size)
        words, images = words.repeat(batch, num_images), images.repeat(batch, num_images)
        batch = batch * num_images
        generator = seeded(seed, generator, batch)
        roles = images.roles(self._modalities, batch).to(device)  # (B, M)

        # 2. Prompt, noise, clean latents of the given modalities
        shape = (batch, len(self._modalities), codec.latent_channels, *codec.latent_size(*sizes.made))
        call, alone = Call(guidance.scale, guidance.internal_scale), has_hooks(self.components.values())
        with self._calls.begin(call, alone=alone):
            branches = self._make_branches(words)
            noise = initial_noise(latents, shape, generator, device)
            given = Given(clean_latents(codec, images, noise), noise, condition_time)
            denoise = Denoiser(self, call, guidance, generator)

            # 3. What an edit uses of the picture, and is not given, is estimated with no prompt
            if not all(images.everywhere(name) for name in edit.used(self._modalities)):
                nothing = Branches(self.transformer.conditioner.null(batch).to(device))
                estimate = replace(denoise, guidance=replace(guidance, internal_scale=1.0))
                estimated = estimate(nothing, given, roles, num_estimation_steps)
                images = images.filled(completed(codec, estimated, images))
                given = replace(given, clean=estimated)
            given, roles = edit.pin(given, roles, codec)

            # 4. Denoise and decode, once for each member of the ensemble
            members = []
            for number in range(ensemble_size):
                if number > 0:
                    given = replace(given, noise=initial_noise(None, shape, generator, device))
                latents = denoise(
                    branches, given, roles, num_inference_steps, strength=edit.strength, on_step_end=on_step_end
                )
                if output_type != "latent":
                    members.append(decode(codec, self.codecs, latents, images, edit))

            # 5. What the caller wants of it
            if output_type == "latent":
                output = MultimodalDiTPipelineOutput(latents=latents)
            else:
                made, spread = combine(members, self.codecs, images)
                if match_input_resolution and sizes.given is not None:
                    made = at_size(made, self.codecs, images, edit, sizes.given)
                    spread = spread_at_size(spread, sizes.given)
                outputs = as_outputs(made, self.codecs, output_type, device)
                uncertainty = as_outputs(spread, self.codecs, output_type, device) if output_uncertainty else None
                output = MultimodalDiTPipelineOutput.from_modalities(outputs, self.codecs, uncertainty)
            if alone:
                self.maybe_free_model_hooks()
        return output if return_dict else output.to_tuple()
