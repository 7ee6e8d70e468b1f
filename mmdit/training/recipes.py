"""What can be trained: the transformer, the autoencoder and the small teacher, each a function from configuration to Run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.utils.data import Dataset

from mmdit.bounds import check_bounds
from mmdit.data.datamodule import ResumableDataModule
from mmdit.data.folder import AlignedFolder
from mmdit.data.latents import LatentShards, LatentsWithImages, read_latents_info
from mmdit.data.manifest import modalities_from_dataset, read_dataset_info
from mmdit.data.synthetic import SyntheticLatents
from mmdit.encoders.autoencoder_loss import AutoencoderObjective
from mmdit.encoders.codec import LatentCodec
from mmdit.encoders.features import FeatureTeacher, load_teacher
from mmdit.encoders.scene_teacher import SceneTeacher, SceneTeacherObjective
from mmdit.errors import UserError, one_line, unknown_name
from mmdit.flow.objective import FlowObjective
from mmdit.flow.schedulers import make_scheduler
from mmdit.flow.timesteps import make_timestep_sampler
from mmdit.modalities.modality import Modality, get_modalities
from mmdit.models.config import get_size
from mmdit.models.transformer import MultimodalDiT
from mmdit.models.widen import start_from
from mmdit.pipelines.pipeline_multimodal_dit import MultimodalDiTPipeline
from mmdit.task import TaskMixture
from mmdit.training.config import AlignmentConfig, TrainingConfig
from mmdit.training.decoded_metrics import DecodedMetrics
from mmdit.training.module import AutoencoderModule, TeacherModule, TransformerModule
from mmdit.training.previews import Previews
from mmdit.training.run import Run

# Names that the scenes give to what is no object.
BACKGROUND_CLASSES = ("floor", "wall")
# With no statistics of its own a modality's latents are scaled by the VAE's factor (``LatentCodec``).
WHITENINGS: dict[str, Callable[[Modality], Modality]] = {
    "dataset": lambda modality: modality,
    "vae": lambda modality: modality.replace(latents_mean=None, latents_std=None),
}


def _data_module(config: TrainingConfig, train: Dataset[Any], val: Dataset[Any] | None) -> ResumableDataModule:
    num_batches = config.trainer.max_steps * config.trainer.accumulate_grad_batches
    return ResumableDataModule(
        train, val, config.data.batch_size, num_batches, config.data.num_workers, seed=config.seed
    )


@dataclass
class _LatentData:
    """Latents with what is needed to use them, from disk or synthetic."""

    train: Dataset[Any]
    val: Dataset[Any] | None
    vae: AutoencoderKL
    modalities: dict[str, Modality]
    categories: list[str]
    latent_size: int
    feature_dim: int | None
    teacher: FeatureTeacher | SceneTeacher | None = None


def _synthetic_data(config: TrainingConfig) -> _LatentData:
    names = config.model.modalities or ["rgb", "depth", "normal", "segmentation"]
    torch.manual_seed(config.seed)
    vae = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        latent_channels=4,
    )
    feature_dim = 16 if config.alignment is not None else None
    train, val = (
        SyntheticLatents(len(names), num_samples=count, seed=seed, feature_dim=feature_dim)
        for count, seed in ((64, 0), (8, 1))
    )
    categories = [f"class {i}" for i in range(SyntheticLatents.num_classes)]
    return _LatentData(train, val, vae, get_modalities(names), categories, SyntheticLatents.latent_size, feature_dim)


def _stored_data(config: TrainingConfig) -> _LatentData:
    root = Path(str(config.data.path))
    info = read_latents_info(root)
    names = config.model.modalities or list(info.modalities)
    for name in names:
        if name not in info.modalities:
            raise unknown_name(f"modality of {root}", name, info.modalities)
    stored_features = config.alignment is not None and config.alignment.teacher is None
    splits: list[Dataset[Any] | None] = [None, None]
    for i, split in enumerate((config.data.train_split, config.data.val_split)):
        if split is None or (i == 1 and config.trainer.validate_every == 0):
            continue
        if i == 1 and not (root / split).is_dir():
            raise UserError(
                f"{root} has no split {split!r} to validate on: encode one, name another with --data.val_split, or give "
                "--data.val_split null to train without"
            )
        latents = LatentShards(root, split, names, features=stored_features, mirrored=i == 0)
        splits[i] = _with_images(config.alignment, latents) if config.alignment is not None else latents
    vae = _stored_vae(root / "vae")
    if config.data.whitening not in WHITENINGS:
        raise unknown_name("data.whitening", config.data.whitening, WHITENINGS)
    modalities = {name: WHITENINGS[config.data.whitening](info.modalities[name]) for name in names}
    height, width = info.moments_shape[1:]
    teacher, feature_dim = None, None
    if stored_features and info.features is not None:
        feature_dim = int(info.features["shape"][1])
    elif config.alignment is not None and config.alignment.teacher is not None:
        grid = (height // config.model.patch_size, width // config.model.patch_size)
        teacher = load_teacher(config.alignment.teacher, grid)
        feature_dim = teacher.features(splits[0][0]["rgb"][None]).shape[-1]  # type: ignore[index]
    assert splits[0] is not None
    size = max(height, width)
    return _LatentData(splits[0], splits[1], vae, modalities, list(info.categories), size, feature_dim, teacher)


def _stored_vae(folder: Path) -> AutoencoderKL:
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; run 'mmdit data encode' again, it writes the VAE too")
    try:
        return AutoencoderKL.from_pretrained(folder, use_safetensors=True, low_cpu_mem_usage=False)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{folder}: damaged ({one_line(error)}); delete it and run 'mmdit data encode' again"
        ) from error


def _with_images(alignment: AlignmentConfig, latents: LatentShards) -> Dataset[Any]:
    if alignment.teacher is None:
        return latents
    if alignment.images is None:
        raise UserError(
            "alignment.teacher needs alignment.images: the dataset folder that the latents were encoded from"
        )
    modalities = modalities_from_dataset(read_dataset_info(alignment.images), ["rgb"])
    return LatentsWithImages(latents, AlignedFolder(alignment.images, latents.split, modalities, mirrored=True))


def make_transformer(
    config: TrainingConfig,
    *,
    modalities: Sequence[str],
    num_classes: int,
    latent_size: int,
    in_channels: int,
    feature_dim: int | None = None,
) -> MultimodalDiT:
    """Build the network of a configuration.

    Args:
        config: says all but what follows from the data.
        modalities: of the data, in order.
        num_classes: of the data.
        latent_size, in_channels: of the latents.
        feature_dim: width of the teacher's features, where the configuration aligns.
    """
    model = config.model
    size = get_size(model.size)
    size.update({key: getattr(model, key) for key in size if getattr(model, key) is not None})
    alignment: dict[str, Any] = {}
    if config.alignment is not None:
        alignment = {
            "alignment_depth": config.alignment.depth,
            "alignment_dim": feature_dim,
            "alignment_hidden_size": config.alignment.hidden_size,
        }
    torch.manual_seed(config.seed)
    network = MultimodalDiT(
        modalities=list(modalities),
        sample_size=latent_size,
        in_channels=in_channels,
        patch_size=model.patch_size,
        mlp_ratio=model.mlp_ratio,
        num_classes=num_classes,
        class_dropout_prob=model.class_dropout_prob,
        qk_norm=model.qk_norm,
        position_embedding=model.position_embedding,
        time_embedding=model.time_embedding,
        prediction=config.objective.prediction,
        **size,
        **alignment,
    )
    if model.pretrained is not None:
        _start_from(network, Path(model.pretrained))
    if model.gradient_checkpointing:
        network.enable_gradient_checkpointing()
    return network


def _start_from(network: MultimodalDiT, folder: Path) -> None:
    if not (folder / "transformer").is_dir():
        raise UserError(f"model.pretrained {folder}: give a pipeline folder, with a subfolder transformer/")
    trained = MultimodalDiT.from_pretrained(folder / "transformer", use_safetensors=True)
    try:
        start_from(network, trained)
    except UserError as error:
        raise UserError(f"model.pretrained {folder} does not fit the model section: {error}") from error


def transformer_run(config: TrainingConfig) -> Run:
    """Recipe "transformer": the multimodal DiT on latents."""
    data = _synthetic_data(config) if config.data.path is None else _stored_data(config)
    network = make_transformer(
        config,
        modalities=list(data.modalities),
        num_classes=len(data.categories),
        latent_size=data.latent_size,
        in_channels=int(data.vae.config.latent_channels),
        feature_dim=data.feature_dim,
    )
    codec = LatentCodec(data.vae.eval().requires_grad_(False), data.modalities)
    weights = {name: modality.loss_weight for name, modality in data.modalities.items()}
    for name, weight in (config.objective.loss_weights or {}).items():
        if name not in weights:
            raise unknown_name("modality in objective.loss_weights", name, weights)
        weights[name] = float(weight)
    objective = FlowObjective(
        TaskMixture(config.task.mixture, list(data.modalities), config.task.absent_share),
        make_timestep_sampler(config.objective.timesteps, **config.objective.timestep_settings),
        weights,
        config.objective.prediction,
        config.objective.max_condition_time,
        config.objective.pure_noise_share,
    )
    module = TransformerModule(
        network,
        objective,
        codec,
        config.optimizer,
        config.seed,
        config.trainer.max_steps,
        0.0 if config.alignment is None else config.alignment.weight,
        config.model.drop_class_given_rgb,
        data.teacher,
    )
    modalities = {name: modality.replace(loss_weight=weights[name]) for name, modality in data.modalities.items()}

    def make_pipeline() -> MultimodalDiTPipeline:
        id2label = dict(enumerate(data.categories))
        return MultimodalDiTPipeline(network, data.vae, make_scheduler("euler"), modalities, id2label)

    callbacks: list[Callback] = []
    if data.val is not None and max(config.preview.num_samples, config.preview.num_measured) > 0:
        count = min(max(config.preview.num_samples, config.preview.num_measured), len(data.val))  # type: ignore[arg-type]
        samples = [data.val[i] for i in range(count)]
        moments = torch.stack([sample["moments"] for sample in samples])
        labels = torch.tensor([int(sample["category"]) for sample in samples])
        rows = slice(config.preview.num_samples)
        callbacks.append(Previews(make_pipeline, moments[rows], labels[rows], config.preview))
        if config.preview.num_measured > 0:
            whole = [i for i, sample in enumerate(samples) if sample["present"].all()][: config.preview.num_measured]
            names = [data.categories[i] if i >= 0 else None for i in labels[whole].tolist()]
            callbacks.append(DecodedMetrics(make_pipeline, moments[whole], names, config.data.batch_size))

    def export(folder: Path, weights: Mapping[str, Tensor] | None = None) -> None:
        id2label = dict(enumerate(data.categories))
        trained = without_projector(network.config, network.state_dict() if weights is None else weights)
        pipe = MultimodalDiTPipeline(trained, data.vae, make_scheduler("euler"), modalities, id2label)
        pipe.save_pretrained(folder, safe_serialization=True)

    if config.trainer.strategy == "fsdp2":
        callbacks = []  # they sample in one process, which holds no more than a slice of the weights
    return Run(module, _data_module(config, data.train, data.val), export, "pipeline", callbacks)


def without_projector(config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> MultimodalDiT:
    """Build a network of its own from whole weights, without the alignment projector, which only training needs."""
    values = {key: value for key, value in config.items() if not key.startswith("_")}
    copy: MultimodalDiT = MultimodalDiT.from_config({**values, "alignment_depth": None})
    copy.load_state_dict({k: v for k, v in weights.items() if not k.startswith("projector.")})
    return copy


def _image_data(config: TrainingConfig) -> tuple[AlignedFolder, AlignedFolder | None, dict[str, Modality]]:
    if config.data.path is None:
        raise UserError(f"data.path is null: recipe {config.recipe!r} needs a dataset folder (see 'mmdit data render')")
    modalities = modalities_from_dataset(
        read_dataset_info(config.data.path), config.model.modalities, config.autoencoder.codecs
    )
    train = AlignedFolder(config.data.path, config.data.train_split, modalities, mirrored=True)
    val = None
    if config.data.val_split is not None and config.trainer.validate_every > 0:
        val = AlignedFolder(config.data.path, config.data.val_split, modalities)
    return train, val, modalities


def autoencoder_run(config: TrainingConfig) -> Run:
    """Recipe "autoencoder": the VAE that all modalities share, on a dataset folder."""
    train, val, modalities = _image_data(config)
    settings = config.autoencoder
    levels = len(settings.block_out_channels)
    torch.manual_seed(config.seed)
    vae = AutoencoderKL(
        in_channels=3 * settings.unshuffle**2,
        out_channels=3 * settings.unshuffle**2,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=tuple(settings.block_out_channels),
        layers_per_block=settings.layers_per_block,
        latent_channels=settings.latent_channels,
        mid_block_add_attention=settings.mid_attention,
        scaling_factor=1.0,
    )
    with torch.no_grad():  # a narrow posterior to begin with: noise of std 1 would hide the image from the decoder
        vae.quant_conv.weight[settings.latent_channels :] *= 0.1
        vae.quant_conv.bias[settings.latent_channels :] = -4.0
    objective = AutoencoderObjective(modalities, **settings.settings)  # type: ignore[arg-type]
    module = AutoencoderModule(
        LatentCodec(vae, modalities), objective, config.optimizer, config.seed, config.trainer.max_steps
    )
    return Run(module, _data_module(config, train, val), lambda folder, _=None: vae.save_pretrained(folder), "vae", [])


def teacher_run(config: TrainingConfig) -> Run:
    """Recipe "teacher": a small ViT on labelled scenes, whose patch features align the transformer."""
    train, val, modalities = _image_data(config)
    for name in ("rgb", "normal", "segmentation"):
        if name not in modalities:
            raise UserError(
                f"recipe 'teacher' learns from rgb, normal and segmentation: {config.data.path} has no {name}"
            )
    height, width = train[0]["rgb"].shape[1:]
    if height != width:
        raise UserError(f"recipe 'teacher' takes square images: those in {config.data.path} are {height} x {width}")
    torch.manual_seed(config.seed)
    codec = train.codecs["segmentation"]
    teacher = SceneTeacher(len(train.info.categories), len(codec.ids), height, **vars(config.teacher))
    background = [i for i, name in enumerate(codec.names) if name in BACKGROUND_CLASSES]
    module = TeacherModule(
        teacher,
        SceneTeacherObjective(background_labels=background),
        codec,
        config.optimizer,
        config.seed,
        config.trainer.max_steps,
    )
    return Run(
        module, _data_module(config, train, val), lambda folder, _=None: teacher.save_pretrained(folder), "teacher", []
    )


RECIPES = {"transformer": transformer_run, "autoencoder": autoencoder_run, "teacher": teacher_run}


def build_run(config: TrainingConfig) -> Run:
    """Build what a configuration describes. Raises UserError for anything that doesn't fit."""
    if config.recipe not in RECIPES:
        raise unknown_name("recipe", config.recipe, RECIPES)
    check_bounds(config)
    if config.trainer.strategy == "fsdp2" and config.recipe != "transformer":
        raise UserError(
            f"trainer.strategy 'fsdp2' shards transformers: recipe {config.recipe!r} is small, train it with 'ddp'"
        )
    return RECIPES[config.recipe](config)
