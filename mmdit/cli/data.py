"""``mmdit data render``, ``encode`` and ``check``."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any, Literal

from mmdit.bounds import AtATime, Devices, Nodes, NonNegativeInt, PositiveInt, Seed, Workers
from mmdit.errors import UserError


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
    assets: Path | None = None,
    assets_unit: Literal["m", "cm", "mm", "inch"] = "m",
    assets_up: Literal["y", "z"] | None = None,
    hdri: Path | None = None,
    skip_bad: bool = False,
) -> None:
    """Render procedural scenes with exact ground truth, or scenes of your own meshes.

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
        assets: Folder of meshes (.obj, .gltf, .glb, .ply, .stl) that stand in the scenes at their real sizes instead of the
            solids. A subfolder's name, or that of the file, is the category.
        assets_unit: What the numbers of OBJ, PLY and STL are in; glTF is in metres.
        assets_up: Their axis that points up; by default y in OBJ, z in PLY and STL; in glTF it is y.
        hdri: With assets: an .hdr or .exr of a place, which lights the scenes; by default a sun does.
        skip_bad: With assets: leave meshes that can't be used out; by default all of them are named, and nothing is rendered.
    """
    missing = [name for name in ("mitsuba", "trimesh") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"rendering needs {' and '.join(missing)}: pip install 'multimodal-dit[scenes]'")
    from mmdit.cli.common.options import refuse_idle
    from mmdit.sources.scenes.dataset import render_dataset

    settings: dict[str, Any] = {
        "split": split,
        "size": size,
        "seed": seed,
        "num_workers": num_workers,
        "variety": variety,
        "max_distractors": max_distractors,
    }
    if assets is None:
        about = {"assets_unit": assets_unit, "assets_up": assets_up, "hdri": hdri, "skip_bad": skip_bad}
        refuse_idle(render, about, "is for scenes of your own meshes: give --assets, a folder of them, too")
        report = render_dataset(output, num_samples, composition=composition, **settings)
    else:
        from mmdit.sources.scenes.assets.dataset import render_assets
        from mmdit.sources.scenes.assets.reading import Units

        if composition != "main":
            raise UserError(f"--composition {composition}: scenes of --assets have a main object: leave it out")
        units = Units(assets_unit, assets_up)
        report = render_assets(output, assets, num_samples, units=units, hdri=hdri, skip_bad=skip_bad, **settings)
    print(f"{report.path}: {report.num_rendered} scenes rendered, {report.num_skipped} were there")


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
        num_problems, num_bad = len(report.problems), len(report.bad_samples)
        found = f"{num_problems} problem{'s' * (num_problems != 1)}"
        samples = f" in {num_bad} sample{'s' * (num_bad != 1)}" if num_bad else ""  # else of the dataset itself
        raise UserError(f"{data}: {found}{samples}, listed above (read: {counts} samples)")
    print(f"{data}: {counts} samples, nothing wrong")
    return 0


def encode(
    data: Path,
    output: Path,
    vae: str = "stabilityai/sd-vae-ft-mse",
    modalities: list[str] | None = None,
    splits: list[str] | None = None,
    size: str | None = None,
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
        size: Height x width in pixels that files are cropped and resized to, such as 128x192, or one number for a square; by
            default files stay as they are, and must have one size.
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
    from mmdit.cli.common.image_size import read_size
    from mmdit.cli.common.model import load_vae
    from mmdit.data.folder import AlignedFolder
    from mmdit.data.manifest import list_splits, modalities_from_dataset, read_dataset_info, relative_depth_space
    from mmdit.encoders.codec import LatentCodec
    from mmdit.encoders.features import load_teacher
    from mmdit.encoders.guarded import check_image_size
    from mmdit.encoders.precompute import Processes, encode_dataset
    from mmdit.launch import launch
    from mmdit.modalities import IMAGE
    from mmdit.modalities.table import codec_class, get_modalities

    pixels = read_size(size)
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
        folder = AlignedFolder(data, split, records, size=pixels, allow_outside=allow_outside)
        sample, codec = folder.first_good(), LatentCodec(autoencoder, records)
        check_image_size(folder, sample, codec.downsampling)
        height, width = codec.latent_size(*sample[IMAGE].shape[-2:])
        features = load_teacher(teacher, (height // patch_size, width // patch_size)).to(fabric.device)
    encode_dataset(
        data,
        output,
        autoencoder,
        records,
        splits=splits,
        size=pixels,
        batch_size=batch_size,
        shard_size=shard_size,
        num_workers=num_workers,
        mirrored=mirrored,
        teacher=features,
        skip_bad=skip_bad,
        allow_outside=allow_outside,
        processes=Processes(fabric.global_rank, fabric.world_size, fabric.barrier),
    )
