"""Modules are loaded after what they depend on, whatever the graph; built-in ones are not loaded at all.

**Pure**.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.images.modules import (
    UnknownModule,
    module_name,
    order_modules,
    parse_builtin,
    parse_depends,
    render_modules_dep,
)


@st.composite
def graphs(draw: st.DrawFn) -> dict[str, tuple[str, ...]]:
    """A graph without cycles: each module depends on earlier ones only."""
    count = draw(st.integers(1, 12))
    return {
        f"m{i}": tuple(
            f"m{j}" for j in sorted(draw(st.sets(st.integers(0, i - 1), max_size=3) if i else st.just(set())))
        )
        for i in range(count)
    }


@given(graphs(), st.data())
def test_each_module_comes_after_its_dependencies(
    depends: dict[str, tuple[str, ...]], data: st.DataObject
) -> None:
    wanted = data.draw(st.lists(st.sampled_from(sorted(depends))))
    builtin = frozenset(data.draw(st.sets(st.sampled_from(sorted(depends)))))
    order = order_modules(wanted, depends, builtin)
    assert len(set(order)) == len(order)
    assert set(wanted) - builtin <= set(order)
    assert not builtin & set(order)
    for place, name in enumerate(order):
        assert set(depends[name]) - builtin <= set(order[:place])


@given(graphs())
def test_modprobe_loads_a_line_from_right_to_left(depends: dict[str, tuple[str, ...]]) -> None:
    table = render_modules_dep({name: f"{name}.ko" for name in depends}, depends)
    for line in table.splitlines():
        name, _, rest = line.partition(":")
        loaded = [module_name(path) for path in reversed(rest.split())]
        assert set(depends[module_name(name)]) <= set(loaded)
        for place, module in enumerate(loaded):
            assert set(depends[module]) <= set(loaded[:place])


def test_a_module_that_the_kernel_lacks_is_named() -> None:
    with pytest.raises(UnknownModule, match="kernel module ahci: not in the kernel package; check"):
        order_modules(["ahci"], {}, frozenset())


def test_names_are_read_as_the_kernel_writes_them() -> None:
    assert parse_depends(b"\0license=GPL\0depends=virtio-ring,failover\0name=x\0") == (
        "virtio_ring",
        "failover",
    )
    assert parse_depends(b"\0depends=\0") == ()
    assert parse_depends(b"no module info") == ()
    assert parse_builtin("kernel/fs/ext4/ext4.ko\nkernel/lib/libcrc-32.ko\n") == {"ext4", "libcrc_32"}
