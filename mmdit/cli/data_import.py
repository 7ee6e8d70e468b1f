"""``mmdit data import``: folders of the user's own aligned files become a dataset."""

from __future__ import annotations

from pathlib import Path

from mmdit.bounds import PositiveNumber
from mmdit.cli.common.bad_samples import report_bad
from mmdit.cli.common.depth_values import DepthValues


def import_dataset(
    rgb: Path,
    output: Path,
    depth: Path | None = None,
    normal: Path | None = None,
    segmentation: Path | None = None,
    split: str = "train",
    depth_values: DepthValues = "auto",
    depth_scale: PositiveNumber = 0.001,
    classes: Path | None = None,
    licence: str | None = None,
    skip_bad: bool = False,
) -> int:
    """Import folders of aligned files as a dataset.

    Files are matched by name, but for the suffix; subfolders count. A sample may lack a modality. Files are copied as they
    are (a JPEG stays a JPEG), but for relative depth, which becomes a 16-bit PNG, and depth of floats, which becomes .npy.
    A second import into OUTPUT adds its split, such as val.

    Interrupted, the same command goes on; files that were changed since are imported again. Samples with a bad file, or with
    files of different sizes, are listed at the end, and the command exits with 2; all others are kept.

    Args:
        rgb: Folder of images, of any size.
        output: Dataset folder.
        depth: Folder of depth: grey images of 8, 16 or 32 bits, .npy, .npz or .exr; see --depth_values.
        normal: Folder of normals: .npy of unit vectors (x right, y up, z towards the viewer), or RGB images, (n + 1) / 2 x 255.
        segmentation: Folder of label ids: indexed images, or grey ones of 8 or 16 bits; see --classes.
        split: Name of the split that they become.
        depth_values: What depth files hold, all alike: metric = distances, 0 invalid; relative = larger is farther;
            near_white = larger is nearer; auto takes 16-bit images and floats beyond 1 as metric, says so, and asks otherwise.
        depth_scale: Metres per unit of depth images of whole numbers.
        classes: Names of the segmentation classes: a text with a name per line, the first of label 0, or a .json list of
            {id, name, color}; by default labels are 0 to 63, without names.
        licence: Of the images, for dataset.json.
        skip_bad: Exit with 0 where some samples can't be used; they are listed and left out either way.
    """
    from mmdit.cli.common.model import note
    from mmdit.cli.common.options import refuse_idle
    from mmdit.errors import UserError
    from mmdit.sources.folders.classes import read_classes
    from mmdit.sources.folders.dataset import import_folders

    if classes is not None and segmentation is None:
        raise UserError(f"--classes {classes}: names labels, and no --segmentation is given")
    if depth is None:
        about = {"depth_values": depth_values, "depth_scale": depth_scale}
        refuse_idle(import_dataset, about, "says what depth files hold, and no --depth is given: give it")
    named = None if classes is None else read_classes(classes)
    given = {"rgb": rgb, "depth": depth, "normal": normal, "segmentation": segmentation}
    report = import_folders(
        {name: folder for name, folder in given.items() if folder is not None},
        output,
        split=split,
        depth_values=depth_values,
        depth_scale=depth_scale,
        classes=named,
        licence=licence,
        say=note,
    )
    return report_bad(report.bad, f"{report.path}: {report.num_samples} samples imported", skip_bad)
