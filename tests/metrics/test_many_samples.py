import numpy as np
import pytest

from mmdit.errors import UserError
from mmdit.metrics.many_samples import SampleFolder, SamplePlan, make_block
from mmdit.pipelines.pipeline_multimodal_dit import MultimodalDiTPipeline


@pytest.fixture(scope="module")
def pipe(tiny_pipeline_dir):
    pipe = MultimodalDiTPipeline.from_pretrained(tiny_pipeline_dir)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def plan(num_samples=10, block_size=4, num_classes=3, labels="balanced", seed=0):
    return SamplePlan(num_samples, block_size, num_classes, labels, seed)


def test_balanced_and_random_labels():
    assert np.bincount(plan().class_labels()).tolist() == [4, 3, 3]
    assert (plan(labels="none").class_labels() == -1).all()
    drawn = plan(3000, labels="random").class_labels()
    assert abs(np.bincount(drawn) - 1000).max() < 120  # four standard deviations of a multinomial
    np.testing.assert_array_equal(drawn, plan(3000, 7, labels="random").class_labels())
    assert (drawn != plan(3000, labels="random", seed=1).class_labels()).any()


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_every_sample_belongs_to_one_process(world_size):
    found = [i for rank in range(world_size) for block in plan().share(rank, world_size) for i in plan().block(block)]
    assert sorted(found) == list(range(10))


def test_bad_plans():
    for arguments, message in (
        ({"num_samples": 0}, "num_samples is 0"),
        ({"block_size": 0}, "block_size is 0"),
        ({"labels": "equal"}, "unknown kind of labels 'equal'"),
    ):
        with pytest.raises(UserError, match=message):
            plan(**arguments)
    with pytest.raises(UserError, match="process 2 of 2"):
        plan().share(2, 2)


def test_a_sample_depends_on_seed_and_number_alone(pipe):
    whole = make_block(
        pipe, plan(4, 4), 0, num_inference_steps=2, guidance_scale=1.5, guidance_interval=(0.0, 1.0), batch_size=4
    )
    parts = [
        make_block(
            pipe,
            plan(4, 2),
            number,
            num_inference_steps=2,
            guidance_scale=1.5,
            guidance_interval=(0.0, 1.0),
            batch_size=1,
        )
        for number in (0, 1)
    ]
    assert whole.shape == (4, 64, 64, 3)
    assert whole.dtype == np.uint8
    assert abs(whole.astype(int) - np.concatenate(parts)).max() <= 1  # of rounding
    assert (
        whole
        != make_block(
            pipe,
            plan(4, 4, seed=1),
            0,
            num_inference_steps=2,
            guidance_scale=1.5,
            guidance_interval=(0.0, 1.0),
            batch_size=4,
        )
    ).any()


def test_joined_blocks(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (10, 2, 5, 3), dtype=np.uint8)
    folder = SampleFolder(tmp_path, plan(), {"seed": 0}, {"device": "cpu"})
    for number in (2, 0):
        folder.write(number, images[plan().block(number).start : plan().block(number).stop])
    assert folder.missing() == [1]
    folder.write(1, images[4:8])
    path = folder.join()
    assert path.name == "samples_10x2x5x3.npz"
    with np.load(path) as arrays:
        np.testing.assert_array_equal(arrays["arr_0"], images)
        np.testing.assert_array_equal(arrays["arr_1"], np.arange(10) % 3)
    whole = path.read_bytes()
    for damaged in (b"", whole[:-30], whole[: len(whole) // 2]):
        path.write_bytes(damaged)
        folder.join()
        with np.load(path) as arrays:
            np.testing.assert_array_equal(arrays["arr_0"], images)
    folder.path(2).write_bytes(folder.path(2).read_bytes()[:-1])
    assert folder.missing() == [2]


def test_another_request_and_damaged_blocks(tmp_path):
    folder = SampleFolder(tmp_path, plan(), {"seed": 0, "interval": (0.0, 1.0)}, {})
    SampleFolder(tmp_path, plan(), {"seed": 0, "interval": (0.0, 1.0)}, {"device": "another"})
    with pytest.raises(UserError, match="seed was 0, now 1"):
        SampleFolder(tmp_path, plan(), {"seed": 1}, {})
    folder.path(0).write_bytes(b"\x93NUMPY")
    with pytest.raises(UserError, match=r"00000.npy: damaged"):
        folder.read(0)
    folder.write(0, np.zeros((3, 2, 2, 3), dtype=np.uint8))  # four are wanted
    with pytest.raises(UserError, match=r"00000.npy: holds uint8 \(3, 2, 2, 3\)"):
        folder.read(0)
    (tmp_path / "samples.json").write_text("{")
    with pytest.raises(UserError, match=r"samples\.json: not readable as JSON"):
        SampleFolder(tmp_path, plan(), {"seed": 0}, {})
