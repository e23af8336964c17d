"""Admission of key pairs.

**Pure.** Source: RFC 4253 section 6.6 (the key blob starts with the length and name of its algorithm).
"""

from __future__ import annotations

import base64
from typing import Final

from google.protobuf.field_mask_pb2 import FieldMask

from controller.admit import common
from controller.admit.common import Context, Violations
from controller.commit import Change
from controller.state import State
from controller.store import keys
from cumulet.v1 import keypair_pb2

PUBLIC_KEY_MAX: Final = 16 * 1024  # an RSA key of 65,536 bits has 11 KiB
MUTABLE = ("meta.labels",)


def create(state: State, context: Context, project: str, given: keypair_pb2.KeyPair) -> Change:
    violations = Violations()
    project_row = common.get_live_row(state, keys.PROJECTS, project)
    meta = common.new_meta(given.meta, project, context, violations)
    violations.add("spec.public_key", public_key_error(given.spec.public_key.strip()))
    violations.raise_any(f"key pair {given.meta.name!r} was not created")
    made = keypair_pb2.KeyPair(
        meta=meta, spec=keypair_pb2.KeyPairSpec(public_key=given.spec.public_key.strip())
    )
    change = common.put_new(state, keys.KEY_PAIRS, (project, meta.name), made)
    common.rest_on(change, keys.PROJECTS, project_row, project)
    return change


def update(
    state: State, context: Context, parts: tuple[str, ...], given: keypair_pb2.KeyPair, mask: FieldMask
) -> Change:
    row, merged = common.updated(state, keys.KEY_PAIRS, parts, given, mask, MUTABLE)
    return common.put_changed(keys.KEY_PAIRS, parts, row, merged)


def delete(state: State, context: Context, parts: tuple[str, ...], etag: str) -> Change:
    """Guests keep the keys that they were made with."""
    row = common.get_row(state, keys.KEY_PAIRS, *parts)
    common.check_etag(keys.KEY_PAIRS, parts, row, etag)
    return common.remove(keys.KEY_PAIRS, parts, row)


def public_key_error(line: str) -> str | None:
    """What is wrong with one line of OpenSSH's public key format, or None."""
    if len(line) > PUBLIC_KEY_MAX or not line.isprintable():
        return f"must be one printable line of at most {PUBLIC_KEY_MAX} characters"
    words = line.split(None, 2)
    if len(words) < 2:
        return "is not a public key in OpenSSH's format, such as the line in ~/.ssh/id_ed25519.pub"
    try:
        blob = base64.b64decode(words[1], validate=True)
    except ValueError:  # not base64, or not even ASCII
        return "has a damaged key (not base64): copy the whole line again"
    length = int.from_bytes(blob[:4], "big")
    if blob[4 : 4 + length].decode(errors="replace") != words[0]:
        return f"says {words[0]!r}, but the key inside is of another type: copy the whole line again"
    return None
