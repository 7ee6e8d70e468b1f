import numpy as np
import pytest

from mmdit.errors import UserError
from mmdit.metrics.samples import EvaluationSamples
from mmdit.modalities import get_modalities

NAMES = ["rgb", "depth", "normal", "segmentation"]


def load(root, **kwargs):
    return EvaluationSamples(root, "test", get_modalities(NAMES), size=16, **kwargs)


def test_raw_values_in_physical_units(make_dataset):
    sample = next(iter(load(make_dataset(split="test"))))
    assert sample.maps["rgb"].dtype == np.uint8
    assert sample.maps["depth"].min() >= 1.0  # files hold 1000 to 9000 millimetres
    assert sample.maps["depth"].max() <= 9.0
    np.testing.assert_allclose(np.linalg.norm(sample.maps["normal"], axis=-1), 1, atol=0.02)
    assert set(np.unique(sample.maps["segmentation"])) == {0, 1, 5}


def test_the_choice_is_the_seeds_and_has_no_repeats(make_dataset):
    root = make_dataset(num_samples=12, split="test")
    chosen = [sample.id for sample in load(root, num_samples=6, seed=1)]
    assert chosen == [sample.id for sample in load(root, num_samples=6, seed=1)]
    assert chosen != [sample.id for sample in load(root, num_samples=6, seed=2)]
    assert chosen == [sample.id for sample in load(root, num_samples=None, seed=1)][:6]
    assert len(set(chosen)) == 6
    assert len(load(root, num_samples=99)) == 12


def test_others_are_of_the_same_categories(make_dataset):
    """As far as the split has them; and none where fewer are left than were drawn."""
    root = make_dataset(num_samples=12, split="test")
    drawn = load(root, num_samples=4, seed=1)
    others = drawn.others()
    assert len(others) == 4
    assert not {sample.id for sample in drawn} & {sample.id for sample in others}
    assert sorted(sample.category for sample in others) == sorted(sample.category for sample in drawn)
    six = load(root, num_samples=6, seed=3)
    assert len({sample.id for sample in six.others()} | {sample.id for sample in six}) == 12
    assert len(load(root, num_samples=7).others()) == 0
    assert len(load(root).others()) == 0


def test_categories_and_missing_modalities(make_dataset):
    def edit(rows):
        for row in rows:
            del row["depth"]
        del rows[0]["category"]

    samples = {sample.id: sample for sample in load(make_dataset(num_samples=2, split="test", edit_rows=edit))}
    assert "depth" not in samples["000"].maps
    assert samples["000"].category is None
    assert samples["001"].category == "cone"


def test_images_are_resized_to_the_models_size(make_dataset):
    sample = next(iter(load(make_dataset(size=24, split="test"))))
    assert sample.maps["rgb"].shape == (16, 16, 3)
    assert sample.maps["segmentation"].shape == (16, 16)


def test_bad_input_is_refused(make_dataset):
    root = make_dataset(split="test")
    with pytest.raises(UserError, match="num_samples is 0"):
        load(root, num_samples=0)
    with pytest.raises(UserError, match=r"no such file; splits in .*: test"):
        EvaluationSamples(root, "val", get_modalities(NAMES), size=16)
    with pytest.raises(UserError, match=r"none of the model's rgb"):
        EvaluationSamples(make_dataset(split="test", modalities=["depth"]), "test", get_modalities(["rgb"]), size=16)
