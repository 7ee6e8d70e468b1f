import numpy as np
from PIL import Image

from mmdit.data.prompts import Entity
from mmdit.metrics.prompts.views import Cut, Shrunk, read_shown


def test_what_sixteen_pixels_leave(tmp_path):
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / "a.png")
    shrunk = Shrunk(tmp_path / "a.png", 12).read()
    assert shrunk.shape == picture.shape
    means = picture.reshape(12, 4, 16, 4, 3).mean(axis=(1, 3))  # each square of 4 x 4 pixels is one
    back = shrunk.reshape(12, 4, 16, 4, 3).mean(axis=(1, 3))
    assert np.abs(back - means).mean() < 0.25 * means.std()
    flat = np.repeat(np.repeat(np.uint8(means[:1, :1]), 48, 0), 64, 1)
    Image.fromarray(flat).save(tmp_path / "flat.png")
    assert np.array_equal(Shrunk(tmp_path / "flat.png", 16).read(), flat)
    assert np.array_equal(Shrunk(tmp_path / "a.png", 640).read(), picture), "it is never enlarged"


def test_a_floor_alone_is_the_largest_square_of_it(tmp_path):
    picture = np.zeros((32, 32, 3), dtype=np.uint8)
    picture[16:] = 200
    picture[20:, :12] = 90  # something stands on it
    mask = (picture[..., 0] == 200).astype(np.uint8) * 255
    Image.fromarray(picture).save(tmp_path / "rgb.png")
    Image.fromarray(mask).save(tmp_path / "mask.png")
    floor = Entity("grey floor", (None,), (0, 16, 32, 32), tmp_path / "mask.png")
    cut = read_shown(Cut(tmp_path / "rgb.png", floor))
    assert (cut == 200).all()
    assert cut.shape[0] == cut.shape[1] == 15  # odd, of the 16 rows
    assert np.array_equal(read_shown(tmp_path / "rgb.png"), picture)
