"""Small languages: selectors, page tokens, listen addresses; and what is generated is up to date.

**Edge** in protoc, which compares the committed stubs with the protos.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.api.server import BadListenAddressError, check_listen_address
from controller.api.standard import _parse_token, _token
from controller.selector import TERMS_MAX, parse_selector, required_label
from controller.store import keys
from cumulet.errors import InvalidArgumentError

ROOT = Path(__file__).resolve().parents[3]
KEYS = ["app", "tier", "example.org/zone"]
LABELS = st.dictionaries(st.sampled_from(KEYS), st.sampled_from(["a", "b", ""]))
Test = tuple[str, Callable[[dict[str, str]], bool]]


def _terms() -> st.SearchStrategy[Test]:
    key, value = st.sampled_from(KEYS), st.sampled_from(["a", "b"])
    return st.one_of(
        st.builds(lambda k, v: (f"{k}={v}", lambda labels: labels.get(k) == v), key, value),
        st.builds(lambda k, v: (f"{k} == {v}", lambda labels: labels.get(k) == v), key, value),
        st.builds(lambda k, v: (f"{k}!={v}", lambda labels: labels.get(k) != v), key, value),
        st.builds(lambda k: (k, lambda labels: k in labels), key),
        st.builds(lambda k: (f"!{k}", lambda labels: k not in labels), key),
    )


@settings(deadline=None)
@given(st.lists(_terms(), max_size=4), LABELS)
def test_a_selector_is_the_and_of_its_terms(terms: list[Test], labels: dict[str, str]) -> None:
    matches = parse_selector(", ".join(text for text, _ in terms))
    assert matches(labels) == all(test(labels) for _, test in terms)
    required = required_label(", ".join(text for text, _ in terms))
    assert required is None or not matches(labels) or labels[required[0]] == required[1]


@pytest.mark.parametrize("text", ["=", "a=b=c,=", "a b", ",", "a,,b", "!", "!=x", "a=x\0y", "-a", "ä=1"])
def test_a_selector_that_is_none_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(InvalidArgumentError, match="such as app=web") as refused:
        parse_selector(text)
    assert refused.value.violations[0].field == "selector"


def test_a_selector_is_bounded() -> None:
    with pytest.raises(InvalidArgumentError, match=f"at most {TERMS_MAX}"):
        parse_selector(",".join(["a"] * (TERMS_MAX + 1)))


@settings(deadline=None)
@given(st.text(max_size=60))
def test_no_selector_raises_anything_else(text: str) -> None:
    with suppress(InvalidArgumentError):
        parse_selector(text)({"a": "b"})


@settings(deadline=None)
@given(st.integers(1, 2**62), st.lists(st.text(max_size=8), min_size=1, max_size=2))
def test_a_page_token_says_what_was_put_in(revision: int, last: list[str]) -> None:
    assert _parse_token(_token(revision, tuple(last), "q"), "q") == (revision, tuple(last))


def _encoded(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode()


@pytest.mark.parametrize(
    "token",
    [
        "x",
        "!!!",
        "ä",
        *map(
            _encoded,
            [
                1,
                None,
                {},
                [1],
                [1, [], "q", 2],
                ["x", ["a"], "q"],
                [0, ["a"], "q"],
                [-5, ["a"], "q"],
                [1, 5, "q"],
                [True, None, "q"],
            ],
        ),
    ],
)
def test_a_forged_page_token_is_refused(token: str) -> None:
    with pytest.raises(InvalidArgumentError, match="page_token"):
        _parse_token(token, "q")


def test_a_page_token_of_another_query_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="keep project and selector the same"):
        _parse_token(_token(5, ("a",), "q"), "another")


@pytest.mark.parametrize("address", ["unix:/x", "127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "localhost:1"])
def test_loopback_and_sockets_need_no_permission(address: str) -> None:
    check_listen_address(address, insecure=False)


@pytest.mark.parametrize("address", ["0.0.0.0:1", "[::]:1", "192.0.2.1:1", "host.example:1", ":1", ""])
def test_anything_else_does(address: str) -> None:
    with pytest.raises(BadListenAddressError, match="--insecure"):
        check_listen_address(address, insecure=False)
    check_listen_address(address, insecure=True)


def test_the_reference_of_keys_is_up_to_date() -> None:
    """`python -m controller.store.keys > docs/reference/keys.md` writes it anew."""
    assert (ROOT / "docs/reference/keys.md").read_text() == keys.render_reference()


def test_every_key_has_one_writer_and_reads_back() -> None:
    for table in keys.TABLES:
        parts = tuple(f"x{number}" for number in range(len(table.parts)))
        assert keys.parse_key(table.key(*parts)) == (table, parts)
        assert table.writer


def _generate(into: Path, root: Path, protos: Iterable[str], *outputs: str) -> None:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    subprocess.run(
        [sys.executable, "-m", "grpc_tools.protoc", "-I.", *(f"{name}{into}" for name in outputs), *protos],
        cwd=root,
        env=environment,
        check=True,
    )


def test_the_stubs_are_up_to_date(tmp_path: Path) -> None:
    """`make proto` writes them anew."""
    root = ROOT / "proto"
    protos = sorted(str(path.relative_to(root)) for path in root.glob("cumulet/v1/*.proto"))
    services = [name for name in protos if "\nservice " in (root / name).read_text()]
    _generate(tmp_path, root, protos, "--python_out=", "--mypy_out=quiet:")
    _generate(tmp_path, root, services, "--grpc_python_out=", "--mypy_grpc_out=quiet:")
    made = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*_pb2*"))
    assert {str(path) for path in made} == {
        str(path.relative_to(root)) for path in root.glob("cumulet/v1/*_pb2*") if path.suffix != ".pyc"
    }
    stale = [str(path) for path in made if (tmp_path / path).read_bytes() != (root / path).read_bytes()]
    assert stale == []
