"""The cloud-init seed (NoCloud): what its files say, and the ISO image that carries them.

**Pure**: bytes in, bytes out. Two seeds are equal if their files are; the image around them holds dates.
Source: cloud-init, "NoCloud": volume id `cidata`, files `meta-data` and `user-data`; without
`network-config` the guest asks DHCP.
"""

from __future__ import annotations

import io
import json
from typing import Final

from pycdlib.pycdlib import PyCdlib
from pycdlib.pycdlibexception import PyCdlibException

from agent.storage.driver import SeedSpec

VOLUME_ID: Final = "cidata"
EMPTY_USER_DATA: Final = b"#cloud-config\n{}\n"  # an empty file makes some versions of cloud-init warn
ISO_INTERCHANGE_LEVEL: Final = 3
ROCK_RIDGE: Final = "1.09"
# Joliet and Rock Ridge hold the real names; plain ISO 9660 knows neither lower case nor a dash.
_ISO_NAMES: Final = {"meta-data": "/METADATA.;1", "user-data": "/USERDATA.;1"}


def render_seed(spec: SeedSpec) -> dict[str, bytes]:
    """The seed's files by name. meta-data is JSON with a key a line, so that simple guests can grep it."""
    meta = {
        "instance-id": spec.uid,
        "local-hostname": spec.hostname,
        "public-keys": list(spec.authorized_keys),
    }
    # Not as ASCII: cloud-init reads it as YAML, which does not join the surrogate pairs of JSON escapes.
    text = json.dumps(meta, indent=2, ensure_ascii=False) + "\n"
    return {"meta-data": text.encode(), "user-data": spec.user_data or EMPTY_USER_DATA}


def build_iso(files: dict[str, bytes]) -> bytes:
    """An ISO 9660 image of the seed's files."""
    iso = PyCdlib()
    iso.new(interchange_level=ISO_INTERCHANGE_LEVEL, vol_ident=VOLUME_ID, joliet=3, rock_ridge=ROCK_RIDGE)
    try:
        for name, data in sorted(files.items()):
            iso.add_fp(io.BytesIO(data), len(data), _ISO_NAMES[name], rr_name=name, joliet_path=f"/{name}")
        image = io.BytesIO()
        iso.write_fp(image)
    finally:
        iso.close()
    return image.getvalue()


def parse_iso(image: bytes) -> dict[str, bytes] | None:
    """The files of a seed image; None if it is none, or a torn one."""
    iso = PyCdlib()
    try:
        iso.open_fp(io.BytesIO(image))
    except PyCdlibException:
        return None
    try:
        return {name: _read(iso, name) for name in _ISO_NAMES}
    except PyCdlibException:
        return None
    finally:
        iso.close()


def _read(iso: PyCdlib, name: str) -> bytes:
    data = io.BytesIO()
    iso.get_file_from_iso_fp(data, joliet_path=f"/{name}")
    return data.getvalue()
