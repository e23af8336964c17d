"""The resource vector and the sizes that people write. **Pure.**"""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from cumulet import units
from cumulet.resources import (
    AMOUNT_MAX,
    EXTENDED_NAMES_MAX,
    MEMORY_MIB_MAX,
    VCPU_MAX,
    ZERO,
    AbsurdQuantityError,
    NegativeQuantityError,
    QuantityError,
    QuantityOverflowError,
    QuantityTypeError,
    ResourceNameError,
    Resources,
    parse_extended,
    validate_resources,
)

names = st.sampled_from(["gpu", "fpga", "bandwidth_mbps", "nvidia.com/a100"])
small = st.integers(0, 2**40)
vectors = st.builds(
    Resources,
    vcpu=small,
    memory_mib=small,
    disk_gib=small,
    extended=st.dictionaries(names, small).map(lambda amounts: tuple(amounts.items())),
)


@given(vectors, vectors)
def test_what_is_added_can_be_taken_away(a: Resources, b: Resources) -> None:
    assert a + b == b + a
    assert (a + b) - b == a
    assert a.fits_in(a + b)
    assert a + ZERO == a
    assert (a - a).is_zero()


@given(vectors, vectors)
def test_subtraction_is_refused_exactly_where_it_does_not_fit(a: Resources, b: Resources) -> None:
    assume(not b.fits_in(a))
    with pytest.raises(NegativeQuantityError) as caught:
        a - b
    assert b.get(caught.value.field) > a.get(caught.value.field)


@given(vectors)
def test_a_vector_is_its_dict(a: Resources) -> None:
    assert Resources.of(a.as_dict()) == a
    assert tuple(a.as_dict()) == a.names()
    assert all(a.get(name) == amount for name, amount in a.as_dict().items())
    assert a.get("absent") == 0


def test_equal_vectors_are_equal_values() -> None:
    one = Resources(1, extended=(("gpu", 2), ("fpga", 1), ("tpu", 0)))
    other = Resources(1, extended=(("fpga", 1), ("gpu", 2)))
    assert one == other
    assert hash(one) == hash(other)
    assert str(one) == "vcpu 1, fpga 1, gpu 2"
    assert str(ZERO) == "nothing"


def test_sums_never_wrap() -> None:
    with pytest.raises(QuantityOverflowError, match="memory_mib") as caught:
        Resources(memory_mib=AMOUNT_MAX) + Resources(memory_mib=1)
    assert caught.value.field == "memory_mib"
    with pytest.raises(QuantityOverflowError, match="gpu"):
        Resources.total([Resources(extended=(("gpu", AMOUNT_MAX),))] * 2)


@pytest.mark.parametrize(
    ("amounts", "error", "field"),
    [
        ({"vcpu": -1}, NegativeQuantityError, "vcpu"),
        ({"disk_gib": 2**63}, QuantityOverflowError, "disk_gib"),
        ({"memory_mib": 1.5}, QuantityTypeError, "memory_mib"),
        ({"vcpu": True}, QuantityTypeError, "vcpu"),
        ({"vcpu": float("nan")}, QuantityTypeError, "vcpu"),
        ({"gpu": -3}, NegativeQuantityError, "gpu"),
        ({"Gpu": 1}, ResourceNameError, "Gpu"),
        ({"gpu ": 1}, ResourceNameError, "gpu "),
        ({"": 1}, ResourceNameError, "extended"),
        ({"g" * 64: 1}, ResourceNameError, "g" * 63),
    ],
)
def test_what_cannot_be_is_refused_by_field(
    amounts: dict[str, int], error: type[QuantityError], field: str
) -> None:
    with pytest.raises(error) as caught:
        Resources.of(amounts)
    assert caught.value.field == field
    assert str(caught.value).startswith(f"{field}: ")


def test_a_resource_is_named_once() -> None:
    with pytest.raises(ResourceNameError, match="twice"):
        Resources(extended=(("gpu", 1), ("gpu", 2)))
    with pytest.raises(ResourceNameError, match="field of its own"):
        Resources(extended=(("vcpu", 1),))


def test_absurd_quantities_are_all_reported() -> None:
    absurd = Resources(VCPU_MAX + 1, MEMORY_MIB_MAX, 2**40, (("gpu", 2**41),))
    errors = validate_resources(absurd, "spec.resources")
    assert [error.field for error in errors] == [
        "spec.resources.vcpu",
        "spec.resources.disk_gib",
        "spec.resources.gpu",
    ]
    assert all(isinstance(error, AbsurdQuantityError) for error in errors)
    many = Resources(extended=tuple((f"r{i}", 1) for i in range(EXTENDED_NAMES_MAX + 1)))
    assert [error.field for error in validate_resources(many)] == ["resources.extended"]
    assert validate_resources(Resources(VCPU_MAX, MEMORY_MIB_MAX)) == ()


def test_named_amounts_are_parsed() -> None:
    assert parse_extended("gpu=2") == ("gpu", 2)
    assert parse_extended("gpu=0") == ("gpu", 0)
    for text in ("gpu", "gpu=", "gpu=-1", "gpu=1.5", "gpu=²", "=1", "vcpu=1"):
        with pytest.raises(QuantityError):
            parse_extended(text)


@pytest.mark.parametrize(
    ("text", "mib"),
    [
        ("2GiB", 2048),
        ("2 GiB", 2048),
        ("2g", 2048),
        ("1.5G", 1536),
        ("512", 512),
        ("512MiB", 512),
        ("1024K", 1),
        ("1TiB", 2**20),
        ("0", 0),
        ("1048576B", 1),
        ("3EiB", 3 * 2**40),
    ],
)
def test_sizes_are_parsed(text: str, mib: int) -> None:
    assert units.parse_mib(text) == mib


@pytest.mark.parametrize(
    "text", ["", "GiB", "-1GiB", "2GB", "2 MB", "1e3", "1KiB", "0.1MiB", "1 G iB", "9" * 40, "2X"]
)
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(units.SizeError):
        units.parse_mib(text)


def test_a_refusal_says_what_to_write() -> None:
    with pytest.raises(units.SizeError, match="write GiB"):
        units.parse_mib("2GB")
    with pytest.raises(units.SizeError, match="whole number of GiB"):
        units.parse_gib("100MiB")


@given(st.integers(0, 2**62))
def test_sizes_round_trip(amount: int) -> None:
    assert units.parse_mib(units.render_mib(amount)) == amount
    assert units.parse_gib(units.render_gib(amount)) == amount


@given(st.text(max_size=40))
def test_any_text_is_a_size_or_a_size_error(text: str) -> None:
    with suppress(units.SizeError):
        assert units.parse_gib(text) >= 0
