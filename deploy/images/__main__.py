"""Command line of the image builder: progress on stderr, the image's folder on stdout.

**Edge**: the process.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from .errors import ImageBuildError
from .full.image import build_debian
from .image import DEFAULT_CACHE, build_image


def main() -> int:
    """Builds an image, or finds it in the cache, and prints its folder."""
    parser = argparse.ArgumentParser(
        prog="deploy/images/build", description="Builds the small guest image, or finds it in the cache."
    )
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE, help="image cache (%(default)s)")
    parser.add_argument("--refresh", action="store_true", help="take Debian's current packages")
    parser.add_argument("--debian", action="store_true", help="a full Debian with cloud-init instead")
    options = parser.parse_args()
    build = build_debian if options.debian else build_image
    try:
        image = build(options.cache, refresh=options.refresh, report=_report)
    except ImageBuildError as err:
        sys.stderr.write(f"deploy/images: {err.what}\n  to fix it: {err.fix}\n")
        return 1
    sys.stdout.write(f"{image.folder}\n")
    return 0


def _report(line: str) -> None:
    sys.stderr.write(f"{line}\n")


if __name__ == "__main__":
    sys.exit(main())
