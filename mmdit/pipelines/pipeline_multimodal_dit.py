"""The pipeline, and the only denoising loop of the repository.

Shapes: B samples, M modalities, C latent channels, h w latent size, H W pixels.
"""

from __future__ import annotations

import copy
import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers import AutoencoderKL, DiffusionPipeline
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils import is_accelerate_available, logging
from PIL import Image
from torch import Tensor

from mmdit.conditioning import Conditioning
from mmdit.encoders.codec import LatentCodec
from mmdit.errors import UserError, first_line
from mmdit.flow.guidance import Guidance, guided_velocity
from mmdit.flow.path import Given, linear_path, place, settle
from mmdit.flow.prediction import PREDICTIONS
from mmdit.flow.schedulers import begin_at, set_timesteps, steps_taken
from mmdit.modalities import IMAGE, Codec, Modality, build_codecs, get_modalities
from mmdit.modalities.resizing import antialiased
from mmdit.models.transformer import MultimodalDiT
from mmdit.pipelines.arguments import (
    check_arguments,
    images_per_prompt,
    initial_noise,
    output_size,
    processing_size,
    repeated,
    seeded,
    split_images,
)
from mmdit.pipelines.calls import Call, Calls, CallsMixin, has_hooks
from mmdit.pipelines.card import PHOTOGRAPHS, card_facts
from mmdit.pipelines.conditions import common_count, encode_conditions, given_size, read_conditions
from mmdit.pipelines.defaults import UNDERSTANDING_STEPS, Defaults
from mmdit.pipelines.editing import read_edit
from mmdit.pipelines.ensembling import check_ensemble, combine
from mmdit.pipelines.images import as_outputs, at_size, clean_latents, completed, decode
from mmdit.pipelines.labels import ClassLabel, label_ids, resolve_labels
from mmdit.pipelines.limits import (
    FiniteWatch,
    check_call,
    predict_in_batches,
)
from mmdit.pipelines.loading import OPTIONAL, check_folder, download, load_optional, resolve_model
from mmdit.pipelines.lora import LoraMixin
from mmdit.pipelines.pipeline_output import MultimodalDiTPipelineOutput
from mmdit.pipelines.prompted import PromptsMixin
from mmdit.pipelines.prompts import Branches, check_labels, fusing_scale_of, read_prompts
from mmdit.pipelines.saving import SavingMixin
from mmdit.storage.digests import digest_tensors
from mmdit.storage.weights import refuse_non_finite
from mmdit.task import Role

logger = logging.get_logger(__name__)


class MultimodalDiTPipeline(PromptsMixin, CallsMixin, SavingMixin, LoraMixin, DiffusionPipeline):
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

        defaults: ``num_inference_steps`` and ``guidance_scale`` of calls that name none; None = 25 and 2.0.

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
    photographs: bool | None = None  # whether the model saw any in training, as its card says; None = unknown

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
        self._modalities = _ordered_modalities(transformer.config.modalities, modalities)
        names = {int(key): str(name) for key, name in (id2label or {}).items()}  # JSON makes the keys strings
        self._id2label = dict(sorted(names.items()))
        self.register_to_config(
            modalities={name: modality.to_dict() for name, modality in self._modalities.items()},
            id2label=self._id2label or None,
        )
        if defaults is not None:  # else the folder is as it was before there were any
            Defaults.of(defaults)
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

    def default_steps(self, *, understanding: bool = False) -> int:
        """Steps of a call that names none; ``understanding``: RGB is given whole, and neither category nor prompt."""
        return UNDERSTANDING_STEPS if understanding else self.defaults.num_inference_steps

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any
    ) -> MultimodalDiTPipeline:
        """Load a bundled model by name, a local folder, or a Hub repository (looked up in this order).

        Takes diffusers' keyword arguments (``torch_dtype``, ``variant``, ``device_map``, components to replace, ...).
        Weights are read from safetensors only, and no code of the folder is run, whatever is trusted.
        ``DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)`` loads it too, by the folder's ``pipeline.py``,
        without the checks that are made here.

        Raises:
            UserError: no such model, the Hub can't be reached, or the folder lacks a file, is damaged, holds a pickle.
        """
        if kwargs.get("use_safetensors") is False:
            raise UserError("use_safetensors is False: weights are read from safetensors only")
        kwargs["use_safetensors"] = True
        kwargs.pop("trust_remote_code", None)
        if kwargs.pop("custom_pipeline", None) is not None:
            raise UserError("custom_pipeline is given: no code of a folder is run here; leave it out")
        if not is_accelerate_available():  # diffusers would fall back to this, with advice on the terminal
            kwargs.setdefault("low_cpu_mem_usage", False)
        name = str(pretrained_model_name_or_path)
        folder = resolve_model(name)
        if isinstance(folder, str):
            folder = download(super().download, folder, kwargs)
        check_folder(folder, "MultimodalDiTPipeline", passed=kwargs)
        given = dict(kwargs)
        if kwargs.get("device_map") is None:  # else diffusers places them, and loads them too
            kwargs |= load_optional(folder, kwargs)
        try:
            pipeline: MultimodalDiTPipeline = super().from_pretrained(str(folder), **kwargs)
        except UserError as error:
            raise UserError(f"model {name!r} can't be loaded: {error}") from error
        except Exception as error:  # a folder is data: whatever it makes the libraries raise is about it
            raise UserError(f"model {name!r} can't be loaded: {first_line(error)}") from error
        for component in {"transformer", "vae"} - set(given):
            refuse_non_finite(getattr(pipeline, component), folder / component)
        pipeline.register_to_config(_name_or_path=name)
        saw = card_facts(Path(folder)).get(PHOTOGRAPHS)
        pipeline.photographs = saw if isinstance(saw, bool) else None
        return pipeline

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
        callback_on_step_end: Callable[..., dict[str, Any]] | PipelineCallback | MultiPipelineCallbacks | None = None,
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
                sample lacks the modality; a list holds the conditions of each sample, None = it has none.
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

        Returns:
            ``MultimodalDiTPipelineOutput``; a given modality is returned as it was understood (resized, in the
            output's units).

        Raises:
            UserError: anything above that is out of range, unknown, or doesn't fit together.
        """
        if isinstance(callback_on_step_end, PipelineCallback | MultiPipelineCallbacks):
            callback_on_step_end_tensor_inputs = callback_on_step_end.tensor_inputs
        if guidance_scale is None:
            guidance_scale = self.defaults.guidance_scale
        num_images = images_per_prompt(num_images, num_images_per_prompt)
        counts = {
            "num_images": num_images,
            "num_inference_steps": 1 if num_inference_steps is None else num_inference_steps,
            "num_estimation_steps": num_estimation_steps,
        }
        check_arguments(
            counts,
            condition_time=condition_time,
            output_type=output_type,
            tensor_inputs=callback_on_step_end_tensor_inputs,
            known_tensors=self._callback_tensor_inputs,
        )
        alpha = fusing_scale_of(self.transformer.conditioner, fusing_scale)
        guidance = (condition_guidance_scale, guidance_interval, alpha)
        Guidance(guidance_scale, *guidance)  # refuses bad values before any work
        given_labels, conditions = split_images(class_labels, conditions)

        # 1. The request: labels, given images, roles
        device = self._execution_device
        codec = LatentCodec(self.vae, self._modalities, device=device)
        may_differ = height is not None and width is not None
        unit = codec.downsampling * self.transformer.config.patch_size
        conditions = {} if conditions is None else conditions
        options = {"depth_values": depth_values}
        edit = read_edit(mask, keep, strength, self._modalities)
        samples = read_conditions(
            conditions, self.codecs, edit=None if edit is None else edit.asked_by, options=options
        )
        input_size = None
        if match_input_resolution or processing_resolution is not None:
            input_size = given_size(samples)
        if processing_resolution is not None:
            if height is not None or width is not None:
                raise UserError("processing_resolution is given beside height or width: give one of the two")
            height, width = processing_size(processing_resolution, input_size, unit)
        height, width = output_size(height, width, native=self.native_shape, unit=unit)
        if match_input_resolution and input_size is None:
            raise UserError("match_input_resolution is True, but nothing is given: leave it out")
        region = None if edit is None else edit.region(height, width)
        labels = resolve_labels(given_labels, self.transformer.config.num_classes, self._id2label)
        words = read_prompts(self.transformer.config.conditioner, prompt, subjects, negative_prompt)
        images = encode_conditions(
            samples, self.codecs, height, width, may_differ, region=region, originals=match_input_resolution
        )
        numbers = {"class_labels": len(labels), **{name: len(x) for name, x in images.images.items()}}
        if len(samples) > 1 and not numbers.keys() - {"class_labels"}:  # a list, of which none gives anything
            numbers["conditions"] = len(samples)
        batch = common_count({**numbers, **words.counts()}, "inputs")
        check_labels(words, labels, self._id2label)
        check_call(batch * num_images, *max((height, width), input_size or (1, 1)))
        if num_inference_steps is None:
            asked = words.counts() or any(label is not None for label in labels)
            understanding = edit is None and not asked and images.everywhere(IMAGE)
            num_inference_steps = self.default_steps(understanding=understanding)
        strength = 1.0 if edit is None else edit.strength
        steps_taken(num_inference_steps, strength)  # refuses before any work
        check_ensemble(ensemble_size, output_uncertainty, given=images, edit=edit, latents=latents)
        if ensemble_size > 1 and output_type == "latent":
            raise UserError(f"ensemble_size is {ensemble_size}, and output_type 'latent': latents are not ensembled")
        labels = repeated(labels, batch, num_images)
        images = images.repeat(batch, num_images)
        batch = batch * num_images
        generator = seeded(seed, generator, batch)
        roles = torch.full((batch, len(self._modalities)), int(Role.GENERATE))  # (B, M)
        for index, name in enumerate(self._modalities):
            if name in images.present:
                roles[images.present[name], index] = int(Role.CONDITION)
        roles = roles.to(device)

        # 2. Prompt, noise, clean latents of the given modalities
        shape = (batch, len(self._modalities), codec.latent_channels, *codec.latent_size(height, width))
        call, alone = Call(guidance_scale=guidance_scale), has_hooks(self.components.values())
        with self._calls.begin(call, alone=alone):
            branches = self._make_branches(words, labels)
            noise = initial_noise(latents, shape, generator, device)
            given = Given(clean_latents(codec, images, noise), noise, condition_time)
            used = () if edit is None else self._modalities if edit.needs_all else edit.keep
            if not all(images.everywhere(name) for name in used):
                # What is kept of a picture is kept in all its modalities: those that are not given are estimated, with no prompt.
                estimated = self._denoise(
                    call,
                    Branches(self.transformer.conditioner.null(batch).to(device)),
                    given,
                    roles,
                    guidance=guidance,
                    num_inference_steps=num_estimation_steps,
                    generator=generator,
                )
                images = images.filled(completed(codec, estimated, images))
                given = replace(given, clean=estimated)
            if edit is not None:
                kept = torch.tensor([name in edit.keep for name in self._modalities], device=device)
                roles = torch.where(kept, int(Role.CONDITION), int(Role.GENERATE)).expand_as(roles)
            if region is not None:
                known = region.known(codec.downsampling).to(device).expand(batch, len(self._modalities), -1, -1)
                given = replace(given, known=known)

            # 3. Denoise and decode, once for each member of the ensemble
            members = []
            for number in range(ensemble_size):
                if number > 0:
                    given = replace(given, noise=initial_noise(None, shape, generator, device))
                latents = self._denoise(
                    call,
                    branches,
                    given,
                    roles,
                    guidance=guidance,
                    num_inference_steps=num_inference_steps,
                    strength=strength,
                    generator=generator,
                    callback_on_step_end=callback_on_step_end,
                    callback_tensor_inputs=callback_on_step_end_tensor_inputs,
                )
                if output_type != "latent":
                    members.append(decode(codec, self.codecs, latents, images, edit, region))

            # 4. What the caller wants of it
            if output_type == "latent":
                output = MultimodalDiTPipelineOutput(latents=latents)
            else:
                made, spread = (members[0], {}) if ensemble_size == 1 else combine(members, self.codecs, images)
                if match_input_resolution and input_size is not None:
                    made = at_size(made, self.codecs, images, edit, region, input_size)
                    spread = {
                        name: np.stack([antialiased(x, *input_size) for x in each]) for name, each in spread.items()
                    }
                outputs = as_outputs(made, self.codecs, output_type, device)
                uncertainty = as_outputs(spread, self.codecs, output_type, device) if output_uncertainty else None
                output = MultimodalDiTPipelineOutput.from_modalities(outputs, self.codecs, uncertainty)
            if alone:
                self.maybe_free_model_hooks()
        return output if return_dict else output.to_tuple()

    def _denoise(
        self,
        call: Call,
        asked: Branches,
        given: Given,
        roles: Tensor,
        *,
        guidance: tuple[float, tuple[float, float], float],
        num_inference_steps: int,
        strength: float = 1.0,
        generator: torch.Generator | list[torch.Generator] | None,
        callback_on_step_end: Callable[..., dict[str, Any]] | None = None,
        callback_tensor_inputs: Sequence[str] = (),
    ) -> Tensor:
        """The denoising loop: from ``given.noise`` to latents (B, M, C, h, w), the given ones in place.

        ``guidance``: the scale on the conditions, the interval, and α; the scale on the prompt is the call's, and may change
        in a callback. ``strength`` below 1 starts on the path from ``given.clean``, which is then all there.
        """

        def velocity(conditioning: Conditioning, roles: Tensor) -> Tensor:
            x_t, timesteps = place(latents, given, roles, t)
            x_in = x_t.to(self.transformer.dtype)
            output = predict_in_batches(self.transformer, x_in, timesteps, roles, conditioning)
            return PREDICTIONS[self.transformer.config.prediction].to_velocity(output.float(), x_t, timesteps)

        if getattr(self.transformer, "is_cache_enabled", False):
            self.transformer._reset_stateful_cache()
        scheduler = call.scheduler = copy.deepcopy(self.__dict__["scheduler"])
        set_timesteps(scheduler, num_inference_steps, given.noise.device)
        step_arguments: dict[str, Any] = {"return_dict": False}
        if "generator" in inspect.signature(scheduler.step).parameters:
            step_arguments["generator"] = generator
        first = begin_at(scheduler, num_inference_steps, strength)
        sigmas, timesteps = scheduler.sigmas.tolist()[first:], scheduler.timesteps[first:]
        start = given.noise
        if strength < 1:
            times = torch.full_like(roles, sigmas[0], dtype=torch.float32)
            start = linear_path(given.clean, given.noise, times).x_t
        latents, _ = place(start, given, roles, sigmas[0] if first else 1.0)
        call.num_timesteps = len(timesteps)
        finite = FiniteWatch(call.num_timesteps, self.transformer.dtype)
        with self.progress_bar(total=-(-len(timesteps) // scheduler.order)) as progress_bar:
            for i, timestep in enumerate(timesteps):
                if call.interrupt:
                    continue
                t = sigmas[i]
                scales = Guidance(call.guidance_scale, *guidance)  # a callback may have changed the first
                guided = guided_velocity(
                    velocity, asked.conditioning, asked.null, roles, guidance=scales, t=t, text=asked.text
                )
                latents = scheduler.step(guided, timestep, latents, **step_arguments)[0]
                finite.see(latents, i)
                # The scheduler moved the given latents too: put them back on their path, at the time reached.
                latents, _ = place(latents, given, roles, sigmas[i + 1])
                if callback_on_step_end is not None:
                    latents = self._call_back(callback_on_step_end, callback_tensor_inputs, i, timestep, latents)
                if i == call.num_timesteps - 1 or (i + 1) % scheduler.order == 0:
                    progress_bar.update()
        finite.check()
        return settle(latents, given, roles)

    def _call_back(
        self,
        callback: Callable[..., dict[str, Any]],
        names: Sequence[str],
        step: int,
        timestep: Tensor,
        latents: Tensor,
    ) -> Tensor:
        """Call ``callback_on_step_end``; returns the latents to go on with."""
        tensors = {"latents": latents} if "latents" in names else {}
        changed = (callback(self, step, timestep, tensors) or {}).get("latents", latents)
        if changed.shape != latents.shape:
            given_shape, own_shape = tuple(changed.shape), tuple(latents.shape)
            raise UserError(f"callback_on_step_end returned latents of shape {given_shape}: return {own_shape}")
        return changed


def _ordered_modalities(names: Sequence[str], modalities: Mapping[str, Any] | None) -> dict[str, Modality]:
    """In the transformer's order: JSON sorts the keys of a saved config."""
    if modalities is None:
        return get_modalities(names)
    if set(modalities) != set(names):
        raise UserError(f"modalities are {', '.join(modalities)}: the transformer has {', '.join(names)}")
    return {
        name: modalities[name] if isinstance(modalities[name], Modality) else Modality.from_dict(modalities[name])
        for name in names
    }
