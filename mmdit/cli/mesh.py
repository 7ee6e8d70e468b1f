"""``mmdit mesh``: a sample's picture, depth and normals become a textured mesh and a point cloud."""

from __future__ import annotations

from pathlib import Path

from mmdit.bounds import PositiveInt, PositiveNumber
from mmdit.errors import UserError


def mesh(
    samples: list[str],
    fov: PositiveNumber | None = None,
    focal: PositiveNumber | None = None,
    depth_range: tuple[float, float] | None = None,
    refine: bool = True,
    max_size: PositiveInt = 512,
    output: Path | None = None,
) -> None:
    """Make a textured mesh and a point cloud of samples.

    Writes mesh.glb (binary glTF with rgb as its texture) and points.ply (with colours) into each folder, and prints the camera.
    Both are in the camera's frame: x right, y up, the camera at 0 looking along -z. The mesh is torn where depth jumps beyond
    what the normals say. Without --fov or --focal the camera is estimated: the one whose normals of the depth map agree best
    with the sample's own, with the range of those that fit nearly as well.

    Args:
        samples: Folders of samples, as the other commands write them.
        fov: Horizontal field of view, degrees.
        focal: Focal length in pixels of the sample's images, in place of --fov.
        depth_range: Distances of the nearest and of the farthest point, in any unit, such as 0.5 8; without them the nearest is
            at 1, and the farthest is estimated.
        refine: Move points along their rays until they agree with the normals.
        max_size: Longer side in points; larger maps are made smaller, the texture is not.
        output: Folder for OUTPUT/NAME/mesh.glb and points.ply in place of the samples' own.
    """
    from mmdit.cli.common.output import prepare_folder
    from mmdit.geometry.camera import check_depth_range, check_focal, focal_of
    from mmdit.geometry.mesh import make_mesh, need_trimesh
    from mmdit.geometry.sample_folder import MESH, POINTS, read_geometry
    from mmdit.storage.files import write_atomically
    from mmdit.storage.names import number_repeats, safe_name, text_of

    if fov is not None and focal is not None:
        raise UserError(f"--fov {fov:g} and --focal {focal:g} are both given: give one of the two")
    half_widths = None if fov is None else focal_of(fov, "--fov")
    if depth_range is not None:
        check_depth_range(*depth_range, "--depth_range")
    need_trimesh()
    folders = [Path(sample) for sample in samples]
    found = [read_geometry(folder, max_size) for folder in folders]
    if output is not None:
        prepare_folder(output)
    names = number_repeats([safe_name(text_of(folder.resolve().name)) for folder in folders])
    for folder, name, geometry in zip(folders, names, found, strict=True):
        width = geometry.texture.shape[1]
        try:
            made = make_mesh(
                geometry.rgb,
                geometry.depth,
                geometry.normal,
                geometry.space,
                focal=half_widths if focal is None else check_focal(focal, width, "--focal"),
                depth_range=depth_range,
                refine=refine,
                texture=geometry.texture,
            )
            files = {MESH: made.glb(), POINTS: made.ply()}
        except UserError as error:
            raise UserError(f"{folder}: {error}") from None
        into = folder if output is None else output / name
        into.mkdir(parents=True, exist_ok=True)
        for file, content in files.items():
            write_atomically(into / file, content)
        print(f"{into / MESH}: {made.camera.words(width)}", flush=True)
