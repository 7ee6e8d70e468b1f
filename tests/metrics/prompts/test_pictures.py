import numpy as np
from PIL import Image

from mmdit.metrics.prompts.pictures import RealPictures


def test_pictures_of_samples_and_files_are_looked_at_once(split, instrument, prompted, tmp_path):
    pictures = RealPictures(split, instrument, prompted)
    path = tmp_path / "a.png"
    Image.fromarray(split.truth(3).maps["rgb"]).save(path)
    first, again, other = pictures.look([3, path, 4])
    assert np.array_equal(pictures.read(3), split.truth(3).maps["rgb"])
    assert np.array_equal(first.picture, again.picture)
    assert not np.array_equal(first.picture, other.picture)
    path.unlink()
    assert pictures.look([path, 3])[1] is first
    (rebuilt,) = pictures.look([3], through_vae=True)
    assert not np.array_equal(rebuilt.picture, first.picture)
    assert rebuilt.picture.shape == first.picture.shape
