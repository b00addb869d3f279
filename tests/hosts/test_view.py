"""What of a picture a processor shows, against the pixels that come out of it."""

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from crtc.hosts.embedded import make_processor
from crtc.hosts.view import view_of


@pytest.mark.parametrize("size", [(640, 480), (300, 500), (224, 224)])
@pytest.mark.parametrize("settings", [{}, {"size": {"shortest_edge": 256}}, {"do_resize": False}])
def test_the_view_is_what_comes_out(size, settings):
    """A picture whose red and green tell the column and the row of every pixel."""
    width, height = size
    if settings.get("do_resize") is False and min(size) < 224:
        pytest.skip("nothing to cut out")
    columns, rows = np.meshgrid(np.arange(width) * 255 / width, np.arange(height) * 255 / height)
    picture = Image.fromarray(np.stack([columns, rows, rows], -1).astype(np.uint8))
    images = CLIPImageProcessorPil(do_normalize=False, do_rescale=False, **settings)
    seen = np.asarray(images(picture)["pixel_values"][0], dtype=float)
    left, top, right, bottom = view_of(SimpleNamespace(image_processor=images), width, height)
    assert seen[0, :, 0].mean() / 255 * width == pytest.approx(left, abs=4)
    assert seen[0, :, -1].mean() / 255 * width == pytest.approx(right, abs=4)
    assert seen[1, 0].mean() / 255 * height == pytest.approx(top, abs=4)
    assert seen[1, -1].mean() / 255 * height == pytest.approx(bottom, abs=4)


def test_the_embedded_host_sees_all():
    assert view_of(make_processor(), 640, 480) == (0, 0, 640, 480)
