"""``mmdit data render``, ``label``, ``hypersim``, ``encode`` and ``check``."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from mmdit.bounds import AtATime, Devices, Nodes, NonNegativeInt, PositiveInt, Seed, Workers
from mmdit.errors import UserError
from mmdit.sources.labelling.settings import DtypeName, MarigoldSettings, MaskSettings

_MARIGOLD, _MASKS = MarigoldSettings(), MaskSettings()


def render(
    output: Path,
    num_samples: PositiveInt = 1000,
    split: str = "train",
    size: int = 64,
    seed: Seed = 0,
    num_workers: Workers | None = None,
    variety: bool = False,
    max_distractors: NonNegativeInt | None = None,
    composition: Literal["main", "subjects", "mixed"] = "main",
) -> None:
    """Render procedural scenes with exact ground truth.

    RGB, depth, normals and segmentation of one main object on a floor before a wall, and prompts.jsonl with captions and where
    their words are. Scenes depend on (seed, split, index) alone. Interrupted, the same command goes on; with a larger
    --num_samples it extends the split.

    Args:
        output: Dataset folder.
        num_samples: Scenes in the split.
        split: Name of the split; splits never share scenes.
        size: Height and width in pixels: 64 or more, divisible by 8.
        seed: Seed of all scenes of the dataset.
        num_workers: Processes; by default one for each usable core.
        variety: Add textures, gloss and more distractors.
        max_distractors: Most other objects in a scene; by default 1, with variety 3.
        composition: main, or subjects: for prompts, blocks of eight scenes with two subjects that come back, alone and as
            pairs, left and right of, in front of and behind each other; or mixed: both by turns.
    """
    missing = [name for name in ("mitsuba", "trimesh") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"rendering needs {' and '.join(missing)}: pip install 'multimodal-dit[scenes]'")
    from mmdit.sources.scenes.dataset import render_dataset

    report = render_dataset(
        output,
        num_samples,
        split=split,
        size=size,
        seed=seed,
        num_workers=num_workers,
        variety=variety,
        max_distractors=max_distractors,
        composition=composition,
    )
    print(f"{report.path}: {report.num_rendered} scenes rendered, {report.num_skipped} were there")


def label(
    images: Path,
    output: Path,
    depth: str = "depth-anything/Depth-Anything-V2-Small-hf",
    normal: str = "prs-eth/marigold-normals-v1-1",
    segmentation: str = "facebook/sam2.1-hiera-small",
    split: str = "train",
    size: int | None = None,
    licence: str = "unknown",
    marigold: MarigoldSettings = _MARIGOLD,
    masks: MaskSettings = _MASKS,
    dtype: DtypeName = "float32",
    batch_size: AtATime = 8,
    num_workers: Workers = 0,
    skip_bad: bool = False,
    accelerator: str = "auto",
    devices: Devices = 1,
    num_nodes: Nodes = 1,
) -> int:
    """Label a folder of images with depth, normals and segmentation.

    The folder holds images, or one folder of images per category as ImageNet does; the result is a dataset for 'data check'
    and 'data encode'. Each labeller is the local folder or the Hub id of a transformers model or a diffusers pipeline, or
    none. Depth: Depth Anything V2 (Small is Apache-2.0; Base and Large are CC BY-NC-4.0) or Marigold. Normals: Marigold.
    Segmentation: SAM or SAM 2 (masks without classes, coloured by a hash of the path), Mask2Former or OneFormer (classes).

    Interrupted, the same command goes on; images that were changed since are labelled again; with another split or modality
    it adds to the output. Images that can't be used are listed at the end, and the command exits with 2; all others are
    kept. With several devices or nodes each process takes its share of the images.

    Args:
        images: Folder of images, or of folders of images.
        output: Dataset folder.
        depth: Depth labeller.
        normal: Normals labeller.
        segmentation: Segmentation labeller.
        split: Name of the split that the images become.
        size: Square that images are cropped and resized to; by default they keep their size.
        licence: Of the images, for dataset.json.
        marigold: Settings of Marigold's pipelines.
        masks: Settings of SAM's mask generation.
        dtype: That the networks run in.
        batch_size: Images that are read at a time; labellers take them one by one.
        num_workers: Loader processes per process.
        skip_bad: Exit with 0 where some images can't be used; they are listed and left out either way.
        accelerator: auto, cpu, gpu.
        devices: Processes on this node, one device each.
        num_nodes: Nodes; start the same command on each as for torchrun or SLURM.
    """
    from transformers.utils import logging as transformers_logging

    from mmdit.cli.common.model import note, quiet_libraries
    from mmdit.sources.labelling.launcher import label_images
    from mmdit.sources.labelling.settings import LabellerSettings
    from mmdit.sources.labelling.table import load_labellers

    quiet_libraries()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    models = {"depth": depth, "normal": normal, "segmentation": segmentation}
    chosen = {name: model for name, model in models.items() if model != "none"}
    labellers = load_labellers(chosen, LabellerSettings(dtype, marigold, masks), note)
    report = label_images(
        images,
        output,
        labellers,
        split=split,
        size=size,
        licence=licence,
        batch_size=batch_size,
        num_workers=num_workers,
        accelerator=accelerator,
        devices=devices,
        num_nodes=num_nodes,
    )
    if report is None:
        return 0
    return _report_bad(report.bad, f"{report.path}: {report.num_samples} images labelled", skip_bad)


def hypersim(
    source: Path,
    output: Path,
    split: str = "train",
    split_csv: Path | None = None,
    cameras_csv: Path | None = None,
    num_workers: Workers | None = None,
    skip_bad: bool = False,
    allow_outside: bool = False,
) -> int:
    """Import Hypersim's own layout as a dataset.

    Its ground truth takes the place of labellers.

    Reads SOURCE/SCENE/images/scene_CAMERA_final_hdf5 and scene_CAMERA_geometry_hdf5, and SCENE/_detail. Distances along
    rays become depth along the optical axis, world normals become normals in the camera frame, semantic ids are NYU40's.
    Frames that lack a file or can't be read are listed at the end, and the command exits with 2; all others are kept.
    Interrupted, the same command goes on.

    Args:
        source: Folder of the scenes (ai_001_001, ...).
        output: Dataset folder.
        split: Name of the split that all frames become without --split_csv.
        split_csv: Hypersim's metadata_images_split_scene_v1.csv: public frames and their splits; by default source's, if any.
        cameras_csv: Hypersim's metadata_camera_parameters.csv: each scene's intrinsics; by default source's, or 60 degrees.
        num_workers: Processes; by default one for each usable core.
        skip_bad: Exit with 0 where some frames can't be used; they are listed and left out either way.
        allow_outside: Accept HDF5 files that link to files outside the source.
    """
    if importlib.util.find_spec("h5py") is None:
        raise UserError("Hypersim's files need h5py: pip install 'multimodal-dit[hypersim]'")
    from mmdit.sources.hypersim.dataset import import_hypersim

    report = import_hypersim(
        source,
        output,
        split=split,
        split_csv=split_csv,
        cameras_csv=cameras_csv,
        num_workers=num_workers,
        allow_outside=allow_outside,
    )
    counts = ", ".join(f"{name} {count}" for name, count in report.num_samples.items())
    return _report_bad(report.bad, f"{output}: {counts or 'no'} frames imported", skip_bad)


def _report_bad(bad: Sequence[object], kept: str, skip_bad: bool) -> int:
    for entry in bad:
        print(entry)
    if bad and not skip_bad:
        raise UserError(f"{len(bad)} problems, listed above ({kept}; the same command tries the others again)")
    print(kept)
    return 0


# Counts of processes and of images at a time; more can't be meant.
def check(data: Path, split: str | None = None, allow_outside: bool = False) -> int:
    """Read every file of a dataset and list what is wrong.

    Exits with 0 where all is well and with 2 where anything is wrong, after listing every bad sample.

    Args:
        data: Dataset folder, the one that holds dataset.json.
        split: Only this split; by default all.
        allow_outside: Accept manifests that name files outside the folder.
    """
    from mmdit.data.check import check_dataset

    report = check_dataset(data, split, allow_outside=allow_outside)
    for problem in report.problems:
        print(problem)
    counts = ", ".join(f"{name} {count}" for name, count in report.num_samples.items()) or "no split"
    if report.problems:
        raise UserError(
            f"{data}: {len(report.problems)} problems in {len(report.bad_samples)} samples, listed above ({counts} samples read)"
        )
    print(f"{data}: {counts} samples, nothing wrong")
    return 0


def encode(
    data: Path,
    output: Path,
    vae: str = "stabilityai/sd-vae-ft-mse",
    modalities: list[str] | None = None,
    splits: list[str] | None = None,
    size: int | None = None,
    depth_space: Literal["disparity", "depth"] | None = None,
    depth_quantiles: tuple[float, float] = (0.02, 0.98),
    mirrored: bool = True,
    teacher: str | None = None,
    patch_size: AtATime = 2,
    batch_size: AtATime = 32,
    shard_size: AtATime = 1024,
    num_workers: Workers = 0,
    skip_bad: bool = False,
    allow_outside: bool = False,
    accelerator: str = "auto",
    devices: Devices = 1,
    num_nodes: Nodes = 1,
) -> None:
    """Encode a dataset into latents for training.

    Stores the VAE's moments in half precision as safetensors shards, with an index and whitening statistics per modality. Says
    first how much disk it needs. Interrupted, the same command goes on; after samples were corrected or added, it encodes
    the shards that they are in. With several devices or nodes each process takes its
    share of the shards.

    Args:
        data: Dataset folder, the one that holds dataset.json.
        output: Folder of the latents.
        vae: Folder of a diffusers AutoencoderKL, a pipeline folder, a bundled model's name, or a Hub id.
        modalities: Which, in order; by default all of the dataset, e.g. [rgb,depth].
        splits: Which; by default all, train first (the statistics are the first one's).
        size: Height and width that files are resized to; by default as they are.
        depth_space: What the depth codec is linear in: disparity (1 / metres) or depth; by default that of the labeller of
            relative depth, if there was one, else disparity.
        depth_quantiles: Quantiles of each depth map that become -1 and 1.
        mirrored: Store each sample's mirror image too.
        teacher: Also store RGB features for the alignment loss: a folder, or a timm model such as vit_base_patch14_dinov2.
        patch_size: Of the transformer that will be aligned with the teacher: one feature per token.
        batch_size: Images at a time.
        shard_size: Samples in a shard.
        num_workers: Loader processes per process.
        skip_bad: Leave samples that can't be read out; by default all of them are named, and the split stays unfinished.
        allow_outside: Accept manifests that name files outside the folder.
        accelerator: auto, cpu, gpu.
        devices: Processes on this node, one device each.
        num_nodes: Nodes; start the same command on each as for torchrun or SLURM.
    """
    from mmdit.cli.common.model import load_vae
    from mmdit.data.folder import AlignedFolder
    from mmdit.data.manifest import list_splits, modalities_from_dataset, read_dataset_info, relative_depth_space
    from mmdit.encoders.codec import LatentCodec
    from mmdit.encoders.features import load_teacher
    from mmdit.encoders.precompute import Processes, encode_dataset
    from mmdit.launch import launch
    from mmdit.modalities import IMAGE
    from mmdit.modalities.table import codec_class, get_modalities

    info = read_dataset_info(data, allow_outside=allow_outside)
    names = list(modalities) if modalities is not None else list(info.modalities)
    space = depth_space or relative_depth_space(info) or "disparity"
    options = {"depth_space": space, "depth_quantiles": list(depth_quantiles)}
    settings = {name: codec_class(record).option_settings(options) for name, record in get_modalities(names).items()}
    records = modalities_from_dataset(info, names, settings)
    fabric = launch(accelerator, devices, num_nodes)
    autoencoder = load_vae(vae).to(fabric.device).eval()
    features = None
    if teacher is not None:
        split = splits[0] if splits else next(iter(list_splits(data)), "train")
        folder = AlignedFolder(data, split, records, size=size, allow_outside=allow_outside)
        height, width = LatentCodec(autoencoder, records).latent_size(*folder.first_good()[IMAGE].shape[-2:])
        features = load_teacher(teacher, (height // patch_size, width // patch_size)).to(fabric.device)
    encode_dataset(
        data,
        output,
        autoencoder,
        records,
        splits=splits,
        size=size,
        batch_size=batch_size,
        shard_size=shard_size,
        num_workers=num_workers,
        mirrored=mirrored,
        teacher=features,
        skip_bad=skip_bad,
        allow_outside=allow_outside,
        processes=Processes(fabric.global_rank, fabric.world_size, fabric.barrier),
    )
