import numpy as np
import torch

from mmdit.metrics.maps import MapMetrics, PreviousPairs, batched, sample_generators
from mmdit.metrics.samples import GroundTruth
from mmdit.modalities import MODALITIES, build_codecs

CLASSES = [{"id": 0, "name": "floor", "color": [0, 0, 0]}, {"id": 1, "name": "cone", "color": [255, 0, 0]}]
CODECS = build_codecs(
    {
        **MODALITIES,
        "depth": MODALITIES["depth"].replace(space="depth"),
        "segmentation": MODALITIES["segmentation"].replace(classes=CLASSES),
    }
)


def truth(**maps):
    return GroundTruth(0, "a", "cone", maps)


def test_every_modality_is_measured_over_objects_too():
    # Relative errors of depth 1/6, 1/6, 1/24 as in test_depth; the last pixel is the object.
    maps = {
        "depth": np.array([[1.0, 2, 4]]),
        "normal": np.array([[[0, 0, 1], [0, 0, 1], [0, 0, 1.0]]]),
        "segmentation": np.array([[0, 0, 1]]),
    }
    prediction = {
        "depth": np.array([[0.0, 1, 2]]),
        "normal": np.array([[[0, 0, 1], [0, 0, 1], [0, 1.0, 0]]]),
        "segmentation": np.array([[0, 1, 1]]),
    }
    metrics = MapMetrics(["depth", "normal", "segmentation"], CODECS)
    metrics.update(prediction, truth(**maps))
    result = metrics.compute()
    np.testing.assert_allclose(result["depth"]["abs_rel"], 1 / 8)
    np.testing.assert_allclose(result["depth"]["abs_rel_objects"], 1 / 24)
    np.testing.assert_allclose(result["normal"]["mean_angle_objects"], 90)
    assert result["segmentation"]["object_iou"] == 0.5
    assert result["segmentation"]["main_object_accuracy"] == 1


def test_a_modality_that_a_sample_lacks_is_passed_over():
    metrics = MapMetrics(["depth", "normal"], CODECS)
    metrics.update({"normal": np.ones((2, 2, 3))}, truth(normal=np.ones((2, 2, 3))))
    assert metrics.compute()["depth"]["num_images"] == 0
    assert metrics.compute()["normal"]["num_images"] == 1
    assert metrics.compute().keys() == {"depth", "normal"}


def test_pairs_are_a_cycle_without_own_pairs():
    pairs = PreviousPairs()
    found = [pair for name in "abcd" for pair in pairs.add(name, name.upper())]
    found += list(pairs.close())
    assert found == [("a", "B"), ("b", "C"), ("c", "D"), ("d", "A")]


def test_one_sample_has_no_pair():
    pairs = PreviousPairs()
    assert list(pairs.add("a", "A")) == []
    assert list(pairs.close()) == []


def test_batches():
    assert list(batched(range(5), 2)) == [[0, 1], [2, 3], [4]]


def test_noise_is_a_function_of_seed_task_and_sample():
    def draw(*arguments):
        return [torch.rand(3, generator=generator).tolist() for generator in sample_generators(*arguments)]

    assert draw(0, "generation", [4, 7]) == draw(0, "generation", [4]) + draw(0, "generation", [7])
    different = [
        draw(0, "generation", [4]),
        draw(1, "generation", [4]),
        draw(0, "depth", [4]),
        draw(0, "generation", [5]),
    ]
    assert len({str(values) for values in different}) == 4
