"""File names as text."""

from hypothesis import example, given
from hypothesis import strategies as st

from cronium_worker.workspace import decode_name, encode_name

COMPONENT = st.binary(min_size=1, max_size=20).filter(
    lambda name: not set(name) & set(b"/\0") and name not in (b".", b"..")
)
PATHS = st.lists(COMPONENT, min_size=1, max_size=3).map(b"/".join)


@given(PATHS | st.text(min_size=1).map(lambda text: text.replace("/", "").replace("\0", "") + "x").map(str.encode))
@example(b"%25\xff")
def test_every_path_comes_back(path: bytes) -> None:
    name = encode_name(path)
    assert decode_name(name) == path
    name.encode()
    try:
        assert name == path.decode()
    except UnicodeDecodeError:
        assert name.startswith("./")


@given(PATHS, PATHS)
def test_two_paths_never_have_one_name(one: bytes, other: bytes) -> None:
    assert (encode_name(one) == encode_name(other)) == (one == other)
