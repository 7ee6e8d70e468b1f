"""``mmdit data label``, ``prompts`` and ``hypersim``: datasets of photographs."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Literal

from mmdit.bounds import AtATime, Devices, Nodes, TokenCount, Workers
from mmdit.cli.common.bad_samples import report_bad
from mmdit.errors import UserError
from mmdit.sources.labelling.settings import DtypeName, MarigoldSettings, MaskSettings
from mmdit.sources.prompts.settings import CropSettings, InterleavedSettings, PromptSettings, QualitySettings

_MARIGOLD, _MASKS = MarigoldSettings(), MaskSettings()
_CROPS, _INTERLEAVED, _QUALITY = CropSettings(), InterleavedSettings(), QualitySettings()


def label(
    images: Path,
    output: Path,
    depth: str = "depth-anything/Depth-Anything-V2-Small-hf",
    normal: str = "prs-eth/marigold-normals-v1-1",
    segmentation: str = "facebook/sam2.1-hiera-small",
    split: str = "train",
    size: str | None = None,
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
        size: Height x width in pixels that images are cropped and resized to, such as 128x192, or one number for a square; by
            default they keep their size.
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

    from mmdit.cli.common.image_size import read_size
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
        size=read_size(size),
        licence=licence,
        batch_size=batch_size,
        num_workers=num_workers,
        accelerator=accelerator,
        devices=devices,
        num_nodes=num_nodes,
    )
    if report is None:
        return 0
    return report_bad(report.bad, f"{report.path}: {report.num_samples} images labelled", skip_bad)


def prompts(
    data: Path,
    split: str = "train",
    pipeline: Literal["crops", "interleaved"] = "crops",
    captions: str | None = None,
    captioner: str | None = None,
    detector: str | None = None,
    grounder: str | None = None,
    segmenter: str | None = None,
    crops: CropSettings = _CROPS,
    interleaved: InterleavedSettings = _INTERLEAVED,
    quality: QualitySettings = _QUALITY,
    max_new_tokens: TokenCount = 96,
    dtype: DtypeName = "float32",
    batch_size: AtATime = 8,
    num_workers: Workers = 0,
    skip_bad: bool = False,
    allow_outside: bool = False,
    accelerator: str = "auto",
    devices: Devices = 1,
    num_nodes: Nodes = 1,
) -> int:
    """Describe photographs for training on prompts: captions, entities, boxes, crops and masks.

    Writes SPLIT/prompts.jsonl, and the pictures that it names. The pipeline crops is UMM-Diffusion's: an object detector
    whose labels are looked up in the caption, and a crop of each box. The pipeline interleaved is UNIMO-G's: a multimodal
    language model names the caption's entities, Grounding DINO finds them and SAM cuts them out. Captions are those of
    SPLIT/prompts.jsonl (kept as prompts.given.jsonl), else of a text file beside the image, one a line; a captioner
    writes what is missing.

    Each model is the local folder or the Hub id of a transformers model. Interrupted, the same command goes on; images and
    captions that were changed since are described again. Images that can't be used are listed at the end, and the command
    exits with 2; all others are kept. With several devices or nodes each process takes its share of the images.

    Args:
        data: Dataset folder, the one that holds dataset.json, as 'data label' makes it.
        split: Name of the split.
        pipeline: crops or interleaved.
        captions: Folder of text files named by the samples' ids; none: a captioner writes all captions.
        captioner: Image-to-text model for missing captions; for interleaved a multimodal language model, by default
            HuggingFaceTB/SmolVLM2-2.2B-Instruct.
        detector: Object detector such as DETR, RT-DETR or YOLOS, for crops; by default PekingU/rtdetr_v2_r50vd.
        grounder: Grounding DINO, for interleaved; by default IDEA-Research/grounding-dino-base.
        segmenter: SAM or SAM 2, for interleaved; by default facebook/sam-vit-large.
        crops: Settings of the pipeline crops, by default the paper's.
        interleaved: Settings of the pipeline interleaved.
        quality: Filters by CLIP; by default none.
        max_new_tokens: Most tokens of an answer of the captioner.
        dtype: That the networks run in.
        batch_size: Images that are read and described at a time; what is found in one depends on the others by rounding alone.
        num_workers: Loader processes per process.
        skip_bad: Exit with 0 where some images can't be used; they are listed and left out either way.
        allow_outside: Accept a manifest that names files outside the folder.
        accelerator: auto, cpu, gpu.
        devices: Processes on this node, one device each.
        num_nodes: Nodes; start the same command on each as for torchrun or SLURM.
    """
    from transformers.utils import logging as transformers_logging

    from mmdit.cli.common.model import note, quiet_libraries
    from mmdit.sources.prompts.dataset import make_prompts
    from mmdit.sources.prompts.table import load_pipeline

    quiet_libraries()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    models = {
        "captioner": captioner,
        "clip": quality.clip,
        "detector": detector,
        "grounder": grounder,
        "segmenter": segmenter,
    }
    settings = PromptSettings(crops, interleaved, quality, max_new_tokens, dtype)
    report = make_prompts(
        data,
        split,
        load_pipeline(pipeline, models, settings, note),
        captions=captions,
        allow_outside=allow_outside,
        batch_size=batch_size,
        num_workers=num_workers,
        accelerator=accelerator,
        devices=devices,
        num_nodes=num_nodes,
    )
    if report is None:
        return 0
    for reason, count in report.dropped.items():
        print(f"{report.path}: {count} images left out: {reason}")
    shares = "/".join(f"{100 * count / max(report.num_samples, 1):.0f}" for count in report.counts)
    kept = f"{report.path}: {report.num_samples} images described, with 0/1/2/3/4+ entities {shares}%"
    return report_bad(report.bad, kept, skip_bad)


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
    return report_bad(report.bad, f"{output}: {counts or 'no'} frames imported", skip_bad)
