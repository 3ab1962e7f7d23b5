"""Images that a model draws, and sample.py on runs of images."""

import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
import small_models as models
from PIL import Image

from reformer_jax import data
from reformer_jax.data import images as images_lib
from reformer_jax.generation import show

_SIDE = 4  # of images shrunk by 16
_MODEL = {
    'vocab_size': 256,
    'length': 3 * _SIDE**2,
    'axial_shape': (_SIDE, _SIDE, 3),
    'axial_sizes': (2, 4, 2),
    'pattern': ('full', 'local'),
}
_SETTINGS = {'key': jax.random.key(0), 'samples': 3, 'temperature': 1.0}


@pytest.fixture
def photographs(tmp_path):
    """An .npz of 5 validation images, and its path."""
    images = np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), np.uint8)
    path = tmp_path / 'images.npz'
    np.savez(path, train=images[::-1], validation=images)
    return images, str(path)


def _dataset(source):
    fields = {'dataset': 'imagenet64', 'source': source, 'shrink': 16}
    return data.open({**fields, 'batch_size': 2, 'seed': 0})


def _pixels(picture, row, column, side=_SIDE):
    step = side + 2
    return picture[row * step : row * step + side, column * step : column * step + side]


def test_a_grid_has_images_in_rows_with_white_between():
    images = np.arange(2 * 3 * 4 * 4 * 3).reshape(2, 3, 4, 4, 3).astype(np.uint8)
    picture = show.grid(images)
    assert picture.shape == (4 + 2 + 4, 4 + 2 + 4 + 2 + 4, 3)
    for row in range(2):
        for column in range(3):
            np.testing.assert_array_equal(
                _pixels(picture, row, column), images[row, column]
            )
    assert (picture[4:6] == 255).all() and (picture[:, 10:12] == 255).all()


def test_images_of_the_validation_split_in_their_order(photographs):
    images, source = photographs
    tokens = show.given(_dataset(source), None, 3)
    expected = images_lib.to_tokens(images_lib.average(images[:3], 16))
    np.testing.assert_array_equal(tokens, expected)
    assert show.given(_dataset(source), None, 0).shape == (0, 48)
    # The last batch of the split is padded.
    assert show.given(_dataset(source), None, 5).shape == (5, 48)
    with pytest.raises(ValueError, match='--images=6, and .* has 5'):
        show.given(_dataset(source), None, 6)


def test_images_of_a_user(photographs, tmp_path):
    images, source = photographs
    Image.fromarray(images[1]).save(tmp_path / 'one.png')
    one = show.given(_dataset(source), str(tmp_path / 'one.png'), 0)
    expected = images_lib.to_tokens(images_lib.average(images[1:2], 16))
    np.testing.assert_array_equal(one, expected)
    assert len(show.given(_dataset(source), source, 2)) == 2
    Image.fromarray(images[1][:32]).save(tmp_path / 'half.png')
    with pytest.raises(ValueError, match='64x32 pixels.*needs 64x64'):
        show.given(_dataset(source), str(tmp_path / 'half.png'), 0)


def test_lower_halves_are_completed(photographs):
    images, source = photographs
    model = models.build(**_MODEL)
    truth = show.given(_dataset(source), None, 2)
    picture = show.draw(model, truth, **_SETTINGS)
    small = images_lib.average(images[:2], 16)
    assert picture.shape == (2 * 6 - 2, 5 * 6 - 2, 3)
    for row in range(2):
        np.testing.assert_array_equal(_pixels(picture, row, 0), small[row])
        for column in range(1, 5):
            upper, lower = np.split(_pixels(picture, row, column), 2)
            np.testing.assert_array_equal(upper, small[row][:2])
            assert (lower == 128).all() == (column == 1)
    first, second = _pixels(picture, 0, 2), _pixels(picture, 0, 3)
    assert (first[2:] != second[2:]).any()


def test_whole_images_are_drawn():
    model = models.build(**_MODEL)
    nothing = np.zeros((0, 48), np.int32)
    picture = show.draw(model, nothing, **_SETTINGS)
    assert picture.shape == (4, 3 * 6 - 2, 3)
    again = show.draw(model, nothing, **_SETTINGS)
    np.testing.assert_array_equal(picture, again)
    other = show.draw(model, nothing, **_SETTINGS | {'key': jax.random.key(1)})
    assert (picture != other).any()


def test_a_picture_is_a_new_file(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (4, 10, 3), np.uint8)
    first = show.save(picture, None, str(tmp_path), 7)
    second = show.save(picture, None, str(tmp_path), 7)
    assert first != second and first.name.startswith('step_7_')
    assert first.parent == tmp_path / 'samples'
    np.testing.assert_array_equal(np.asarray(Image.open(first)), picture)
    path = str(tmp_path / 'new' / 'grid.png')
    assert show.save(picture, path, str(tmp_path), 7) == pathlib.Path(path)
    with pytest.raises(FileExistsError):
        show.save(picture, path, str(tmp_path), 7)


def test_paths_begin_at_home_where_they_say_so(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.chdir(tmp_path)
    picture = np.zeros((4, 10, 3), np.uint8)
    show.save(picture, '~/grid.png', '~/run', 7)
    show.save(picture, None, '~/run', 7)
    assert {file.name for file in tmp_path.iterdir()} == {'grid.png', 'run'}
    assert show.from_file('~/grid.png').startswith(b'\x89PNG')
    with pytest.raises(FileExistsError, match='~/grid.png exists'):
        show.check_new('~/grid.png')


def test_an_output_that_exists_is_refused(tmp_path):
    (tmp_path / 'grid.png').write_text('mine')
    show.check_new(None)
    show.check_new(str(tmp_path / 'other.png'))
    with pytest.raises(FileExistsError, match='give --output a new file'):
        show.check_new(str(tmp_path / 'grid.png'))
    assert (tmp_path / 'grid.png').read_text() == 'mine'


def test_flags_of_texts_are_refused_for_images(photographs, tmp_path):
    _, source = photographs
    root = pathlib.Path(__file__).parents[2]
    done = subprocess.run(
        [
            sys.executable,
            str(root / 'sample.py'),
            f'--config={root}/configs/imagenet64.py:tiny',
            f'--config.data.source={source}',
            f'--workdir={tmp_path}',
            '--prompt=a text',
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode and 'the run is on images, leave out --prompt' in done.stderr
