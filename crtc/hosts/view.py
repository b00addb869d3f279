"""Which part of a picture a processor shows to its host."""

from typing import Any

from crtc.retention import Box


def view_of(processor: Any, width: int, height: int) -> Box:
    """Left, top, right and bottom, in pixels of a picture, of what its visual tokens cover.

    Processors that scale the shorter side and cut out the middle, as CLIP's, leave out the ends of a long picture; one
    that cuts out more than there is pads, and the view goes beyond the picture.
    """
    images = processor.image_processor
    if not getattr(images, "do_center_crop", False):
        return 0.0, 0.0, float(width), float(height)
    across = down = 1.0  # scale
    if images.do_resize:
        size = dict(images.size)
        if size.get("shortest_edge"):
            across = down = size["shortest_edge"] / min(width, height)
        else:
            across, down = size["width"] / width, size["height"] / height
    cut = dict(images.crop_size)
    seen = cut["width"] / across, cut["height"] / down
    left, top = (width - seen[0]) / 2, (height - seen[1]) / 2
    return left, top, left + seen[0], top + seen[1]
