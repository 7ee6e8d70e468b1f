import numpy as np
import pytest
import torch
from PIL import Image

from mmdit.data.folder import AlignedFolder, stack_modalities
from mmdit.errors import UserError

NAMES = ("rgb", "depth", "normal", "segmentation")


def test_items_are_the_encoded_files(make_dataset):
    root = make_dataset()
    item = AlignedFolder(root)[3]
    assert item["id"] == "003"
    assert item["category"] == 1
    assert item["present"].tolist() == [True] * 4
    rgb = np.array(Image.open(root / "train/rgb/003.png"))
    torch.testing.assert_close(item["rgb"], torch.from_numpy(rgb).permute(2, 0, 1) / 127.5 - 1)
    metres = np.asarray(Image.open(root / "train/depth/003.png")) * 0.001
    low, high = np.quantile(1 / metres, [0.02, 0.98])
    expected = np.clip(2 * (1 / metres - low) / (high - low) - 1, -1, 1)
    np.testing.assert_allclose(item["depth"][1], expected, atol=1e-5)
    np.testing.assert_allclose(item["normal"].norm(dim=0), 1, atol=1e-5)
    labels = np.asarray(Image.open(root / "train/segmentation/003.png"))
    np.testing.assert_array_equal(item["segmentation"][0].numpy() > 0, labels == 5)  # only the torus is red


def test_mirrored_items_follow_the_plain_ones(make_dataset):
    folder = AlignedFolder(make_dataset(num_samples=3), mirrored=True)
    assert len(folder) == 6
    plain, mirrored = folder[1], folder[4]
    assert plain["id"] == mirrored["id"]
    for name in ("rgb", "depth", "segmentation"):
        assert torch.equal(mirrored[name], plain[name].flip(-1))
    sign = torch.tensor([-1.0, 1.0, 1.0])[:, None, None]
    assert torch.equal(mirrored["normal"], plain["normal"].flip(-1) * sign)
    with pytest.raises(IndexError):
        folder[6]


def test_missing_modality_is_zeros_and_marked(make_dataset):
    def edit(rows):
        del rows[0]["depth"]

    folder = AlignedFolder(make_dataset(edit_rows=edit))
    assert folder[0]["present"].tolist() == [True, False, True, True]
    assert not folder[0]["depth"].any()
    assert folder[0]["depth"].shape == (3, 16, 16)
    batch = torch.utils.data.default_collate([folder[0], folder[1]])
    assert stack_modalities(batch, folder.modalities).shape == (2, 4, 3, 16, 16)
    assert batch["present"][1].all()


def test_bad_files_name_sample_and_file_and_are_never_replaced(make_dataset):
    root = make_dataset()
    folder = AlignedFolder(root)
    (root / "train/normal/001.png").unlink()
    with pytest.raises(UserError, match=r"sample '001': normal: .*normal/001\.png: no such file"):
        folder[1]
    path = root / "train/rgb/002.png"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match=r"sample '002': rgb: .*rgb/002\.png: truncated"):
        folder[2]
    Image.fromarray(np.full((16, 16), 9, np.uint8)).save(root / "train/segmentation/003.png")
    with pytest.raises(UserError, match=r"sample '003': segmentation: .*segmentation/003\.png: unknown labels 9"):
        folder[3]
    Image.fromarray(np.ones((8, 8), np.uint16)).save(root / "train/depth/004.png")
    with pytest.raises(UserError, match=r"sample '004': .*depth 8 x 8"):
        folder[4]
    assert folder[0]["id"] == "000"


def test_a_sample_without_any_modality_is_refused(make_dataset):
    def edit(rows):
        for name in NAMES:
            del rows[0][name]

    with pytest.raises(UserError, match=r"line 1: no modality: give the path of at least one of rgb, depth"):
        AlignedFolder(make_dataset(edit_rows=edit))[0]


def test_resized(make_dataset):
    assert AlignedFolder(make_dataset(), size=8)[0]["depth"].shape == (3, 8, 8)
