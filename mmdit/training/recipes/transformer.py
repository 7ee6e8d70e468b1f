"""Recipe "transformer": the multimodal DiT on latents."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from mmdit.data.prompted import PromptedLatents
from mmdit.encoders.codec import LatentCodec
from mmdit.encoders.precompute import encoder_fingerprint
from mmdit.encoders.prompt_encoder import FrozenPromptEncoder
from mmdit.errors import UserError, unknown_name
from mmdit.flow.objective import make_objective
from mmdit.flow.schedulers import make_scheduler
from mmdit.flow.timesteps import make_timestep_sampler
from mmdit.modalities import MODALITIES, Modality
from mmdit.models.config import get_size
from mmdit.models.transformer import MultimodalDiT
from mmdit.models.widen import start_from
from mmdit.pipelines.defaults import Defaults, check_internal
from mmdit.pipelines.loading import INDEX
from mmdit.pipelines.pipeline_multimodal_dit import MultimodalDiTPipeline
from mmdit.storage.component import load_component
from mmdit.storage.json_object import read_object
from mmdit.task import TaskMixture
from mmdit.training.alignment import AlignmentLoss
from mmdit.training.captions import check_captions
from mmdit.training.config import TrainingConfig
from mmdit.training.decoded_metrics import DecodedMetrics
from mmdit.training.frozen import FrozenNetworks
from mmdit.training.meaning import latents_meaning, prompts_meaning
from mmdit.training.module import TransformerModule
from mmdit.training.previews import Previews
from mmdit.training.recipes.data import LatentData, data_module, pretrained_folder, stored_data, synthetic_data
from mmdit.training.recipes.distillation import distillation
from mmdit.training.recipes.frechet import frechet_loss
from mmdit.training.recipes.lora import lora_base
from mmdit.training.recipes.prompts import attention_loss, prompt_encoder, prompt_reading
from mmdit.training.routing import token_routing
from mmdit.training.run import Run

logger = logging.getLogger(__name__)


def make_transformer(
    config: TrainingConfig,
    *,
    modalities: Sequence[str],
    num_classes: int,
    latent_size: int | tuple[int, int],
    in_channels: int,
    feature_dim: int | None = None,
    conditioner_settings: Mapping[str, Any] | None = None,
) -> MultimodalDiT:
    """Build the network of a configuration.

    Args:
        config: says all but what follows from the data.
        modalities: of the data, in order.
        num_classes: of the data.
        latent_size, in_channels: of the latents; one number for a square, or (height, width).
        feature_dim: width of what is aligned with, where the configuration aligns.
        conditioner_settings: what follows from the prompts' encoders; those of the configuration come before them.
    """
    model = config.model
    height, width = (latent_size, latent_size) if isinstance(latent_size, int) else latent_size
    size = get_size(model.size)
    size.update({key: getattr(model, key) for key in size if getattr(model, key) is not None})
    alignment: dict[str, Any] = {}
    if config.alignment is not None:
        alignment = {
            "alignment_depth": config.alignment.depth,
            "alignment_dim": feature_dim,
            "alignment_hidden_size": config.alignment.hidden_size,
            "alignment_projector": config.alignment.projector,
        }
    torch.manual_seed(config.seed)
    try:
        network = MultimodalDiT(
            modalities=list(modalities),
            sample_size=max(height, width),
            sample_shape=None if height == width else [height, width],
            in_channels=in_channels,
            patch_size=model.patch_size,
            mlp_ratio=model.mlp_ratio,
            num_classes=num_classes,
            class_dropout_prob=model.class_dropout_prob,
            qk_norm=model.qk_norm,
            position_embedding=model.position_embedding,
            time_embedding=model.time_embedding,
            prediction=config.objective.prediction,
            block=model.block,
            conditioner=model.conditioner,
            conditioner_settings={**(conditioner_settings or {}), **model.conditioner_settings},
            second_time=model.second_time,
            internal_guidance_depth=model.internal_guidance_depth,
            **size,
            **alignment,
        )
    except UserError as error:
        raise UserError(f"model: {error}") from None
    if model.pretrained is not None:
        _start_from(network, model.pretrained)
    for beginning, name in model.weights_from.items():
        _take_weights(network, beginning, name)
    if model.trainable is not None:
        train_only(network, model.trainable)
    if model.gradient_checkpointing:
        network.enable_gradient_checkpointing()
    return network


def train_only(network: MultimodalDiT, beginnings: Sequence[str]) -> None:
    """Freeze all weights but those whose name begins with one of ``beginnings``, where ``*`` stands for anything.

    Raises UserError where none does.
    """
    for beginning in beginnings:
        _names_with(network, beginning, "model.trainable")
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(begins_with(name, beginnings))


def _names_with(network: MultimodalDiT, beginning: str, key: str) -> list[str]:
    """Names of the weights that begin so. Raises UserError, which names the configuration's ``key``, where none does."""
    names = [name for name, _ in network.named_parameters()]
    found = [name for name in names if begins_with(name, [beginning])]
    if not found:
        parts = sorted({".".join(name.split(".")[:2]) for name in names})
        raise unknown_name(f"beginning in {key}", beginning, parts)
    return found


def begins_with(name: str, beginnings: Sequence[str]) -> bool:
    """Whether a weight's name begins with one of ``beginnings``, where ``*`` stands for anything: "blocks.*.cross"."""
    return any(fnmatchcase(name, f"{beginning}*") for beginning in beginnings)


def _start_from(network: MultimodalDiT, name: str) -> None:
    folder = pretrained_folder(name)
    trained = load_component(folder / "transformer", MultimodalDiT)
    try:
        start_from(network, trained)
    except UserError as error:
        raise UserError(f"model.pretrained {name} does not fit the model section: {error}") from error


def _take_weights(network: MultimodalDiT, beginning: str, name: str) -> None:
    key = "model.weights_from"
    wanted = _names_with(network, beginning, key)
    ours = network.state_dict()
    theirs = load_component(pretrained_folder(name, f"{key} {beginning}:") / "transformer", MultimodalDiT).state_dict()
    for each in wanted:
        if each not in theirs or theirs[each].shape != ours[each].shape:
            there = f"{list(theirs[each].shape)} there" if each in theirs else "not there"
            raise UserError(f"{key} {beginning}: {name}: {each} is {list(ours[each].shape)} here and {there}")
    network.load_state_dict({each: theirs[each] for each in wanted}, strict=False)


def loss_weights(config: TrainingConfig, modalities: Mapping[str, Modality]) -> dict[str, float]:
    """Weight of each modality of the data. Those that the data lack are ignored, and said so: a recipe serves many data.

    Raises:
        UserError: a name of no modality at all, a weight that is negative or not finite, or none above 0.
    """
    weights = {name: modality.loss_weight for name, modality in modalities.items()}
    given = config.objective.loss_weights or {}
    for name, weight in given.items():
        if name not in weights and name not in MODALITIES:
            raise unknown_name("modality in objective.loss_weights", name, MODALITIES)
        if not 0 <= weight < math.inf:
            raise UserError(f"objective.loss_weights.{name} is {weight:g}: give a number, at least 0")
    if ignored := [name for name in given if name not in weights]:
        listed, there = ", ".join(ignored), ", ".join(weights)
        logger.warning("objective.loss_weights names %s: ignored, the data have %s", listed, there)
    weights |= {name: float(weight) for name, weight in given.items() if name in weights}
    if not any(weights.values()):
        raise UserError(f"objective.loss_weights are 0 for all of {', '.join(weights)}: nothing would be trained")
    return weights


def _check_patches(patch: int, data: LatentData) -> None:
    """Refuse latents that don't divide into patches, in the words of images."""
    if not any(side % patch for side in data.latent_shape):
        return
    scale = LatentCodec(data.vae, data.modalities).downsampling
    height, width = (side * scale for side in data.latent_shape)
    fitting = "x".join(str(max(1, side // patch) * patch * scale) for side in data.latent_shape)
    raise UserError(
        f"{data.where}: images of {height} x {width} pixels (height x width) do not divide into patches of "
        f"{patch * scale}: encode with another --size, such as {fitting}"
    )


def _new_network(config: TrainingConfig, data: LatentData, prompts: FrozenPromptEncoder | None) -> MultimodalDiT:
    return make_transformer(
        config,
        modalities=list(data.modalities),
        num_classes=len(data.categories),
        latent_size=data.latent_shape,
        in_channels=int(data.vae.config.latent_channels),
        feature_dim=data.feature_dim,
        conditioner_settings={} if prompts is None else {**prompts.widths, "max_subjects": prompts.max_subjects},
    )


def transformer_run(config: TrainingConfig) -> Run:
    """Recipe "transformer": the multimodal DiT on latents, or with lora what is added to a trained one."""
    base = None if config.lora is None else lora_base(config)
    if base is not None:
        config = base.of(config)
    data = synthetic_data(config) if config.data.path is None else stored_data(config)
    if base is not None:
        data = base.adopt(data)
    _check_patches(config.model.patch_size, data)
    prompts = prompt_encoder(config)
    network = _new_network(config, data, prompts) if base is None else base.network_for(prompts)
    for split in (data.train, data.val):
        if prompts is not None and isinstance(split, PromptedLatents):
            check_captions(split, prompts)
    internal_scale = config.objective.internal_guidance_scale
    check_internal(internal_scale, network, "objective.internal_guidance_scale")
    codec = LatentCodec(data.vae.eval().requires_grad_(False), data.modalities)
    weights = loss_weights(config, data.modalities)
    objective = make_objective(
        config.objective.name,
        settings=config.objective.settings,
        mixture=TaskMixture(config.task.mixture, list(data.modalities), config.task.absent_share),
        timesteps=make_timestep_sampler(config.objective.timesteps, **config.objective.timestep_settings),
        loss_weights=weights,
        prediction=config.objective.prediction,
        max_condition_time=config.objective.max_condition_time,
        pure_noise_share=config.objective.pure_noise_share,
    )
    if objective.needs_second_time and not network.config.second_time:
        raise UserError(
            f"objective.name {config.objective.name} trains steps from one time to another, and the network has one time: set "
            "model.second_time: true"
            + ("" if base is None else f", which model.pretrained {base.name} lacks: train it so first")
        )
    if objective.takes_derivative and network.config.internal_guidance_depth is not None:
        raise UserError(
            f"objective.name {config.objective.name} takes the network's derivative, which the head of "
            "model.internal_guidance_depth has no loss for: set that to null, or take solution_flow"
        )
    if network.next_time_embed is not None and not objective.needs_second_time:
        network.next_time_embed.requires_grad_(False)  # no loss reaches it, and DDP waits for all that is trained
    attention = attention_loss(config, network)
    if config.objective.draws_per_sample > 1 and attention.blocks:
        raise UserError(
            f"objective.draws_per_sample is {config.objective.draws_per_sample}, and the attention loss counts what a batch "
            "names once: set prompts.attention_loss_weight: 0, or draws_per_sample: 1"
        )
    module = TransformerModule(
        network,
        objective,
        frozen=FrozenNetworks(codec, data.teacher, prompts),
        optimizer=config.optimizer,
        seed=config.seed,
        max_steps=config.trainer.max_steps,
        alignment=AlignmentLoss.of(config.alignment),
        hide_prompt_beside="rgb" if config.model.drop_class_given_rgb else None,
        attention=attention,
        routing=token_routing(config, network, attention.blocks),
        internal_weight=config.objective.internal_guidance_weight,
        frechet=frechet_loss(config, network, data, codec, objective.scheduler),
        distillation=distillation(config, network, data, prompts),
        draws_per_sample=config.objective.draws_per_sample,
    )
    module.meaning |= latents_meaning(data.modalities.values(), data.categories)
    if config.data.path is not None:  # synthetic latents are of no VAE
        module.meaning["vae"] = encoder_fingerprint(data.vae)
    if prompts is not None:
        module.meaning |= prompts_meaning(prompts)
    if base is not None:
        module.meaning |= base.meaning
    modalities = {name: modality.replace(loss_weight=weights[name]) for name, modality in data.modalities.items()}
    defaults = dict(objective.sampling_defaults or _guidance_on_prompts(config))
    if internal_scale != 1:
        defaults["internal_guidance_scale"] = internal_scale
    Defaults.of(defaults)  # what the export refuses is found out now

    def make_pipeline(transformer: MultimodalDiT = network) -> MultimodalDiTPipeline:
        id2label = dict(enumerate(data.categories))
        encoders = {} if prompts is None else prompts.components
        scheduler = make_scheduler(objective.scheduler, config.objective.sampling_shift)
        pipe = MultimodalDiTPipeline(
            transformer, data.vae, scheduler, modalities, id2label, defaults=defaults or None, **encoders
        )
        if data.rendered and config.model.pretrained is None:  # the card says so
            pipe.photographs = False
        return pipe

    def export(folder: Path, weights: Mapping[str, Tensor] | None = None) -> None:
        trained = without_projector(network.config, network.state_dict() if weights is None else weights)
        make_pipeline(trained).save_pretrained(folder, safe_serialization=True)

    # Previews sample in one process, which holds no more than a slice of sharded weights.
    callbacks = [] if config.trainer.strategy == "fsdp2" else _previews(config, data, make_pipeline)
    height, width = (side // config.model.patch_size for side in data.latent_shape)
    loaders = data_module(config, data.train, data.val, prompt_reading(prompts, attention, (height, width)))
    if base is not None:
        return Run(module, loaders, base.export, "lora", callbacks)
    return Run(module, loaders, export, "pipeline", callbacks)


def _guidance_on_prompts(config: TrainingConfig) -> dict[str, Any]:
    """Of the model that this one begins with, where it has its own."""
    if config.model.pretrained is None or config.prompts is None:
        return {}
    index = read_object(pretrained_folder(config.model.pretrained) / INDEX)
    own = Defaults.of(index.get("defaults")).prompt_guidance_scale
    return {} if own is None else {"prompt_guidance_scale": own}


def _previews(
    config: TrainingConfig, data: LatentData, make_pipeline: Callable[[], MultimodalDiTPipeline]
) -> list[Callback]:
    """What samples at each validation: grids, and decoded metrics."""
    num_samples, num_measured = config.preview.num_samples, config.preview.num_measured
    count = max(num_samples, num_measured)
    if data.val is None or count == 0:
        return []
    samples = [data.val[i] for i in range(min(count, len(data.val)))]  # type: ignore[arg-type]
    moments = torch.stack([sample["moments"] for sample in samples])
    labels = torch.tensor([int(sample["category"]) for sample in samples])
    prompts = None
    if config.prompts is not None:
        prompts = [(sample["caption"], sample["subjects"]) for sample in samples[:num_samples]]
    callbacks: list[Callback] = [
        Previews(make_pipeline, moments[:num_samples], labels[:num_samples], config.preview, prompts)
    ]
    if num_measured > 0:
        whole = [i for i, sample in enumerate(samples) if sample["present"].all()][:num_measured]
        names = [data.categories[i] if i >= 0 else None for i in labels[whole].tolist()]
        callbacks.append(DecodedMetrics(make_pipeline, moments[whole], names, config.data.batch_size))
    return callbacks


def without_projector(config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> MultimodalDiT:
    """Build a new network from whole weights, without the alignment projector, which only training needs."""
    values = {key: value for key, value in config.items() if not key.startswith("_")}
    copy: MultimodalDiT = MultimodalDiT.from_config({**values, "alignment_depth": None})
    copy.load_state_dict({k: v for k, v in weights.items() if not k.startswith("projector.")})
    return copy
