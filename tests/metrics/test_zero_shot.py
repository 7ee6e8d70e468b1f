"""Zero-shot errors on miniature copies of the benchmarks' layouts, against values computed here from their definitions."""

import json

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as TF
from PIL import Image

from mmdit.errors import UserError
from mmdit.metrics.geometry_benchmarks import GeometrySamples
from mmdit.metrics.maps import sample_generators
from mmdit.metrics.zero_shot import align, depth_errors, evaluate_geometry
from mmdit.pipelines.pipeline_multimodal_dit import MultimodalDiTPipeline


@pytest.fixture(scope="module")
def pipe(tiny_pipeline_dir):
    pipe = MultimodalDiTPipeline.from_pretrained(tiny_pipeline_dir)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, array)
    elif path.suffix == ".JPG" and array.dtype == np.float32:
        array.tofile(path)
    else:
        Image.fromarray(array).save(path)


def picture(rng, height, width):
    small = rng.integers(0, 256, (4, 6, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def surface(rng, height, width, low, high):
    small = Image.fromarray(rng.uniform(low, high, (5, 7)).astype(np.float32))
    return np.asarray(small.resize((width, height), Image.Resampling.BILINEAR)).copy()


# name -> (height, width, a line of the list); file names as in the public lists
LAYOUTS = {
    "nyuv2_depth": (480, 640, "test/kitchen_0004/rgb_000{i}.png test/kitchen_0004/depth_000{i}.png x.png"),
    "scannet_depth": (48, 64, "scene0406_02/color/00030{i}.jpg scene0406_02/depth/00030{i}.png"),
    "kitti_depth": (375, 1242, "2011_09_26/d/image_02/data/{i}.png d/groundtruth/image_02/{i}.png 721.5377"),
    "eth3d_depth": (40, 1100, "rgb/office/images/DSC_{i}.JPG depth/office_dslr_depth/DSC_{i}.JPG"),
    "diode_depth": (48, 64, "indoors/s/0{i}.png indoors/s/0{i}_depth.npy indoors/s/0{i}_depth_mask.npy"),
}


def write(root, name, count=2):
    """Write a miniature; returns [(rgb, depth in metres, mask of what counts)] with crops and ranges applied."""
    rng = np.random.default_rng(0)
    height, width, pattern = LAYOUTS[name]
    lines, truths = [], []
    for i in range(count):
        files = pattern.format(i=i).split()
        rgb, depth = picture(rng, height, width), surface(rng, height, width, 0.5, 12.0)
        depth[5, 5] = 0
        valid = depth > 0
        save(root / files[0], rgb)
        if files[0].lower().endswith("jpg"):
            rgb = np.asarray(Image.open(root / files[0]))
        if name == "eth3d_depth":
            stored = depth.astype(np.float32)
            stored[5, 5] = np.inf
        elif name == "diode_depth":
            stored = depth[..., None]
            valid = valid & (rng.random((height, width)) > 0.3)
            save(root / files[2], valid.astype(np.float32))
        else:
            units = 256 if name == "kitti_depth" else 1000
            stored = np.round(depth * units).astype(np.uint16)
            depth = stored / units
            valid &= depth < (80 if name == "kitti_depth" else 10)
        save(root / files[1], stored)
        if name == "nyuv2_depth":
            valid[:45] = valid[471:] = False
            valid[:, :41] = valid[:, 601:] = False
        if name == "kitti_depth":
            rgb, depth, valid = (array[375 - 352 :, 13 : 13 + 1216] for array in (rgb, depth, valid.copy()))
            valid[:117] = valid[321:] = False
            valid[:, :43] = valid[:, 1172:] = False
        lines.append(" ".join(files))
        truths.append((rgb, depth.astype(np.float64), valid))
    (root / "list.txt").write_text("\n".join(lines) + "\n")
    return truths


def predict(pipe, truths, modality, steps=1, seed=0):
    """One image at a time, resized by torchvision."""
    maps = []
    for index, (rgb, _, valid) in enumerate(truths):
        output = pipe(
            conditions={"rgb": Image.fromarray(rgb).resize((64, 64), Image.Resampling.LANCZOS)},
            num_inference_steps=steps,
            guidance_scale=1.0,
            generator=sample_generators(seed, "understanding", [index]),
            output_type="np",
        )[modality][0]
        planes = torch.from_numpy(np.atleast_3d(output).astype(np.float64)).permute(2, 0, 1)
        resized = TF.resize(planes, list(valid.shape), antialias=True).permute(1, 2, 0).numpy()
        maps.append(resized[..., 0] if modality == "depth" else resized)
    return maps


def reference_errors(prediction, depth, valid, space, low, high, max_resolution=None):
    """Marigold's recipe with numpy's solver and PyTorch's resampling."""
    fitted = valid & (prediction > 0) & (depth > 0) if space == "disparity" else valid
    goal = np.where(depth > 0, 1 / np.maximum(depth, 1e-9), 0) if space == "disparity" else depth
    x, y, m = prediction, goal, fitted
    if max_resolution is not None:
        down = torch.nn.Upsample(scale_factor=max_resolution / max(depth.shape), mode="nearest")
        x, y = (down(torch.from_numpy(a)[None])[0].numpy() for a in (x, y))
        m = down(torch.from_numpy(m)[None].double())[0].bool().numpy()
    scale, shift = np.linalg.lstsq(np.stack([x[m], np.ones(m.sum())], axis=1), y[m], rcond=None)[0]
    estimate = prediction * scale + shift
    if space == "disparity":
        estimate = 1 / np.clip(estimate, 1e-3, None)
    p, t = np.clip(estimate, low, high)[valid], depth[valid]
    ratio = np.maximum(p / t, t / p)
    return {
        "abs_rel": np.mean(abs(p - t) / t),
        "sq_rel": np.mean((p - t) ** 2 / t),
        "rmse": np.mean((p - t) ** 2) ** 0.5,
        "rmse_log": np.mean((np.log(p) - np.log(t)) ** 2) ** 0.5,
        "log10": np.mean(abs(np.log10(p) - np.log10(t))),
        "delta1": np.mean(ratio < 1.25),
        "delta2": np.mean(ratio < 1.25**2),
        "delta3": np.mean(ratio < 1.25**3),
        "i_rmse": np.mean((1 / p - 1 / t) ** 2) ** 0.5,
        "silog": 100 * np.std(np.log(p) - np.log(t)),
    }


@pytest.mark.parametrize(
    ("name", "low", "high", "max_resolution"),
    [
        ("nyuv2_depth", 1e-3, 10, None),
        ("scannet_depth", 1e-3, 10, None),
        ("kitti_depth", 1e-5, 80, None),
        ("eth3d_depth", 1e-5, np.inf, 1024),
        ("diode_depth", 0.6, 350, None),
    ],
)
def test_depth_of_every_layout(pipe, tmp_path, name, low, high, max_resolution):
    truths = write(tmp_path, name)
    samples = GeometrySamples(name, tmp_path, tmp_path / "list.txt")
    report = evaluate_geometry(pipe, samples, progress=False)
    space = pipe.modalities["depth"].settings["space"]
    errors = [
        reference_errors(prediction, depth, valid, space, low, high, max_resolution)
        for prediction, (_, depth, valid) in zip(predict(pipe, truths, "depth"), truths, strict=True)
    ]
    for key in errors[0]:
        assert report["depth"][key] == pytest.approx(np.mean([row[key] for row in errors]), rel=2e-3, abs=1e-6), key
    assert report["depth"]["valid_pixels"] == sum(valid.sum() for *_, valid in truths)
    assert report["depth"]["num_images"] == 2
    assert report["protocol"]["alignment"].endswith(f"in {space}")


@pytest.mark.parametrize("space", ["depth", "disparity"])
def test_alignment_is_numpys_least_squares(space):
    rng = np.random.default_rng(1)
    target, prediction = rng.uniform(1, 9, (12, 30)), rng.uniform(-0.1, 1, (12, 30))
    valid = rng.random((12, 30)) > 0.2
    for width in (None, 20):
        estimate = align(prediction, target, valid, space=space, depth_range=(0.5, 8.0), max_fit_width=width)
        expected = reference_errors(prediction, target, valid, space, 0.5, 8.0, width)
        measured = depth_errors(estimate[valid], target[valid])
        assert measured == pytest.approx(expected, rel=1e-6)
        assert (estimate.min(), estimate.max()) >= (0.5, 0.5)
        assert estimate.max() <= 8.0


def test_alignment_refuses():
    ones = np.ones((2, 2))
    with pytest.raises(UserError, match="alignment space is 'log'"):
        align(ones, ones, ones > 0, space="log", depth_range=(1, 2))
    with pytest.raises(UserError, match="0 pixels can be fitted"):
        align(-ones, ones, ones > 0, space="disparity", depth_range=(1, 2))


def write_normals(root, name, count=2):
    rng = np.random.default_rng(2)
    lines, truths = [], []
    for i in range(count):
        rgb = picture(rng, 30, 40)
        normal = rng.normal(size=(30, 40, 3))
        normal /= np.linalg.norm(normal, axis=-1, keepdims=True)
        valid = rng.random((30, 40)) > 0.3 + 0.3 * i
        save(root / f"test/00000{i}_img.png", rgb)
        if name.endswith("_marigold"):
            save(root / f"test/00000{i}_normal.npy", (normal * valid[..., None]).astype(np.float32))
            lines.append(f"test/00000{i}_img.png test/00000{i}_normal.npy")
        else:
            stored = np.round((normal * [-1, 1, 1] + 1) / 2 * 255).astype(np.uint8) * valid[..., None]
            normal = (stored / 255.0 * 2 - 1) * [-1, 1, 1]
            save(root / f"test/00000{i}_normal.png", stored.astype(np.uint8))
            lines.append(f"test/00000{i}_img.png")
        truths.append((rgb, normal, valid))
    (root / "list.txt").write_text("\n".join(lines) + "\n")
    return truths


@pytest.mark.parametrize("name", ["nyuv2_normal", "scannet_normal", "nyuv2_normal_marigold", "diode_normal_marigold"])
def test_normals_of_every_layout(pipe, tmp_path, name):
    truths = write_normals(tmp_path, name)
    samples = GeometrySamples(name, tmp_path, tmp_path / "list.txt")
    report = evaluate_geometry(pipe, samples, num_inference_steps=2, seed=5, batch_size=1, progress=False)["normal"]
    angles = []
    for prediction, (_, normal, valid) in zip(predict(pipe, truths, "normal", 2, 5), truths, strict=True):
        p, t = torch.from_numpy(prediction[valid]), torch.from_numpy(normal[valid])
        cosine = torch.cosine_similarity(p, t, dim=1).clamp(-1, 1)
        angles.append(np.degrees(np.arccos(cosine.numpy())))
    groups = angles if name.endswith("_marigold") else [np.concatenate(angles)]
    expected = {
        "mean_angle": np.mean([group.mean() for group in groups]),
        "median_angle": np.mean([np.median(group) for group in groups]),
        "rmse_angle": np.mean([np.sqrt((group**2).mean()) for group in groups]),
        "within_11_25": np.mean([(group < 11.25).mean() for group in groups]),
        "within_30": np.mean([(group < 30).mean() for group in groups]),
    }
    for key, value in expected.items():
        assert report[key] == pytest.approx(value, abs=0.02 if "angle" in key else 2e-3), key
    assert {"within_5", "within_7_5", "within_22_5"} <= report.keys()


def test_an_image_without_valid_pixels_is_counted(pipe, tmp_path):
    write(tmp_path, "scannet_depth")
    save(tmp_path / "scene0406_02/depth/000301.png", np.zeros((48, 64), dtype=np.uint16))
    samples = GeometrySamples("scannet_depth", tmp_path, tmp_path / "list.txt")
    one = GeometrySamples("scannet_depth", tmp_path, tmp_path / "list.txt", num_samples=1)
    report = evaluate_geometry(pipe, samples, progress=False)
    assert (report["depth"]["num_images"], report["depth"]["num_skipped"]) == (1, 1)
    alone = evaluate_geometry(pipe, one, progress=False, size=(64, 64))
    assert report["depth"]["abs_rel"] == pytest.approx(alone["depth"]["abs_rel"], rel=1e-4)


def test_command(tmp_path, tiny_pipeline_dir, monkeypatch, capsys):
    from mmdit.cli.main import main

    monkeypatch.chdir(tmp_path)
    write(tmp_path, "diode_depth")
    command = ["evaluate-geometry", "--benchmark", "diode_depth", "--data", ".", "--list_file", "list.txt",
               "--output", "r/report.json", "--model", str(tiny_pipeline_dir)]  # fmt: skip
    assert main(command) == 0
    assert "abs_rel" in capsys.readouterr().out
    report = json.loads((tmp_path / "r" / "report.json").read_text())
    assert report["settings"]["benchmark"] == "diode_depth"
    assert len(report["settings"]["list_sha256"]) == 64
    assert report["protocol"]["depth_range"] == [0.6, 350]
    for extra, message in (
        (["--height", "64"], "--height and --width belong together"),
        (["--height", "0", "--width", "64"], "--height is 0: give at least 1, or null"),
        (["--crop", "eigen"], "unknown crop of diode_depth 'eigen'"),
        (["--benchmark", "diode"], "unknown benchmark 'diode'"),
        (["--data", "nowhere"], "--data nowhere: no such folder"),
    ):
        assert main([*command, *extra]) == 2
        assert message in capsys.readouterr().err
