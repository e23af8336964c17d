"""Programs for the kernel's BPF machine: a small assembler, and the call that loads one.

**Edge**: `load` is bpf(2); the rest is **pure**. Only what frames between a provider network and its uplink
need (segment.py): no maps, no loops. A loaded program lives as long as its file descriptor or the filter that
runs it. Source: linux/bpf.h, Documentation/bpf/standardization/instruction-set.rst (RFC 9669).
"""

from __future__ import annotations

import ctypes
import os
import struct
from typing import Final

from agent.errors import DriverError

_SYS_BPF: Final = {"x86_64": 321, "aarch64": 280}
_PROG_LOAD: Final = 5
_SCHED_CLS: Final = 3  # BPF_PROG_TYPE_SCHED_CLS
_NAME_LENGTH: Final = 15
_LOG_BYTES: Final = 1 << 16
_INSTRUCTION: Final = struct.Struct("<BBhi")  # operation, registers, offset, immediate
_LOAD: Final = struct.Struct("<IIQQIIQII16s")  # attr of BPF_PROG_LOAD, up to the name

_MOV: Final = 0xB7  # ALU64, immediate
_MOV_REGISTER: Final = 0xBF
_ADD: Final = 0x07
_AND: Final = 0x57
_CALL: Final = 0x85
_EXIT: Final = 0x95
_JUMP_EQUAL: Final = 0x16  # of 32 bits, as is the next, so that an immediate is not sign-extended
_JUMP_NOT_EQUAL: Final = 0x56
_STORE_WORD: Final = 0x63  # from a register
_LOAD_OPERATIONS: Final = {1: 0x71, 2: 0x69, 4: 0x61}

_libc = ctypes.CDLL(None, use_errno=True)


def move(register: int, value: int) -> bytes:
    return _INSTRUCTION.pack(_MOV, register, 0, value)


def copy(register: int, source: int) -> bytes:
    return _INSTRUCTION.pack(_MOV_REGISTER, source << 4 | register, 0, 0)


def add(register: int, value: int) -> bytes:
    return _INSTRUCTION.pack(_ADD, register, 0, value)


def mask(register: int, value: int) -> bytes:
    return _INSTRUCTION.pack(_AND, register, 0, value)


def load_memory(register: int, base: int, offset: int, size: int) -> bytes:
    """`size` bytes, 1, 2 or 4."""
    return _INSTRUCTION.pack(_LOAD_OPERATIONS[size], base << 4 | register, offset, 0)


def store_word(base: int, offset: int, source: int) -> bytes:
    return _INSTRUCTION.pack(_STORE_WORD, source << 4 | base, offset, 0)


def call(helper: int) -> bytes:
    return _INSTRUCTION.pack(_CALL, 0, 0, helper)


def leave() -> bytes:
    """With register 0 as the verdict."""
    return _INSTRUCTION.pack(_EXIT, 0, 0, 0)


def skip_unless(register: int, value: int, skipped: bytes) -> bytes:
    """Run `skipped` only when the register's lower half has this value."""
    return _jump(_JUMP_NOT_EQUAL, register, value, skipped)


def skip_if(register: int, value: int, skipped: bytes) -> bytes:
    """Run `skipped` unless the register's lower half has this value."""
    return _jump(_JUMP_EQUAL, register, value, skipped)


def _jump(operation: int, register: int, value: int, skipped: bytes) -> bytes:
    signed = int.from_bytes(value.to_bytes(4, "little"), "little", signed=True)
    return _INSTRUCTION.pack(operation, register, len(skipped) // _INSTRUCTION.size, signed) + skipped


def load(program: bytes, name: str) -> int:
    """A file descriptor. Raises DriverError with what the kernel's verifier says."""
    number = _SYS_BPF.get(os.uname().machine)
    if number is None:
        raise DriverError("BpfUnavailable", f"BPF is not known on {os.uname().machine}", permanent=True)
    body = ctypes.create_string_buffer(program, len(program))
    licence = ctypes.create_string_buffer(b"GPL")  # what helpers that redirect ask for
    log = ctypes.create_string_buffer(_LOG_BYTES)
    attr = _LOAD.pack(
        _SCHED_CLS,
        len(program) // _INSTRUCTION.size,
        ctypes.addressof(body),
        ctypes.addressof(licence),
        1,
        _LOG_BYTES,
        ctypes.addressof(log),
        0,
        0,
        name.encode()[:_NAME_LENGTH],
    )
    made: int = _libc.syscall(number, _PROG_LOAD, ctypes.create_string_buffer(attr, len(attr)), len(attr))
    if made < 0:
        reason = os.strerror(ctypes.get_errno())
        said = log.value.decode(errors="replace").strip()[-300:]
        raise DriverError(
            "BpfRefused",
            f"the kernel did not take BPF program {name}: {reason}; {said or 'agents need CAP_BPF'}",
        )
    return made
