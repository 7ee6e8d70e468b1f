import numpy as np
import pytest

from mmdit.errors import UserError
from mmdit.metrics.prompts.figures import fusing_pictures, ground_pictures, map_in_plane, neighbours_alike, pseudo_words
from mmdit.metrics.prompts.kinds import KINDS
from mmdit.metrics.prompts.views import read_shown
from mmdit.metrics.tasks import TaskRunner
from mmdit.pipelines.pipeline_multimodal_dit import MultimodalDiTPipeline


def test_pseudo_words_are_those_of_the_conditioner(prompted, split):
    words = pseudo_words(prompted, split)
    assert words.vectors.shape[1] == 16
    assert len(words.vectors) == len(words.categories) == len(words.files) == len(set(words.files))
    assert len(set(words.categories)) <= 4
    from PIL import Image

    encoder = prompted.prompt_encoder().subjects
    embedding = encoder([Image.open(words.files[2]).convert("RGB")])
    wanted = prompted.transformer.conditioner.pseudo_word(embedding).detach().numpy()[0]
    np.testing.assert_allclose(words.vectors[2], wanted, atol=1e-5)
    with pytest.raises(UserError, match="category 'teapot' has no subject"):
        pseudo_words(prompted, split, ["teapot"])


def test_a_model_without_pseudo_words_is_refused(tiny_pipeline_dir, split):
    pipe = MultimodalDiTPipeline.from_pretrained(tiny_pipeline_dir)
    with pytest.raises(UserError, match="makes no pseudo-words"):
        pseudo_words(pipe, split)


def test_groups_stay_together_in_the_map():
    pytest.importorskip("sklearn")
    rng = np.random.default_rng(0)
    centres = 8 * rng.normal(size=(3, 12))
    vectors = np.concatenate([centre + rng.normal(size=(10, 12)) for centre in centres])
    groups = ["a"] * 10 + ["b"] * 10 + ["c"] * 10
    assert neighbours_alike(vectors, groups) == 1.0
    points = map_in_plane(vectors)
    assert points.shape == (30, 2)
    assert np.array_equal(points, map_in_plane(vectors))
    means = points.reshape(3, 10, 2).mean(axis=1)
    spread = np.linalg.norm(points.reshape(3, 10, 2) - means[:, None], axis=-1).mean()
    assert min(np.linalg.norm(means[i] - means[j]) for i, j in ((0, 1), (0, 2), (1, 2))) > 2 * spread


def test_neighbours_against_a_loop():
    rng = np.random.default_rng(1)
    vectors, groups = rng.normal(size=(9, 4)), ["a", "b", "c"] * 3
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    right = 0
    for one in range(9):
        nearest = max((float(unit[one] @ unit[other]), other) for other in range(9) if other != one)[1]
        right += groups[one] == groups[nearest]
    assert neighbours_alike(vectors, groups) == pytest.approx(right / 9)


def test_fusing_pictures_share_their_noise(prompted, split):
    tasks = TaskRunner(prompted, 1, guidance_scale=2.0, seed=0)
    rows = fusing_pictures(tasks, split, (0.5, 0.5, 1.0), 2)
    assert len(rows) == 2
    for row in rows:
        assert np.array_equal(row.made[0], row.made[1])
        assert "{" not in row.words
        assert row.reference.shape == row.made[0].shape == (64, 64, 3)


def test_ground_pictures_are_those_that_the_evaluation_makes(prompted, split):
    tasks = TaskRunner(prompted, 1, guidance_scale=2.0, seed=0)
    drawn = ground_pictures(tasks, split, 2)
    assert list(drawn) == ["scene", "floor", "wall"]
    for name, rows in drawn.items():
        kind = f"style.{name}"
        cases = KINDS[kind].cases(split, 2)
        made = tasks.prompt([each.template for each in cases], range(2), noise=f"prompts.{kind}",
                            subjects=[each.subjects for each in cases])  # fmt: skip
        for row, case, maps in zip(rows, cases, made, strict=True):
            assert row.words == case.wording
            assert np.array_equal(row.reference, read_shown(case.references[0]))
            assert np.array_equal(row.made[0], maps["rgb"])
