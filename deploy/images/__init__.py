"""The small guest image: built from Debian's packages, cached by the digest of its inputs.

**Edge**, except for `tree`, `modules` and `recipe`. Needs Python's standard library only.
"""

from .errors import ImageBuildError
from .image import DEFAULT_CACHE, BuiltImage, build_image, find_image

__all__ = ["DEFAULT_CACHE", "BuiltImage", "ImageBuildError", "build_image", "find_image"]
