"""Layout -> pixels with Mitsuba 3 (scalar_rgb): anti-aliased RGB without noise; depth, normals, ids at pixel centres.

RGB is lit by a sun from the side and by a weaker light from a little above the camera, whose shadows fall almost where
the camera does not see. Each is rendered on its own and they are added: with a single directional light the direct
integrator draws nothing at random, where two lights at once, or an ambient one, leave visible noise. Sub-pixels lie on
a regular grid, are averaged in linear light and encoded as sRGB.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from mmdit.colours import encode_srgb
from mmdit.sources.scenes.layout import Layout, Material
from mmdit.sources.scenes.shapes import Mesh

SUPERSAMPLING = 4
SUN_WEIGHT = 0.6  # radiance of a white surface that faces the light
FILL_WEIGHT = 0.4
FILL_ABOVE_CAMERA_DEGREES = 8.0
BACKGROUND_REACH = 200.0  # half the side of the floor and the wall, metres


def _mitsuba() -> Any:
    try:
        import mitsuba
    except ImportError as error:
        raise ImportError("rendering scenes needs mitsuba and trimesh: pip install 'multimodal-dit[scenes]'") from error
    if mitsuba.variant() != "scalar_rgb":
        mitsuba.set_variant("scalar_rgb")
    return mitsuba


def limit_render_threads(count: int) -> None:
    """Let Mitsuba use `count` threads in this process."""
    _mitsuba()
    import drjit

    # The calling thread is one of them.
    drjit.set_thread_count(max(0, count - 1))


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


def _mitsuba_mesh(mi: Any, name: str, mesh: Mesh, bsdf: Any) -> Any:
    properties = mi.Properties()
    properties["bsdf"] = bsdf
    shape = mi.Mesh(
        name, len(mesh.vertices), len(mesh.faces), has_vertex_normals=True, has_vertex_texcoords=True, props=properties
    )
    parameters = mi.traverse(shape)
    parameters["vertex_positions"] = mesh.vertices.astype(np.float32).ravel()
    parameters["faces"] = mesh.faces.astype(np.uint32).ravel()
    # A flat mapping leaves no seam: along x + y / 2 and z.
    texcoords = np.stack([mesh.vertices[:, 0] + mesh.vertices[:, 1] / 2, mesh.vertices[:, 2]], axis=1)
    parameters["vertex_texcoords"] = texcoords.astype(np.float32).ravel()
    parameters.update()
    # Mitsuba recomputes normals when positions change, so ours are set afterwards.
    parameters["vertex_normals"] = mesh.normals.astype(np.float32).ravel()
    parameters.update()
    shape.set_id(name)
    return shape


def _build(mi: Any, layout: Layout) -> Any:
    """The Mitsuba scene with shape ids "floor", "wall", "object_0", ..."""
    to_world = mi.ScalarTransform4f
    floor_texture = layout.floor.texture_scale * BACKGROUND_REACH / 4
    wall_texture = layout.wall.texture_scale * BACKGROUND_REACH / 4
    wall_normal = np.asarray(layout.wall_normal)
    wall_origin = -wall_normal * layout.wall_distance
    description: dict[str, Any] = {
        "type": "scene",
        "light": {"type": "directional", "irradiance": {"type": "rgb", "value": 1.0}},
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
    for number, placed in enumerate(layout.objects):
        bsdf = mi.load_dict(_bsdf(mi, placed.material))
        description[f"object_{number}"] = _mitsuba_mesh(mi, f"object_{number}", placed.mesh(), bsdf)
    return mi.load_dict(description)


def _sensor(mi: Any, layout: Layout, size: int, samples: int) -> Any:
    camera = layout.camera
    ahead = np.asarray(camera.eye) - camera.world_to_camera[2]
    return mi.load_dict(
        {
            "type": "perspective",
            "fov": camera.fov,
            "near_clip": 0.05,
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


def _geometry(mi: Any, scene: Any, layout: Layout, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """World positions (H, W, 3), world normals (H, W, 3) and shape numbers (H, W) at the pixel centres."""
    integrator = mi.load_dict({"type": "aov", "aovs": "position:position,normal:sh_normal,shape:shape_index"})
    image = mi.render(scene, sensor=_sensor(mi, layout, size, 1), integrator=integrator, spp=1)
    image = np.array(image, dtype=np.float64)  # (H, W, 7)
    if image.shape[-1] != 7:
        raise RuntimeError(f"Mitsuba returned {image.shape[-1]} channels of geometry where 7 were expected")
    return image[..., :3], image[..., 3:6], np.round(image[..., 6]).astype(int)


def render_layout(
    layout: Layout, size: int, supersampling: int = SUPERSAMPLING
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Render a scene at size x size pixels.

    Returns rgb uint8 (H, W, 3); depth float32 (H, W), metres along the optical axis; normal float32 (H, W, 3), unit,
    camera frame (x right, y up, z towards the viewer); surface uint8 (H, W): 0 floor, 1 wall, 2 + k layout.objects[k].
    """
    mi = _mitsuba()
    scene = _build(mi, layout)
    to_camera = layout.camera.world_to_camera

    linear = _lit(mi, scene, layout, size, supersampling**2)
    rgb = np.round(encode_srgb(linear) * 255).astype(np.uint8)
    position, normal, shape = _geometry(mi, scene, layout, size)
    depth = -((position - np.asarray(layout.camera.eye)) @ to_camera[2])
    camera_normal = normal @ to_camera.T
    camera_normal /= np.linalg.norm(camera_normal, axis=-1, keepdims=True)
    # shape_index counts from 1 in the order of scene.shapes(), which is not the order of the description.
    surfaces = {"floor": 0, "wall": 1} | {f"object_{k}": 2 + k for k in range(len(layout.objects))}
    lookup = np.array([255] + [surfaces[shape.id()] for shape in scene.shapes()], dtype=np.uint8)
    surface = lookup[shape]
    return rgb, depth.astype(np.float32), camera_normal.astype(np.float32), surface
