"""Layout -> pixels with Mitsuba 3 (scalar_rgb): anti-aliased RGB without noise; depth, normals, ids at pixel centres.

RGB is lit by a sun from the side and by a weaker light from a little above the camera, whose shadows fall almost where
the camera does not see. Each is rendered on its own and they are added: with a single directional light the direct
integrator draws nothing at random, where two lights at once, or an ambient one, leave visible noise. Sub-pixels lie on
a regular grid, are averaged in linear light and encoded as sRGB. An environment takes the place of both lights; it is drawn
from at random, with more samples and always the same ones.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from mmdit.colours import decode_srgb, encode_srgb
from mmdit.sources.scenes.layout import Layout
from mmdit.sources.scenes.material import Material
from mmdit.sources.scenes.renderer import load_mitsuba
from mmdit.sources.scenes.shapes import Mesh, Part

SUPERSAMPLING = 4
SUN_WEIGHT = 0.6  # radiance of a white surface that faces the light
FILL_WEIGHT = 0.4
FILL_ABOVE_CAMERA_DEGREES = 8.0
ENVIRONMENT_SUPERSAMPLING = 12
BACKGROUND_REACH = 200.0  # half the side of the floor and the wall, metres
CORNER_COLOUR = "vertex_albedo"  # Mitsuba's name starts with what it belongs to
MIN_TOWARDS_VIEWER = 0.01  # cosine to the line of sight of a normal that is turned to the viewer


def _reflectance(mi: Any, material: Material, scale: float) -> dict[str, Any]:
    """Albedo as a Mitsuba texture; `scale` is the number of texture units along a surface's uv."""
    first = {"type": "rgb", "value": list(material.albedo)}
    if material.texture == "plain" or material.second is None:
        return first
    second = np.asarray(material.second)
    albedo = np.asarray(material.albedo)
    if material.texture == "checker":
        mix = (np.indices((2, 2)).sum(axis=0) % 2).astype(float)
    elif material.texture == "stripes":
        mix = np.repeat([[0.0, 1.0]], 2, axis=0)
    else:
        # A fixed pattern per material: its own colour seeds it.
        mix = np.random.default_rng(int(albedo.sum() * 1e6)).random((16, 16))
        scale /= 8
    pattern = albedo * (1 - mix[..., None]) + second * mix[..., None]
    return {
        "type": "bitmap",
        "bitmap": mi.Bitmap(pattern.astype(np.float32)),
        "raw": True,
        "filter_type": "nearest",
        "to_uv": mi.ScalarTransform3f().scale([scale, scale]),
    }


def _part_reflectance(mi: Any, part: Part, size: int) -> dict[str, Any]:
    """Albedo of a part as a Mitsuba texture, for pictures of ``size`` pixels."""
    if part.texture is None:
        if part.albedo.ndim == 2:
            return {"type": "mesh_attribute", "name": CORNER_COLOUR}
        return {"type": "rgb", "value": part.albedo.tolist()}
    texels = decode_srgb(part.texture / 255.0)
    # Finer than the samples of a pixel it would be drawn as noise.
    factor = max(1, round(max(texels.shape[:2]) / (SUPERSAMPLING * size)))
    texels = _reduced(texels, factor) * part.albedo
    return {"type": "bitmap", "bitmap": mi.Bitmap(texels.astype(np.float32)), "raw": True}


def _reduced(texels: np.ndarray, factor: int) -> np.ndarray:
    """Means of blocks of factor x factor texels (H, W, 3); incomplete blocks at the right and the bottom are smaller."""
    for axis in (0, 1):
        starts = np.arange(0, texels.shape[axis], factor)
        counts = np.diff(np.append(starts, texels.shape[axis]))
        sums = np.add.reduceat(texels, starts, axis=axis)
        texels = sums / (counts[:, None, None] if axis == 0 else counts[None, :, None])
    return texels


def _bsdf(mi: Any, material: Material, scale: float | None = None) -> dict[str, Any]:
    reflectance = _reflectance(mi, material, material.texture_scale if scale is None else scale)
    if material.gloss == 0:
        return {"type": "diffuse", "reflectance": reflectance}
    return {
        "type": "roughplastic",
        "diffuse_reflectance": reflectance,
        "alpha": 0.35 - 0.2 * material.gloss,
        "nonlinear": False,
    }


def _object_shapes(mi: Any, number: int, mesh: Mesh, material: Material, size: int) -> Iterator[Any]:
    """The Mitsuba shapes of ``layout.objects[number]``: one, or one for each part."""
    parts = [(mesh, _bsdf(mi, material))]
    if mesh.parts:
        parts = [
            (
                replace(mesh, faces=mesh.faces[part.start : part.stop], parts=(part,)),
                {"type": "diffuse", "reflectance": look},
            )
            for part in mesh.parts
            for look in [_part_reflectance(mi, part, size)]
        ]
    for place, (piece, bsdf) in enumerate(parts):
        name = f"object_{number}" if not mesh.parts else f"object_{number}_{place}"
        if mesh.two_sided:
            bsdf = {"type": "twosided", "bsdf": bsdf}
        yield _mitsuba_mesh(mi, name, piece, mi.load_dict(bsdf))


def _mitsuba_mesh(mi: Any, name: str, mesh: Mesh, bsdf: Any) -> Any:
    properties = mi.Properties()
    properties["bsdf"] = bsdf
    texcoords, colours = None, None
    if mesh.parts:
        corners = mesh.faces.ravel()
        part = mesh.parts[0]
        mesh = replace(
            mesh,
            vertices=mesh.vertices[corners],
            normals=mesh.normals[corners],
            faces=np.arange(len(corners)).reshape(-1, 3),
        )
        colours = part.albedo if part.albedo.ndim == 2 else None
        if part.texcoords is not None:
            texcoords = part.texcoords * (1, -1) + (0, 1)  # Mitsuba's first row of texels is at v = 0
    shape = mi.Mesh(
        name, len(mesh.vertices), len(mesh.faces), has_vertex_normals=True, has_vertex_texcoords=True, props=properties
    )
    parameters = mi.traverse(shape)
    parameters["vertex_positions"] = mesh.vertices.astype(np.float32).ravel()
    parameters["faces"] = mesh.faces.astype(np.uint32).ravel()
    if texcoords is None:
        # A flat mapping leaves no seam: along x + y / 2 and z.
        texcoords = np.stack([mesh.vertices[:, 0] + mesh.vertices[:, 1] / 2, mesh.vertices[:, 2]], axis=1)
    parameters["vertex_texcoords"] = texcoords.astype(np.float32).ravel()
    parameters.update()
    # Mitsuba recomputes normals when positions change, so ours are set afterwards.
    parameters["vertex_normals"] = mesh.normals.astype(np.float32).ravel()
    parameters.update()
    if colours is not None:
        shape.add_attribute(CORNER_COLOUR, 3, colours.astype(np.float32).ravel())
    shape.set_id(name)
    return shape


def _build(mi: Any, layout: Layout, meshes: list[Mesh], size: int) -> tuple[Any, dict[str, int]]:
    """The Mitsuba scene, and surface numbers by shape id: floor 0, wall 1, every part of layout.objects[k] 2 + k."""
    to_world = mi.ScalarTransform4f
    floor_texture = layout.floor.texture_scale * BACKGROUND_REACH / 4
    wall_texture = layout.wall.texture_scale * BACKGROUND_REACH / 4
    wall_normal = np.asarray(layout.wall_normal)
    wall_origin = -wall_normal * layout.wall_distance
    light = {"type": "directional", "irradiance": {"type": "rgb", "value": 1.0}}
    if layout.environment is not None:
        light = layout.environment.emitter(mi, layout.wall_normal)
    description: dict[str, Any] = {
        "type": "scene",
        "light": light,
        "floor": {
            "type": "rectangle",
            "to_world": to_world().scale([BACKGROUND_REACH, BACKGROUND_REACH, 1]),
            "bsdf": _bsdf(mi, layout.floor, floor_texture),
        },
        "wall": {
            "type": "rectangle",
            "to_world": to_world().look_at(
                origin=wall_origin.tolist(), target=(wall_origin + wall_normal).tolist(), up=[0, 0, 1]
            )
            @ to_world().scale([BACKGROUND_REACH, BACKGROUND_REACH, 1]),
            "bsdf": _bsdf(mi, layout.wall, wall_texture),
        },
    }
    surfaces = {"floor": 0, "wall": 1}
    for number, (placed, mesh) in enumerate(zip(layout.objects, meshes, strict=True)):
        for shape in _object_shapes(mi, number, mesh, placed.material, size):
            description[shape.id()] = shape
            surfaces[shape.id()] = 2 + number
    # Not optimized: shapes that are alike would be merged, and lose their ids.
    return mi.load_dict(description, optimize=False), surfaces


def _sensor(mi: Any, layout: Layout, size: int, samples: int) -> Any:
    camera = layout.camera
    ahead = np.asarray(camera.eye) - camera.world_to_camera[2]
    return mi.load_dict(
        {
            "type": "perspective",
            "fov": camera.fov,
            "near_clip": 0.05 * min(1.0, 2 * float(np.linalg.norm(camera.eye))),  # small things are looked at from near
            "far_clip": 1000.0,
            "to_world": mi.ScalarTransform4f().look_at(origin=list(camera.eye), target=ahead.tolist(), up=[0, 0, 1]),
            "film": {
                "type": "hdrfilm",
                "width": size,
                "height": size,
                "pixel_format": "rgb",
                "component_format": "float32",
                "rfilter": {"type": "box"},
            },
            # Without jitter: the centres of the cells of a square grid in the pixel, and its own centre for one sample.
            "sampler": {"type": "stratified", "sample_count": samples, "jitter": False},
        }
    )


def _lit(mi: Any, scene: Any, layout: Layout, size: int, samples: int) -> np.ndarray:
    """Linear RGB (H, W, 3): the sum over the lights, each rendered alone."""
    if layout.environment is not None:
        # Blocks of one size, whatever the number of threads: the samples are drawn by block.
        integrator = mi.load_dict({"type": "direct", "emitter_samples": 1, "bsdf_samples": 1, "block_size": 32})
        samples = max(samples, ENVIRONMENT_SUPERSAMPLING**2)
        sensor = _sensor(mi, layout, size, samples)
        return np.array(mi.render(scene, sensor=sensor, integrator=integrator, spp=samples), dtype=np.float64)[..., :3]
    integrator = mi.load_dict({"type": "direct", "emitter_samples": 1, "bsdf_samples": 0})
    sensor = _sensor(mi, layout, size, samples)
    angle = math.radians(layout.camera.elevation + FILL_ABOVE_CAMERA_DEGREES)
    lights = (
        (layout.sun_direction, SUN_WEIGHT * layout.sun_strength),
        ((0.0, -math.cos(angle), math.sin(angle)), FILL_WEIGHT),
    )
    parameters = mi.traverse(scene)
    total = np.zeros((size, size, 3))
    for direction, weight in lights:
        parameters["light.to_world"] = mi.ScalarTransform4f().look_at(
            origin=[0, 0, 0], target=[-c for c in direction], up=[0.0, 0.0, 1.0]
        )
        parameters["light.irradiance.value"] = math.pi * weight
        parameters.update()
        total += np.array(mi.render(scene, sensor=sensor, integrator=integrator, spp=samples))[..., :3]
    return total


def _geometry(mi: Any, scene: Any, layout: Layout, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """World positions (H, W, 3), shading and face normals (H, W, 3), shape numbers (H, W): at the pixel centres."""
    aovs = "position:position,normal:sh_normal,shape:shape_index,face:geo_normal"
    integrator = mi.load_dict({"type": "aov", "aovs": aovs})
    image = mi.render(scene, sensor=_sensor(mi, layout, size, 1), integrator=integrator, spp=1)
    image = np.array(image, dtype=np.float64)  # (H, W, 10)
    if image.shape[-1] != 10:
        raise RuntimeError(f"Mitsuba returned {image.shape[-1]} channels of geometry where 10 were expected")
    return image[..., :3], image[..., 3:6], image[..., 7:], np.round(image[..., 6]).astype(int)


def _turned(normal: np.ndarray, face: np.ndarray, away: np.ndarray) -> np.ndarray:
    """Shading normals (..., 3) on the side of their face that is seen.

    face: normals of the faces; away: unit directions from the viewer. Near a rim a smooth normal can point away though its
    face is seen; it becomes the nearest one that does not.
    """
    face = -face * np.sign((face * away).sum(axis=-1, keepdims=True))
    normal = normal * np.where((normal * face).sum(axis=-1, keepdims=True) < 0, -1.0, 1.0)
    excess = (normal * away).sum(axis=-1, keepdims=True) + MIN_TOWARDS_VIEWER
    normal = normal - np.maximum(excess, 0) * away
    return normal / np.linalg.norm(normal, axis=-1, keepdims=True)


def render_layout(
    layout: Layout, size: int, supersampling: int = SUPERSAMPLING
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Render a scene at size x size pixels.

    Returns rgb uint8 (H, W, 3); depth float32 (H, W), metres along the optical axis; normal float32 (H, W, 3), unit,
    camera frame (x right, y up, z towards the viewer); surface uint8 (H, W): 0 floor, 1 wall, 2 + k layout.objects[k].
    """
    mi = load_mitsuba()
    meshes = [placed.mesh() for placed in layout.objects]
    scene, surfaces = _build(mi, layout, meshes, size)
    to_camera = layout.camera.world_to_camera

    linear = _lit(mi, scene, layout, size, supersampling**2)
    rgb = np.round(encode_srgb(linear) * 255).astype(np.uint8)
    position, normal, face, shape = _geometry(mi, scene, layout, size)
    away = position - np.asarray(layout.camera.eye)
    depth = -(away @ to_camera[2])
    # shape_index counts from 1 in the order of scene.shapes(), which is not the order of the description.
    lookup = np.array([255] + [surfaces[shape.id()] for shape in scene.shapes()], dtype=np.uint8)
    surface = lookup[shape]
    two_sided = np.isin(surface, [2 + k for k, mesh in enumerate(meshes) if mesh.two_sided])
    directions = away[two_sided] / np.linalg.norm(away[two_sided], axis=-1, keepdims=True)
    normal[two_sided] = _turned(normal[two_sided], face[two_sided], directions)
    camera_normal = normal @ to_camera.T
    camera_normal /= np.linalg.norm(camera_normal, axis=-1, keepdims=True)
    return rgb, depth.astype(np.float32), camera_normal.astype(np.float32), surface
