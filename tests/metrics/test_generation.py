"""Generation metrics against numpy and scipy, with random weights in the networks' own classes."""

import json
import math

import numpy as np
import pytest
import scipy.linalg
import scipy.special
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file

from mmdit.errors import UserError
from mmdit.metrics.feature_networks import DinoFeatures, InceptionFeatures, load_state_dict
from mmdit.metrics.generation import inception_score, precision_recall, score_generation
from mmdit.metrics.image_sets import open_images

extractor = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")


@pytest.fixture(scope="module")
def inception_weights(tmp_path_factory):
    """Random weights of the real network (it comes in one size only), as a .pth file."""
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:  # its constructor insists on weights: let it keep its random ones
        patch.setattr(extractor, "load_state_dict_from_url", lambda *args, **kwargs: {})
        patch.setattr(extractor.FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        network = extractor.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save(network.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def inception(inception_weights):
    return InceptionFeatures(inception_weights)


@pytest.fixture(scope="module")
def dino_folder(tmp_path_factory):
    torch.manual_seed(1)
    arguments = {"embed_dim": 16, "depth": 1, "num_heads": 2, "img_size": 518}
    model = timm.create_model("vit_small_patch14_dinov2", pretrained=False, num_classes=0, **arguments)
    folder = tmp_path_factory.mktemp("dino")
    save_file(model.state_dict(), folder / "model.safetensors")
    config = {"architecture": "vit_small_patch14_dinov2", "num_classes": 0, "num_features": 16, "model_args": arguments,
              "pretrained_cfg": {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "num_classes": 0}}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def pictures(seed, count=6, size=32):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def tensor(images):
    return torch.from_numpy(images).permute(0, 3, 1, 2)


def test_inception_features(inception):
    images = pictures(0, 2, 40)
    features = inception(tensor(images))
    assert {name: tuple(values.shape) for name, values in features.items()} == {
        "pool": (2, 2048),
        "spatial": (2, 17 * 17 * 7),
        "logits": (2, 1008),
    }
    network = inception.network
    np.testing.assert_allclose(features["logits"], features["pool"] @ network.fc.weight.T, rtol=1e-4, atol=1e-5)

    # Layer by layer up to the fourth block of 17 x 17, whose 1 x 1 branch is a convolution, a batch norm and a ReLU.
    resize = extractor.interpolate_bilinear_2d_like_tensorflow1x
    x = (resize(tensor(images).float(), size=(299, 299), align_corners=False) - 128) / 128
    for name in ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "MaxPool_1", "Conv2d_3b_1x1", "Conv2d_4a_3x3",
                 "MaxPool_2", "Mixed_5b", "Mixed_5c", "Mixed_5d", "Mixed_6a", "Mixed_6b", "Mixed_6c"):  # fmt: skip
        x = getattr(network, name)(x)
    branch = network.Mixed_6d.branch1x1
    expected = F.relu(branch.bn(branch.conv(x)))[:, :7].permute(0, 2, 3, 1).reshape(2, -1)
    np.testing.assert_allclose(features["spatial"], expected, rtol=1e-4, atol=1e-6)


def test_weights_are_never_unpickled(tmp_path, inception_weights):
    class Harmful:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"fc.weight": Harmful()}, tmp_path / "harmful.pth")
    with pytest.raises(UserError, match="without running code"):
        InceptionFeatures(tmp_path / "harmful.pth")
    assert not (tmp_path / "ran").exists()
    with pytest.raises(UserError, match="no such file"):
        InceptionFeatures(tmp_path / "nothing.pth")
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    with pytest.raises(UserError, match="holds no dictionary of tensors"):
        InceptionFeatures(tmp_path / "list.pth")
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="not the weights of torch-fidelity's Inception v3"):
        InceptionFeatures(tmp_path / "other.safetensors")
    assert "fc.weight" in load_state_dict(inception_weights)


def test_dino_features(dino_folder):
    network = DinoFeatures(str(dino_folder))
    images = pictures(1, 3, 50)
    tokens = network(images)
    assert tokens.shape == (3, 16)
    model = network.model
    resized = [np.asarray(Image.fromarray(image).resize((224, 224), Image.Resampling.BICUBIC)) for image in images]
    x = (np.stack(resized) / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    x = torch.from_numpy(x).float().permute(0, 3, 1, 2)
    expected = model.forward_features(x)[:, 0]
    np.testing.assert_allclose(tokens, expected, rtol=1e-4, atol=1e-5)


def _copied(folder, to, weights=None, **config):
    to.mkdir()
    values = json.loads((folder / "config.json").read_text())
    (to / "config.json").write_text(json.dumps(values | config))
    state = load_file(folder / "model.safetensors")
    save_file(state | (weights or {}), to / "model.safetensors")
    return str(to)


def test_feature_networks_that_are_damaged(dino_folder, inception_weights, tmp_path):
    bad = {"cls_token": torch.full((1, 1, 16), float("nan"))}
    with pytest.raises(UserError, match="weight cls_token holds NaN or infinity"):
        DinoFeatures(_copied(dino_folder, tmp_path / "a", bad))
    with pytest.raises(UserError, match="cls_token is of I64"):
        DinoFeatures(_copied(dino_folder, tmp_path / "b", {"cls_token": torch.ones(1, 1, 16, dtype=torch.int64)}))
    with pytest.raises(UserError, match="embed_dim is 1000000000"):
        DinoFeatures(_copied(dino_folder, tmp_path / "c", model_args={"embed_dim": 10**9}))
    with pytest.raises(UserError, match="model_args has checkpoint_path"):
        DinoFeatures(_copied(dino_folder, tmp_path / "d", model_args={"checkpoint_path": "x.pth"}))
    for number, wrong in enumerate(({"model_args": [1]}, {"pretrained_cfg": 3}, {"architecture": ["payload"]})):
        with pytest.raises(UserError, match=r"config\.json"):
            DinoFeatures(_copied(dino_folder, tmp_path / f"e{number}", **wrong))
    content = bytearray(inception_weights.read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "flipped.pth").write_bytes(bytes(content))
    with pytest.raises(UserError, match=r"the checksum of its part .* is wrong"):
        load_state_dict(tmp_path / "flipped.pth")


def test_dino_that_can_not_be_loaded(tmp_path):
    with pytest.raises(UserError, match="folder needs config"):
        DinoFeatures(str(tmp_path))
    with pytest.raises(UserError, match="neither a folder nor a timm model"):
        DinoFeatures("dinov2_vitl14")


def test_inception_score_by_definition():
    logits = torch.from_numpy(np.random.default_rng(2).normal(size=(20, 5)) * 3)
    p = scipy.special.softmax(logits.numpy(), axis=1)
    scores = [np.exp((part * np.log(part / part.mean(axis=0))).sum(axis=1).mean()) for part in (p[:10], p[10:])]
    mean, deviation = inception_score(logits, split_size=10)
    assert mean == pytest.approx(np.mean(scores))
    assert deviation == pytest.approx(np.std(scores))
    scores = [np.exp((part * np.log(part / part.mean(axis=0))).sum(axis=1).mean()) for part in (p[:8], p[8:16], p[16:])]
    assert inception_score(logits, split_size=8)[0] == pytest.approx(np.mean(scores))  # what is left is a split too
    assert inception_score(logits)[0] == pytest.approx(np.exp((p * np.log(p / p.mean(axis=0))).sum(axis=1).mean()))


def test_precision_and_recall_by_definition():
    rng = np.random.default_rng(3)
    made, real = rng.normal(size=(30, 4)) * 0.7, rng.normal(size=(40, 4)) + 0.5

    def within(points, centres):
        radii = np.sort(np.linalg.norm(centres[:, None] - centres, axis=-1), axis=1)[:, 3]
        return np.mean((np.linalg.norm(points[:, None] - centres, axis=-1) <= radii).any(axis=1))

    precision, recall = precision_recall(torch.from_numpy(made), torch.from_numpy(real))
    assert precision == pytest.approx(within(made, real))
    assert recall == pytest.approx(within(real, made))
    assert 0 < recall < precision < 1


def distance(first, second):
    m1, m2 = first.mean(axis=0), second.mean(axis=0)
    s1, s2 = np.cov(first, rowvar=False), np.cov(second, rowvar=False)
    return ((m1 - m2) ** 2).sum() + np.trace(s1) + np.trace(s2) - 2 * np.trace(scipy.linalg.sqrtm(s1 @ s2).real)


class FirstFeatures(torch.nn.Module):
    """Inception with the first 48 of each kind of features: a distance of all of them takes many seconds."""

    name = "first"

    def __init__(self, inception):
        super().__init__()
        self.inception, self.seen = inception, []

    def forward(self, images):
        self.seen.append({key: values[:, :48] for key, values in self.inception(images).items()})
        return self.seen[-1]


def test_scores(tmp_path, inception, dino_folder):
    network = FirstFeatures(inception)
    made, real = pictures(4, 5), pictures(5, 4) // 2
    np.savez(tmp_path / "made.npz", made)
    np.savez(tmp_path / "real.npz", real)
    dino = DinoFeatures(str(dino_folder))
    scores = score_generation(
        open_images(tmp_path / "made.npz"),
        open_images(tmp_path / "real.npz"),
        inception=network,
        dino=dino,
        batch_size=4,
        progress=False,
    )
    # In batches of 4 and of what is left: the reference first, then the samples.
    second, *rest = ({k: v.double().numpy() for k, v in features.items()} for features in network.seen)
    first = {key: np.concatenate([features[key] for features in rest]) for key in second}
    assert [len(features["pool"]) for features in (first, second)] == [5, 4]

    def trace_distance(a, b):  # of few samples: the eigenvalues of the small Gram matrix are those of the product
        ca, cb = (x - x.mean(axis=0) for x in (a, b))
        cross = np.linalg.svd(ca @ cb.T, compute_uv=False).sum() / math.sqrt((len(a) - 1) * (len(b) - 1))
        traces = (ca**2).sum() / (len(a) - 1) + (cb**2).sum() / (len(b) - 1)
        return ((a.mean(axis=0) - b.mean(axis=0)) ** 2).sum() + traces - 2 * cross

    assert scores["sfid"] == pytest.approx(trace_distance(first["spatial"], second["spatial"]), rel=1e-3)
    assert scores["fid"] == pytest.approx(trace_distance(first["pool"], second["pool"]), rel=1e-3)
    tokens = [dino(images).double().numpy() for images in (made, real)]
    assert scores["fd_dinov2"] == pytest.approx(trace_distance(*tokens), rel=1e-3)
    p = scipy.special.softmax(first["logits"], axis=1)
    assert scores["inception_score"] == pytest.approx(
        np.exp((p * np.log(p / p.mean(axis=0))).sum(axis=1).mean()), rel=1e-5
    )
    assert 0 <= scores["precision"] <= 1
    assert (scores["num_samples"], scores["num_reference_images"]) == (5, 4)


def test_statistics_count_for_the_distances(tmp_path):
    class Tiny(torch.nn.Module):
        name = "tiny"

        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(()))

        def forward(self, images):
            x = images.float() * self.scale.detach() / 255
            pool = torch.cat([x.mean(dim=(2, 3)), x.std(dim=(2, 3))], dim=1)
            return {"pool": pool, "spatial": x[:, :2, :2, :2].flatten(1), "logits": pool}

    network = Tiny()
    made, real = pictures(6, 60), pictures(7, 50) // 2
    features = network(tensor(real))
    rng = np.random.default_rng(8)
    spatial = features["spatial"].double().numpy()
    other = rng.normal(size=(40, 6))
    np.savez(tmp_path / "made.npz", made)
    np.savez(
        tmp_path / "ref.npz",
        arr_0=real,
        mu=other.mean(axis=0),
        sigma=np.cov(other, rowvar=False),
        mu_s=spatial.mean(axis=0),
        sigma_s=np.cov(spatial, rowvar=False),
    )
    scores = score_generation(
        open_images(tmp_path / "made.npz"),
        open_images(tmp_path / "ref.npz"),
        inception=network,
        dino=None,
        batch_size=16,
        progress=False,
    )
    ours = {key: value.double().numpy() for key, value in network(tensor(made)).items()}
    assert scores["fid"] == pytest.approx(distance(ours["pool"], other), rel=1e-5)  # not the images' distance
    assert scores["sfid"] == pytest.approx(distance(ours["spatial"], spatial), rel=1e-5)
    assert math.isnan(scores["fd_dinov2"])
    assert scores["reference_statistics"] == ["mu", "mu_s", "sigma", "sigma_s"]
    for statistics in ({"mu": np.zeros(5), "sigma": np.eye(5)}, {"mu": np.zeros(6)}):
        np.savez(tmp_path / "foreign.npz", arr_0=real, **statistics)
        with pytest.raises(UserError, match=r"foreign.npz: mu and sigma have shapes .* have \(6,\) and \(6, 6\)"):
            score_generation(
                open_images(tmp_path / "made.npz"), open_images(tmp_path / "foreign.npz"), inception=network, dino=None
            )
    np.savez(tmp_path / "one.npz", made[:1])
    with pytest.raises(UserError, match="holds 1 images: at least 2"):
        score_generation(
            open_images(tmp_path / "one.npz"), open_images(tmp_path / "ref.npz"), inception=network, dino=None
        )


def test_command(tmp_path, dino_folder, monkeypatch, capsys):
    from mmdit.cli.main import main

    monkeypatch.chdir(tmp_path)
    for name, seed in (("made", 1), ("real", 2)):
        (tmp_path / name).mkdir()
        for number, image in enumerate(pictures(seed, 2)):
            Image.fromarray(image).save(tmp_path / name / f"{number}.png")
    command = ["evaluate-generation", "--images", "made", "--reference", "real", "--output", "r/report.json"]
    assert main([*command, "--inception", "null", "--dinov2", str(dino_folder)]) == 0
    assert "fd_dinov2 " in capsys.readouterr().out
    report = json.loads((tmp_path / "r" / "report.json").read_text())
    assert report["generation"]["fid"] is None
    assert report["generation"]["fd_dinov2"] > 0
    assert ", sha256 " in report["settings"]["dinov2"]
    assert report["samples"] is None
    for extra, message in (
        (["--inception", "null"], "neither --inception nor --dinov2"),
        (["--inception", "no.pth"], "no.pth: no such file"),
        (["--images", "nowhere"], "nowhere: no such file or folder"),
        (["--batch_size", "0"], "--batch_size is 0"),
    ):
        assert main([*command, *extra]) == 2
        assert message in capsys.readouterr().err
