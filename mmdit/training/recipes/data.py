"""What recipes train on: latents from disk or synthetic, or the images of a dataset folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers import AutoencoderKL
from torch.utils.data import Dataset

from mmdit.data.datamodule import ResumableDataModule
from mmdit.data.description import is_rendered
from mmdit.data.folder import AlignedFolder
from mmdit.data.latents import LatentShards, LatentsWithImages, read_latents_info
from mmdit.data.manifest import modalities_from_dataset, read_dataset_info
from mmdit.data.prompted import PromptDraw, PromptedLatents
from mmdit.data.synthetic import SyntheticLatents
from mmdit.encoders.features import load_teacher
from mmdit.encoders.precompute import encoder_fingerprint, fingerprint
from mmdit.encoders.vae_teacher import VAETeacher
from mmdit.errors import UserError, unknown_name
from mmdit.modalities import MODALITIES, Modality, get_modalities
from mmdit.modalities.table import build_codecs, codec_class
from mmdit.pipelines.loading import INDEX, bundled_models
from mmdit.storage.component import load_component
from mmdit.storage.json_object import read_object
from mmdit.storage.requests import Request
from mmdit.training.alignment import target_width
from mmdit.training.batch_size import check_batch
from mmdit.training.config import LATENTS, AlignmentConfig, TrainingConfig
from mmdit.training.frozen import Teacher

Images = TypeVar("Images", bound=Dataset[Any])


# Of a modality, what the data may have otherwise than a model: its loss's weight, and where the model brings it, the whitening.
_WEIGHT = "loss_weight"
_FREE = {_WEIGHT, "latents_mean", "latents_std"}


def pretrained_folder(name: str, key: str = "model.pretrained") -> Path:
    """What ``key`` says, a pipeline folder or a bundled name -> the folder. Raises UserError for one without a network."""
    folder = bundled_models().get(name, Path(name))
    if not (folder / "transformer").is_dir():
        raise UserError(f"{key} {name}: give a pipeline folder, with a subfolder transformer/")
    return folder


def _pretrained_whitening(modality: Modality, config: TrainingConfig) -> Modality:
    pretrained = config.model.pretrained
    if pretrained is None:
        raise UserError(
            "data.whitening 'pretrained' is that of model.pretrained, which is null: give a pipeline folder"
        )
    known = read_object(pretrained_folder(pretrained) / INDEX).get("modalities") or {}
    if modality.name not in known:  # a modality that is new to the model
        return modality
    trained = Modality.from_dict(known[modality.name])
    where, name = f"data.path {config.data.path}", f"model.pretrained {pretrained}"
    _check_modality(modality, trained, {*_FREE, "classes"}, where, name)
    return modality.replace(latents_mean=trained.latents_mean, latents_std=trained.latents_std)


# Name -> (modality of the data, the configuration) -> modality. Without its own statistics a modality's latents are scaled by
# the VAE's factor (``LatentCodec``).
WHITENINGS: dict[str, Callable[[Modality, TrainingConfig], Modality]] = {
    "dataset": lambda modality, _: modality,
    "vae": lambda modality, _: modality.replace(latents_mean=None, latents_std=None),
    "pretrained": _pretrained_whitening,
}


def data_module(
    config: TrainingConfig,
    train: Dataset[Any],
    val: Dataset[Any] | None,
    prepare: Callable[[Any], Any] | None = None,
) -> ResumableDataModule:
    """Batches for all steps of a run, each ``prepare``d where it is loaded. Raises UserError for a batch that can't be meant."""
    num_batches = config.trainer.max_steps * config.trainer.accumulate_grad_batches
    module = ResumableDataModule(
        train,
        val,
        batch_size=config.data.batch_size,
        num_batches=num_batches,
        num_workers=config.data.num_workers,
        seed=config.seed,
        prepare=prepare,
    )
    check_batch(config.data.batch_size, train, config.data.train_split, num_nodes=config.trainer.num_nodes)
    return module


@dataclass
class LatentData:
    """Latents with what is needed to use them, from disk or synthetic."""

    train: Dataset[Any]
    val: Dataset[Any] | None
    vae: AutoencoderKL
    modalities: dict[str, Modality]
    categories: list[str]
    latent_shape: tuple[int, int]
    feature_dim: int | None
    teacher: Teacher | None = None
    rendered: bool = False  # whether all of it is known to be rendered scenes
    where: str = "data.path null"  # for messages


def synthetic_data(config: TrainingConfig) -> LatentData:
    """Latents that need nothing on disk, with a VAE of random weights."""
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
    if config.alignment is not None and config.alignment.teacher == LATENTS:
        feature_dim = target_width(len(names), int(vae.config.latent_channels), config.model.patch_size)
    train, val = (
        SyntheticLatents(len(names), num_samples=count, seed=seed, feature_dim=feature_dim)
        for count, seed in ((64, 0), (8, 1))
    )
    size = SyntheticLatents.latent_size
    categories = [f"class {i}" for i in range(SyntheticLatents.num_classes)]
    return LatentData(train, val, vae, get_modalities(names), categories, (size, size), feature_dim)


def stored_data(config: TrainingConfig) -> LatentData:
    """Latents that ``mmdit data encode`` wrote. Raises UserError for what is missing, damaged or unknown."""
    root = Path(str(config.data.path))
    info = read_latents_info(root)
    names = config.model.modalities or list(info.modalities)
    for name in names:
        if name not in info.modalities:
            if config.lora is not None and name in MODALITIES:
                raise UserError(
                    f"{root}: has no {name}, and a LoRA trains all modalities of model.pretrained ({', '.join(names)}): "
                    "encode data that have them; 'mmdit data label' makes what photographs lack"
                )
            raise unknown_name(f"modality of {root}", name, info.modalities)
    try:  # the export decodes by them, after all of the training
        build_codecs({name: info.modalities[name] for name in names})
    except UserError as error:
        raise UserError(f"{root / 'latents.json'}: {error}; encode the dataset again") from None
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
        if config.prompts is not None:
            splits[i] = _with_prompts(config, latents)
        elif config.alignment is not None:
            splits[i] = _with_images(config.alignment, latents, config.data.allow_outside)
        else:
            splits[i] = latents
    vae = _stored_vae(root / "vae", info.vae.get("fingerprint"))
    if config.data.whitening not in WHITENINGS:
        raise unknown_name("data.whitening", config.data.whitening, WHITENINGS)
    whiten = WHITENINGS[config.data.whitening]
    modalities = {name: whiten(info.modalities[name], config) for name in names}
    height, width = info.moments_shape[1:]
    teacher: Teacher | None = None
    feature_dim = None
    if stored_features and info.features is not None:
        feature_dim = int(info.features["shape"][1])
    elif config.alignment is not None and config.alignment.teacher == LATENTS:
        feature_dim = target_width(len(names), int(vae.config.latent_channels), config.model.patch_size)
    elif config.alignment is not None and config.alignment.teacher is not None:
        grid = (height // config.model.patch_size, width // config.model.patch_size)
        if config.alignment.teacher == VAETeacher.name:
            teacher = VAETeacher(vae, config.model.patch_size)
        else:
            teacher = load_teacher(config.alignment.teacher, grid)
        assert splits[0] is not None
        feature_dim = teacher.features(splits[0][0]["rgb"][None]).shape[-1]
    assert splits[0] is not None
    shape = (height, width)
    categories, rendered = list(info.categories), is_rendered(info.source.get("provenance"))
    return LatentData(
        splits[0],
        splits[1],
        vae,
        modalities,
        categories,
        shape,
        feature_dim,
        teacher,
        rendered,
        where=f"data.path {config.data.path}",
    )


def check_encoding(
    data: LatentData,
    name: str,
    vae: AutoencoderKL,
    modalities: Mapping[str, Modality],
    *,
    whitened: bool = True,
) -> None:
    """Refuse latents that mean something else than a model takes them for.

    Args:
        data: the latents, all of the model's modalities among them.
        name: of the model, for the message, such as "model.pretrained scenes64".
        vae, modalities: the model's.
        whitened: whether the model takes them as the data whiten them.

    Raises:
        UserError: another VAE, or a modality that is encoded or whitened otherwise.
    """
    if encoder_fingerprint(data.vae) != encoder_fingerprint(vae):
        raise UserError(f"{data.where}: latents of another VAE than that of {name}: encode with its own")
    for modality in modalities.values():
        _check_modality(data.modalities[modality.name], modality, {_WEIGHT} if whitened else _FREE, data.where, name)


def _check_modality(ours: Modality, theirs: Modality, free: set[str], where: str, name: str) -> None:
    own, other = ({key: value for key, value in each.to_dict().items() if key not in free} for each in (ours, theirs))
    if differences := Request(other).check(own):
        raise UserError(
            f"{where}: {ours.name} is encoded otherwise than {name} has it "
            f"({differences[0].replace('was', 'is', 1).replace('now', 'there')}): encode it as the model does"
        )


def _stored_vae(folder: Path, expected: Any) -> AutoencoderKL:
    """The VAE beside latents; ``expected``: its fingerprint, None = an earlier version did not say."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; run 'mmdit data encode' again, it writes the VAE too")
    try:
        vae = load_component(folder, AutoencoderKL, low_cpu_mem_usage=False)
    except UserError as error:
        raise UserError(f"{folder}: damaged ({error}); delete it and run 'mmdit data encode' again") from error
    if expected is not None and fingerprint(vae) != expected:
        raise UserError(
            f"{folder}: is another VAE than that of latents.json beside it: run 'mmdit data encode' again with its own"
        )
    return vae


def _with_images(alignment: AlignmentConfig, latents: LatentShards, allow_outside: bool) -> Dataset[Any]:
    if not alignment.sees_images:
        return latents
    if alignment.images is None:
        raise UserError(
            "alignment.teacher needs alignment.images: the dataset folder that the latents were encoded from"
        )
    modalities = modalities_from_dataset(read_dataset_info(alignment.images), ["rgb"])
    images = AlignedFolder(alignment.images, latents.split, modalities, mirrored=True, allow_outside=allow_outside)
    return LatentsWithImages(latents, images)


def _with_prompts(config: TrainingConfig, latents: LatentShards) -> PromptedLatents:
    settings = config.prompts
    assert settings is not None
    if settings.path is None:
        raise UserError("prompts.path is null: give the dataset folder that the latents were encoded from")
    if config.alignment is not None and config.alignment.sees_images:
        raise UserError(
            "alignment.teacher is not for runs with prompts: give 'latents', or store its features with "
            "'mmdit data encode --teacher'"
        )
    same = {field.name for field in fields(PromptDraw)} & vars(settings).keys()
    draw = PromptDraw(**{name: getattr(settings, name) for name in same}, masks=settings.attention_loss_weight > 0)
    return PromptedLatents(latents, settings.path, draw, config.seed, allow_outside=config.data.allow_outside)


def image_data(config: TrainingConfig) -> tuple[AlignedFolder, AlignedFolder | None, dict[str, Modality]]:
    path = dataset_path(config)
    modalities = modalities_from_dataset(read_dataset_info(path), config.model.modalities, config.autoencoder.codecs)
    return *_aligned(config, path, modalities), modalities


def images_as(
    config: TrainingConfig, modalities: Mapping[str, Modality], name: str
) -> tuple[AlignedFolder, AlignedFolder | None]:
    """Images of a dataset folder, encoded as a model's modalities are.

    Args:
        modalities: the model's, all of them in the dataset.
        name: of the model, for the message, such as "model.pretrained scenes64".

    Raises:
        UserError: a dataset that lacks one, or whose classes are others.
    """
    path = dataset_path(config)
    info = read_dataset_info(path)
    for modality in modalities_from_dataset(info, modalities).values():
        theirs = modalities[modality.name]
        ours = theirs.replace(**codec_class(modality).dataset_settings(info.facts))
        _check_modality(ours, theirs, set(), f"data.path {path}", name)
    return _aligned(config, path, modalities)


def _aligned(
    config: TrainingConfig, path: str, modalities: Mapping[str, Modality]
) -> tuple[AlignedFolder, AlignedFolder | None]:
    outside = config.data.allow_outside
    return both_splits(
        config, lambda split, mirrored: AlignedFolder(path, split, modalities, mirrored=mirrored, allow_outside=outside)
    )


def dataset_path(config: TrainingConfig, what: str = "a dataset folder") -> str:
    """data.path. Raises UserError where it is null, which says that the recipe needs ``what``."""
    if config.data.path is None:
        raise UserError(f"data.path is null: recipe {config.recipe!r} needs {what} (see 'mmdit data render')")
    return config.data.path


def both_splits(config: TrainingConfig, read: Callable[[str, bool], Images]) -> tuple[Images, Images | None]:
    """What ``read`` makes of the training split, mirrored too, and of the one that the run validates on; None = it doesn't."""
    train = read(config.data.train_split, True)
    if config.data.val_split is None or config.trainer.validate_every == 0:
        return train, None
    return train, read(config.data.val_split, False)


def sized_images(config: TrainingConfig, split: str, names: Sequence[str], size: int, mirrored: bool) -> AlignedFolder:
    """Modalities of a split's images, cropped and resized to ``size`` pixels. Raises UserError for one that the dataset lacks."""
    path = str(config.data.path)
    modalities = modalities_from_dataset(read_dataset_info(path), names)
    return AlignedFolder(path, split, modalities, size=size, mirrored=mirrored, allow_outside=config.data.allow_outside)
