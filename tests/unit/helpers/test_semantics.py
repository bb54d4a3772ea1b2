"""What the helper functions promise in every language, and that one language reads what another writes."""

from __future__ import annotations

import json
import stat
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.unit.helpers.languages import Bash, HelperError, Language, Workspace, identical

NASTY = {
    "plain": "text",
    "a.b.c": "$HOME `id` $(id) ${x} \\ ' \" \\n",
    "quote\"s and 's": "line one\nline two\ttab\r",
    "new\nline": {"__proto__": {"polluted": True}, "constructor": 1},
    "__proto__": {"nested": [None, False, 0, "", {}]},
    "toString": "constructor",
    "größe 😀 \u2028": "日本語 😀 \u2028 \x7f \x01",
    "": "empty key",
    "--json": "--json",
    "-n": "-e",
    "$k": "%s %d \\u0041",
    "zero": 0,
    "false": False,
    "null": None,
    "empty": "",
    "number text": "007",
    "half": -0.5,
    "big": 2**53,
    "tiny": 1e-300,
    "list": [[], {}, [[1.5]], "]"],
}

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(-(2**53), 2**53)  # jq before 1.7 and Node.js round whole numbers beyond
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner)
    ),
    max_leaves=8,
)
# An argument of a Bash function cannot hold NUL.
keys = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))


def saved(workspace: Workspace, name: str) -> Any:
    return json.loads((workspace.root / name).read_text(encoding="utf-8"))


def test_a_job_without_files_has_defaults(language: Language, workspace: Workspace) -> None:
    assert language.call(workspace, "input") == {}
    assert language.call(workspace, "event") == {}
    assert language.call(workspace, "get_condition") is False
    assert language.call(workspace, "get_variable", "missing") in (None, "")
    assert workspace.files() == set()


@pytest.mark.parametrize("value", [NASTY, [], 0, False, "", None, "text"], ids=repr)
def test_input_is_any_json(language: Language, workspace: Workspace, value: Any) -> None:
    workspace.lay("input.json", value)

    assert identical(language.call(workspace, "input"), value)


@pytest.mark.parametrize("value", [NASTY, [], 0, False, "", None, 'te"xt\n'], ids=repr)
def test_output_is_any_json_and_the_last_call_wins(language: Language, workspace: Workspace, value: Any) -> None:
    language.call(workspace, "output", {"first": 1})
    language.call(workspace, "output", value)

    assert identical(saved(workspace, "output/output.json"), value)
    assert workspace.files() == {"output/output.json"}


@pytest.mark.parametrize(("writer", "reader"), [("bash", "python"), ("python", "node"), ("node", "bash")])
def test_nasty_names_and_values_survive(
    languages: dict[str, Language], workspace: Workspace, writer: str, reader: str
) -> None:
    for key, value in NASTY.items():
        languages[writer].call(workspace, "set_variable", key, value)

    assert identical(saved(workspace, "data/variables.json"), NASTY)
    for key, value in NASTY.items():
        assert identical(languages[reader].call(workspace, "get_variable", key), value), key
    assert workspace.files() == {"data/variables.json"}


@settings(
    max_examples=10,
    deadline=None,
    database=None,
    phases=[Phase.generate],  # a Bash call takes 50 ms: shrinking would take minutes
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(key=keys, value=json_values)
def test_any_value_goes_round_all_languages(
    languages: dict[str, Language], workspace: Workspace, key: str, value: Any
) -> None:
    for writer, reader in (("python", "node"), ("node", "bash"), ("bash", "python")):
        languages[writer].call(workspace, "set_variable", key, value)
        assert identical(languages[reader].call(workspace, "get_variable", key), value)
        languages["python"].call(workspace, "delete_variable", key)


@pytest.mark.parametrize(("get", "set_"), [("get_variable", "set_variable"), ("getVariable", "setVariable")])
def test_both_spellings_of_the_variables(language: Language, workspace: Workspace, get: str, set_: str) -> None:
    language.call(workspace, set_, "k", "v")

    assert language.call(workspace, get, "k") == "v"


@pytest.mark.parametrize(("get", "set_"), [("get_condition", "set_condition"), ("getCondition", "setCondition")])
@pytest.mark.parametrize("value", [True, False])
def test_condition(language: Language, workspace: Workspace, get: str, set_: str, value: bool) -> None:
    language.call(workspace, set_, not value)
    language.call(workspace, set_, value)

    assert language.call(workspace, get) is value
    assert saved(workspace, "output/condition.json") == {"result": value}
    assert workspace.files() == {"output/condition.json"}


@pytest.mark.parametrize(
    ("word", "value"),
    [*((word, True) for word in ("true", "1", "Yes", "ON")), *((word, False) for word in ("false", "0", "No", "oFF"))],
)
def test_condition_takes_words(language: Language, workspace: Workspace, word: str, value: bool) -> None:
    if isinstance(language, Bash):
        assert language.run(workspace, f"cronium_set_condition {word}") == (0, "", "")
    else:
        language.call(workspace, "set_condition", word)

    assert saved(workspace, "output/condition.json") == {"result": value}


def test_condition_refuses_other_words(language: Language, workspace: Workspace) -> None:
    with pytest.raises(HelperError, match="a condition is one of true, 1, yes"):
        language.call(workspace, "set_condition", "maybe")
    assert workspace.files() == set()


@pytest.mark.parametrize(("value", "truth"), [(0, False), (2, True), ([], None), (None, False)])
def test_condition_takes_the_truth_of_a_value(
    languages: dict[str, Language], workspace: Workspace, value: Any, truth: bool | None
) -> None:
    for name, empty_list in (("python", False), ("node", True)):
        languages[name].call(workspace, "set_condition", value)
        assert languages[name].call(workspace, "get_condition") is (empty_list if truth is None else truth)


def test_event_is_the_file(language: Language, workspace: Workspace) -> None:
    event = {"id": 7, "name": "größe", "jobId": "j", "attempt": 1, "__proto__": None}
    workspace.lay("event.json", event)

    got = language.call(workspace, "event", CRONIUM_EVENT_METADATA='{"id": "not this"}')

    assert identical(got, event)


def test_event_falls_back_to_the_environment(language: Language, workspace: Workspace) -> None:
    assert language.call(workspace, "event", CRONIUM_EVENT_METADATA='{"id": "ü"}') == {"id": "ü"}
    with pytest.raises(HelperError, match="CRONIUM_EVENT_METADATA does not hold valid JSON"):
        language.call(workspace, "event", CRONIUM_EVENT_METADATA="{")
    with pytest.raises(HelperError, match="CRONIUM_EVENT_METADATA does not hold a JSON object"):
        language.call(workspace, "event", CRONIUM_EVENT_METADATA="[1]")


def test_increment(language: Language, workspace: Workspace) -> None:
    assert language.call(workspace, "increment_variable", "n") == 1
    assert language.call(workspace, "increment_variable", "n", 41) == 42
    assert language.call(workspace, "increment_variable", "n", -0.5) == 41.5

    assert saved(workspace, "data/variables.json") == {"n": 41.5}


@pytest.mark.parametrize("value", ["text", None, True, [1], {}], ids=repr)
def test_increment_of_something_else_is_an_error(language: Language, workspace: Workspace, value: Any) -> None:
    workspace.lay("variables.json", {"n": value})

    with pytest.raises(HelperError, match="is not a number"):
        language.call(workspace, "increment_variable", "n")
    with pytest.raises(HelperError, match="increment is not a number"):
        language.call(workspace, "increment_variable", "fresh", "x")
    assert saved(workspace, "data/variables.json") == {"n": value}


def test_delete(language: Language, workspace: Workspace) -> None:
    workspace.lay("variables.json", {"a": 1, "__proto__": 2})

    assert language.call(workspace, "delete_variable", "__proto__") in (True, None)
    assert saved(workspace, "data/variables.json") == {"a": 1}
    assert language.call(workspace, "delete_variable", "toString") in (False, None)
    assert saved(workspace, "data/variables.json") == {"a": 1}


def test_variables_is_the_whole_object(languages: dict[str, Language], workspace: Workspace) -> None:
    for name in ("python", "node"):
        assert languages[name].call(workspace, "variables") == {}
    workspace.lay("variables.json", NASTY)
    for name in ("python", "node"):
        assert identical(languages[name].call(workspace, "variables"), NASTY)


@pytest.mark.parametrize("content", ["", "{", '{"a": 1} {}', "[1]", "\ufeff{}"])
@pytest.mark.parametrize(
    "call",
    [("get_variable", "a"), ("set_variable", "a", 1), ("increment_variable", "a"), ("delete_variable", "a")],
    ids=lambda call: call[0],
)
def test_corrupt_variables_are_an_error_and_kept(
    language: Language, workspace: Workspace, content: str, call: tuple[Any, ...]
) -> None:
    path = workspace.lay_text("variables.json", content)

    with pytest.raises(HelperError, match=r"variables\.json does not hold (valid JSON|a JSON object)"):
        language.call(workspace, *call)

    assert path.read_text(encoding="utf-8") == content
    assert workspace.files() == {"data/variables.json"}


@pytest.mark.parametrize("name", ["input", "event"])
def test_corrupt_documents_are_an_error(language: Language, workspace: Workspace, name: str) -> None:
    workspace.lay_text(f"{name}.json", "{]")

    with pytest.raises(HelperError, match=rf"{name}\.json does not hold valid JSON"):
        language.call(workspace, name)


@pytest.mark.parametrize("content", ["[]", '{"result": null}', '{"result": "true"}', "{}"])
def test_a_corrupt_condition_is_an_error(language: Language, workspace: Workspace, content: str) -> None:
    workspace.output.mkdir(parents=True)
    (workspace.output / "condition.json").write_text(content, encoding="utf-8")

    with pytest.raises(HelperError, match=r"condition\.json does not hold a"):
        language.call(workspace, "get_condition")


def test_a_file_is_replaced_not_rewritten(language: Language, workspace: Workspace) -> None:
    """A second name of the first file still shows the first content: readers never see half a document."""
    for path, call in (
        (workspace.output / "output.json", ("output",)),
        (workspace.output / "condition.json", ("set_condition",)),
        (workspace.data / "variables.json", ("set_variable", "k")),
    ):
        language.call(workspace, *call, True)
        before = path.read_bytes()
        old_name = workspace.root / "old"
        old_name.hardlink_to(path)

        language.call(workspace, *call, False)

        assert old_name.read_bytes() == before != path.read_bytes()
        old_name.unlink()


def test_files_obey_the_umask(language: Language, workspace: Workspace) -> None:
    """The worker reads them as another user; private modes of temporary files must not stick."""
    workspace.root.mkdir()
    probe = workspace.root / "probe"
    probe.touch()

    language.call(workspace, "output", 1)

    assert stat.S_IMODE((workspace.output / "output.json").stat().st_mode) == stat.S_IMODE(probe.stat().st_mode)


def test_what_cannot_be_written_is_an_error_and_leaves_nothing(language: Language, workspace: Workspace) -> None:
    """Directories are in the way, which stops even root."""
    for directory in ("output/output.json", "output/condition.json", "data/variables.json"):
        (workspace.root / directory / "in the way").mkdir(parents=True)

    with pytest.raises(HelperError, match=r"cannot write .*output\.json"):
        language.call(workspace, "output", 1)
    with pytest.raises(HelperError, match=r"cannot write .*condition\.json"):
        language.call(workspace, "set_condition", True)
    with pytest.raises(HelperError, match=r"cannot (read|write) .*variables\.json"):
        language.call(workspace, "set_variable", "a", 1)
    assert workspace.files() == set()


def test_no_directory_can_be_made_below_a_file(language: Language, workspace: Workspace) -> None:
    workspace.root.mkdir()
    workspace.data.touch()
    workspace.output.touch()

    with pytest.raises(HelperError, match="cannot write"):
        language.call(workspace, "output", 1)
    with pytest.raises(HelperError, match=r"cannot (read|write)"):
        language.call(workspace, "set_variable", "a", 1)


def test_large_values(languages: dict[str, Language], workspace: Workspace) -> None:
    """Beyond the 128 KiB of one argument, and with characters across every border of a buffer."""
    text = "x" + "é€😀" * 20_000
    for writer, reader in (("python", "node"), ("node", "bash"), ("bash", "python")):
        languages[writer].call(workspace, "set_variable", "big", text)
        assert languages[reader].call(workspace, "get_variable", "big") == text
        languages[writer].call(workspace, "output", [text])
        assert saved(workspace, "output/output.json") == [text]
        languages[writer].call(workspace, "increment_variable", "n")
    assert saved(workspace, "data/variables.json") == {"big": text, "n": 3}
