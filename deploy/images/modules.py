"""Which kernel modules a guest needs, and in which order they are loaded.

**Pure**: reads the bytes of module files, as the kernel's package ships them; runs no depmod.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath

from .errors import ImageBuildError

# Source: Linux include/linux/moduleinfo.h: .modinfo holds NUL-terminated "tag=value" strings.
_DEPENDS = re.compile(rb"\0depends=([^\0]*)\0")


class UnknownModule(ImageBuildError):
    """A module is neither a file of the kernel's package nor built into the kernel."""

    def __init__(self, name: str) -> None:
        super().__init__(f"kernel module {name}: not in the kernel package", "check the names in recipe.py")
        self.name = name


def module_name(path: str) -> str:
    """The name that the kernel uses: files have '-' where names have '_'."""
    return PurePosixPath(path).name.removesuffix(".ko").replace("-", "_")


def parse_builtin(listing: str) -> frozenset[str]:
    """The names in a `modules.builtin` file."""
    return frozenset(module_name(line) for line in listing.splitlines() if line)


def parse_depends(module: bytes) -> tuple[str, ...]:
    """The names that a module file says it depends on."""
    found = _DEPENDS.search(module)
    if found is None:
        return ()
    return tuple(name.replace("-", "_") for name in found.group(1).decode().split(",") if name)


def order_modules(
    wanted: Iterable[str], depends: Mapping[str, tuple[str, ...]], builtin: frozenset[str]
) -> tuple[str, ...]:
    """The wanted modules with all they depend on, each after its dependencies; built-in ones are left out.

    Raises UnknownModule.
    """
    ordered: dict[str, None] = {}

    def visit(name: str) -> None:
        if name in builtin or name in ordered:
            return
        if name not in depends:
            raise UnknownModule(name)
        for dependency in depends[name]:
            visit(dependency)
        ordered[name] = None

    for name in wanted:
        visit(name)
    return tuple(ordered)


def render_modules_dep(paths: Mapping[str, str], depends: Mapping[str, tuple[str, ...]]) -> str:
    """A `modules.dep` file for modules (name -> path), as modprobe reads it: the nearest dependency first."""
    outside = frozenset(depends) - frozenset(paths)
    lines: list[str] = []
    for name in sorted(paths):
        closure = order_modules(depends[name], depends, outside)
        lines.append(f"{paths[name]}: {' '.join(paths[needed] for needed in reversed(closure))}".rstrip())
    return "\n".join(lines) + "\n"
