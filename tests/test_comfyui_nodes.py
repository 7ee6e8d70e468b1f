"""The example nodes do what ComfyUI asks of nodes: inputs by their declared names, outputs of the declared types."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch

from mmdit.errors import UserError

FILE = Path(__file__).resolve().parents[1] / "notebooks" / "comfyui" / "mmdit_nodes.py"


@pytest.fixture(scope="module")
def nodes() -> ModuleType:
    spec = importlib.util.spec_from_file_location("mmdit_nodes", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_they_are_short_and_declared(nodes):
    assert len(FILE.read_text().splitlines()) <= 150
    assert nodes.NODE_CLASS_MAPPINGS.keys() == nodes.NODE_DISPLAY_NAME_MAPPINGS.keys()
    for node in nodes.NODE_CLASS_MAPPINGS.values():
        assert callable(getattr(node, node.FUNCTION))
        assert len(node.RETURN_TYPES) == len(node.RETURN_NAMES)
        declared = {name for group in node.INPUT_TYPES().values() for name in group}
        code = getattr(node, node.FUNCTION).__code__
        assert declared == set(code.co_varnames[1 : code.co_argcount])


def test_a_graph_runs(nodes, tiny_pipeline_dir):
    (model,) = nodes.LoadMMDiT().load(str(tiny_pipeline_dir), "cpu")
    model.set_progress_bar_config(disable=True)
    made = nodes.GenerateMMDiT().generate(model, 3, 1, 2.0, 2, category="torus", depth=torch.rand(1, 64, 64))
    assert [image.shape for image in made] == [(2, 64, 64, 3)] * 4
    assert all(image.dtype == torch.float32 and 0 <= image.min() <= image.max() <= 1 for image in made)
    alone = nodes.GenerateMMDiT().generate(model, 4, 1, 2.0, 1, category="torus", depth=torch.full((1, 64, 64), 0.5))
    assert alone[0].shape == (1, 64, 64, 3)
    own = nodes.GenerateMMDiT().generate(model, 4, 0, 0.0, 1, category="torus")  # 0 = the model's own
    expected = nodes.outputs(model, model(class_labels="torus", seed=4))
    assert all(torch.equal(one, other) for one, other in zip(own, expected, strict=True))
    seen = nodes.UnderstandMMDiT().understand(model, torch.rand(2, 40, 60, 3))
    assert [image.shape for image in seen] == [(2, 40, 60, 3)] * 4
    with pytest.raises(UserError, match="torrus"):
        nodes.GenerateMMDiT().generate(model, 0, 1, 2.0, 1, category="torrus")


def test_batches_are_taken_whole_or_refused(nodes, tiny_pipeline_dir):
    (model,) = nodes.LoadMMDiT().load(str(tiny_pipeline_dir), "cpu")
    model.set_progress_bar_config(disable=True)

    def generate(**given):
        return nodes.GenerateMMDiT().generate(model, 3, 1, 1.0, 2, **given)

    images, depth = torch.rand(2, 64, 64, 3), torch.rand(2, 64, 64)
    both = generate(image=images, depth=depth)
    assert [made.shape for made in both] == [(4, 64, 64, 3)] * 4
    for i in range(4):
        torch.testing.assert_close(both[0][i], images[i // 2], atol=1 / 255, rtol=0)
    one_for_all = generate(image=images, depth=depth[0])  # a mask may lack the batch
    assert torch.equal(one_for_all[1][0], one_for_all[1][2])
    assert torch.equal(one_for_all[1][:2], both[1][:2])
    grey = generate(image=images[..., :1])
    assert torch.equal(grey[0], generate(image=images[..., :1].expand(-1, -1, -1, 3))[0])
    with pytest.raises(UserError, match="conditions differ in number: rgb 2, depth 3"):
        generate(image=images, depth=torch.rand(3, 64, 64))
    with pytest.raises(UserError, match="an image holds NaN"):
        generate(image=images * torch.nan)


def test_prompts_with_subjects(nodes, prompted_dir):
    (model,) = nodes.LoadMMDiT().load(str(prompted_dir), "auto")
    model.set_progress_bar_config(disable=True)
    made = nodes.GenerateMMDiT().generate(
        model, 0, 1, 2.0, 1, prompt="a {} left of a blue cone", subject=torch.rand(1, 50, 50, 3)
    )
    assert made[0].shape == (1, 64, 64, 3)
