"""What is exported into a file of any format is imported elsewhere as it was."""

from __future__ import annotations

import dbm
import json
import shelve
from pathlib import Path
from typing import Any, get_args

import hypothesis.strategies as st
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings

import cloudstore_mapping as cm
from cloudstore_mapping.errors import BadValueError, BulkError, CloudStoreError, UnsupportedError
from cloudstore_mapping.testing.strategies import json_values, keys
from cloudstore_mapping.transfer import Format, export_store, import_store
from tests.dbm_kinds import KINDS, force
from tests.support.mapping_fixtures import MakeStore

#: What is hard for one format or another.
VALUES: dict[str, Any] = {
    "": None,
    "plain": {"a": [1, 2.5, True, None, "é\n😀"]},
    "a,b/c%2C": [],
    "false": False,
    "long": "x" * 200_000,
    "number": 10**400,
    "text that is JSON": "1",
}
FORMATS = [kind for kind in get_args(Format) if kind != "store"]


@pytest.mark.parametrize("kind", FORMATS)
def test_there_and_back(kind: Format, make_store: MakeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every value comes back equal, over every transport, through every format."""
    force("dbm.dumb", monkeypatch)
    store = make_store()
    store.update(VALUES)
    file = tmp_path / "exported"
    assert export_store(store, file, format=kind) == (len(VALUES), 0, 0, 0, (), 0.0)
    store.clear()
    assert import_store(store, file, format=kind, trust=True) == (len(VALUES), 0, {}, 0)
    assert store.copy() == VALUES


@pytest.mark.parametrize(
    "form",
    ["json", "jsonl", *(pytest.param(kind, marks=() if kind == "dbm.dumb" else pytest.mark.slow) for kind in KINDS)],
)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.dictionaries(keys(), json_values(), max_size=5))
def test_whatever_it_is(form: str, content: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any keys and values are the same behind a file, but for the empty key, which one kind of dbm can't hold."""
    file = tmp_path / "exported"
    kind: Any = form
    if form in KINDS:
        force(form, monkeypatch)
        kind = "dbm"
    with cm.open("memory:") as store, cm.open("memory:") as other:
        store.update(content)
        if form == "dbm.ndbm" and "" in content:
            with pytest.raises(BulkError) as caught:
                export_store(store, file, format=kind, overwrite=True)
            assert set(caught.value.failed) == {""}
            del content[""]
        else:
            export_store(store, file, format=kind, overwrite=True)
        import_store(other, file, format=kind)
        assert other.copy() == content
        assert [type(value) for _, value in sorted(other.items())] == [
            type(value) for _, value in sorted(content.items())
        ]


def test_other_programs_read_it(tmp_path: Path) -> None:
    """An export is what its format says: one JSON object, a JSON object a line, a dbm file, a shelf."""
    with cm.open("memory:") as store:
        store.update({"a": {"é": 1}, "b,c": [2.5]})
        for name in ("all.json", "all.jsonl"):
            export_store(store, tmp_path / name)
        for kind in ("dbm", "shelve"):
            export_store(store, tmp_path / kind, format=kind)
        expected = store.copy()
    assert json.loads((tmp_path / "all.json").read_text("utf-8")) == expected
    lines = [json.loads(line) for line in (tmp_path / "all.jsonl").read_text("utf-8").splitlines()]
    assert {line["key"]: line["value"] for line in lines} == expected
    with dbm.open(str(tmp_path / "dbm"), "r") as opened:
        found = {bytes(key): opened[key] for key in opened.keys()}  # type: ignore[arg-type]  # noqa: SIM118 - no mapping
    assert {key.decode(): json.loads(value) for key, value in found.items()} == expected
    with shelve.open(str(tmp_path / "shelve"), "r") as shelf:
        assert dict(shelf) == expected


def test_numbers_stay_as_they_are_written(tmp_path: Path) -> None:
    """What JSON says more exactly than Python can is not rounded on its way from file to file."""
    exact = '{"pi": 3.14159265358979323846264338327950288, "n": 1E2}'
    (tmp_path / "in.json").write_text(f'{{"k": {exact}}}')
    with cm.open(tmp_path / "store.db") as store:
        import_store(store, tmp_path / "in.json")
        export_store(store, tmp_path / "out.jsonl")
    assert exact.replace(" ", "") in (tmp_path / "out.jsonl").read_text()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "'{' is missing, at character 1;"),
        ("[1]", "'{' is missing, at character 1;"),
        ('{"a": 1', "'}' is missing, at character 8;"),
        ('{"a": 1,}', "Expecting value, at character 9;"),
        ('{"a": 1, "b" 2}', "':' is missing, at character 14;"),
        ('{"a": 1, "b": "2}', "Unterminated string starting at, at character 15;"),
        ('{"a": 1} 2', "something stands behind the object, at character 10;"),
        ('{"a": 1, 2: 3}', "a key is not a text, at character 11;"),
        ('{"a": 1, "b": NaN}', "JSON knows no NaN, at character 15;"),
        ('{"a": 1, "b": ' + "9" * 5_000 + "}", "more than 4,300 digits; store it as text, at character 15;"),
        ('{"a": 1, "b": ' + "[" * 100_000, "it is nested too deeply; flatten it, at character 15;"),
        ('{"a": 1, "b": "\udcff"}', "is not UTF-8"),
    ],
)
def test_what_is_no_json(text: str, said: str, tmp_path: Path) -> None:
    """A file that isn't what it should be is one sentence with the place, and nothing of it is imported."""
    file = tmp_path / "in.json"
    file.write_bytes(text.encode("utf-8", "surrogateescape"))
    with cm.open("memory:") as store:
        with pytest.raises(BadValueError) as caught:
            import_store(store, file)
        assert str(caught.value).startswith(f"{file} is not ")
        assert said in str(caught.value)
        assert len(store) == 0


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ('"\\ud800"', "it holds a lone surrogate, which JSON can't hold; remove it"),
        ("[" * 10**6, "it is nested too deeply; flatten it"),
    ],
    ids=["surrogate", "brackets"],
)
def test_why_it_is_no_line(value: str, why: str, tmp_path: Path) -> None:
    """What is wrong in a line is told in words, not in a parser's."""
    line = f'{{"key": "a", "value": {value}}}'.encode("utf-8", "surrogateescape")
    (tmp_path / "in.jsonl").write_bytes(line)
    with cm.open("memory:") as store, pytest.raises(BadValueError) as caught:
        import_store(store, tmp_path / "in.jsonl")
    assert str(caught.value).endswith(f": {why}; mend it, and import again.")


@pytest.mark.parametrize(
    "line", ["{", "[]", '{"key": 1, "value": 2}', '{"key": "a"}', '{"key": "a", "value": }', "\udcff"]
)
def test_what_is_no_line(line: str, tmp_path: Path) -> None:
    """A line that isn't one is named by its number, and nothing is imported."""
    file = tmp_path / "in.jsonl"
    file.write_bytes(b'{"key": "a", "value": 1}\n\n' + line.encode("utf-8", "surrogateescape") + b"\n")
    with cm.open("memory:") as store:
        with pytest.raises(BadValueError, match=r"Line 3 of .*in\.jsonl is no"):
            import_store(store, file)
        assert len(store) == 0


@pytest.mark.parametrize("size", [0, 1, 2**16 - 9, 2**16, 3 * 2**16])
def test_a_value_over_the_pieces(size: int, tmp_path: Path) -> None:
    """Wherever a piece of the file ends, in a text, a number or between, the values are what they are."""
    content = {"text": "x" * size, "number": 10**30 + size, "more": [size] * 20_000, "é": {"deep": [[]]}}
    (tmp_path / "in.json").write_text(json.dumps(content, ensure_ascii=False, indent=1), "utf-8")
    with cm.open("memory:") as store:
        import_store(store, tmp_path / "in.json")
        assert store.copy() == content


def test_what_one_key_lacks(tmp_path: Path) -> None:
    """A value that no store takes is an error of its key; all others are imported, and then it is said."""
    (tmp_path / "in.json").write_text('{"a": 1, "b": [1e400], "c": "\\ud800", "d": 2}')
    with cm.open("memory:") as store:
        with pytest.raises(BulkError, match="2 could not be imported, all others are") as caught:
            import_store(store, tmp_path / "in.json")
        assert {key: str(error) for key, error in caught.value.failed.items()} == {
            "b": "The value of 'b' can't be stored: Number out of range - at `$[0]`.",
            "c": "The value of 'c' can't be stored: it holds a lone surrogate, which JSON can't hold; remove it.",
        }
        assert caught.value.succeeded == ["a", "d"]
        assert store.copy() == {"a": 1, "d": 2}


def test_the_last_of_equal_names_wins(tmp_path: Path) -> None:
    """A key that comes twice has the value that comes last, as in any JSON."""
    (tmp_path / "in.json").write_text('{"a": 1, "b": 2, "a": 3}')
    rows = [msgspec.json.encode({"key": "a", "value": number}) for number in range(2_500)]
    (tmp_path / "in.jsonl").write_bytes(b"\n".join(rows))
    with cm.open("memory:") as store:
        import_store(store, tmp_path / "in.json")
        assert store.copy() == {"a": 3, "b": 2}
        store.clear()
        import_store(store, tmp_path / "in.jsonl")
        assert store["a"] == 2_499


def test_nothing_is_overwritten_unless_asked(make_store: MakeStore, tmp_path: Path) -> None:
    """Keys that are there stay as they are, and with `overwrite` are replaced; an earlier export likewise."""
    store = make_store()
    store.update({"a": "old", "b": "old"})
    (tmp_path / "in.json").write_text('{"a": "new", "b": "old", "c": "new"}')
    assert import_store(store, tmp_path / "in.json")[:2] == (1, 2)
    assert store.copy() == {"a": "old", "b": "old", "c": "new"}
    written, skipped, *_ = import_store(store, tmp_path / "in.json", overwrite=True)
    assert (written, skipped) in [(1, 2), (3, 0)]  # the second where nothing can be asked in one
    assert store.copy() == {"a": "new", "b": "old", "c": "new"}
    before = (tmp_path / "in.json").read_bytes()
    with pytest.raises(FileExistsError):
        export_store(store, tmp_path / "in.json")
    assert (tmp_path / "in.json").read_bytes() == before
    with pytest.raises(UnsupportedError, match="was not made by an export"):
        export_store(store, tmp_path / "in.json", overwrite=True)
    assert (tmp_path / "in.json").read_bytes() == before
    export_store(store, tmp_path / "out.json")
    before = (tmp_path / "out.json").read_bytes()
    store["a"] = "newer"
    export_store(store, tmp_path / "out.json", overwrite=True)
    assert (tmp_path / "out.json").read_bytes() != before


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("kind", ["file", "store"])
def test_a_dry_run_tells_what_is_done(tmp_path: Path, kind: str, overwrite: bool) -> None:
    """A dry run counts equal values, and media files that are there already, as the real run does."""
    with cm.open("memory:") as source, cm.open(tmp_path / "target.db") as target:
        source.update({"equal": 1, "other": 2, "new": 3})
        target.update({"equal": 1, "other": 1})
        for store, names in ((source, ["there.txt", "new.txt"]), (target, ["there.txt"])):
            for name in names:
                store.upload(b"data", name)
        export_store(source, tmp_path / "all.json")
        place: Any = source if kind == "store" else tmp_path / "all.json"
        would = import_store(target, place, dry_run=True, overwrite=overwrite)
        done = import_store(target, place, overwrite=overwrite)
    assert would._replace(media=dict.fromkeys(would.media, "")) == done._replace(media=dict.fromkeys(done.media, ""))


def test_a_dry_run_writes_nothing(make_store: MakeStore, tmp_path: Path) -> None:
    """It tells what would be written, and neither the store nor the folder changes."""
    store = make_store()
    store.update({"a": 1, "b": 2})
    (tmp_path / "in.json").write_text('{"b": 3, "c": 4}')
    there = set(tmp_path.iterdir())
    assert import_store(store, tmp_path / "in.json", dry_run=True) == (1, 1, {}, 0)
    assert import_store(store, tmp_path / "in.json", dry_run=True, overwrite=True) == (2, 0, {}, 0)
    assert export_store(store, tmp_path / "out.json", dry_run=True).keys == 2
    assert store.copy() == {"a": 1, "b": 2}
    assert set(tmp_path.iterdir()) == there


def test_the_progress(tmp_path: Path) -> None:
    """It is told from nothing to all, in keys."""
    told: list[tuple[int, int]] = []
    with cm.open("memory:") as store:
        store.update({str(number): number for number in range(1_500)})
        export_store(store, tmp_path / "all.json", progress=lambda *so_far: told.append(so_far))
        assert told == [(0, 1_500), (1_000, 1_500), (1_500, 1_500)]
        told.clear()
        store.clear()
        import_store(store, tmp_path / "all.json", progress=lambda *so_far: told.append(so_far))
        assert [done for done, _ in told] == [*range(1_001), *range(1_000, 1_501), 1_500]


@pytest.mark.parametrize(
    ("name", "kind", "error"),
    [
        ("out", None, ValueError),
        ("out.txt", None, ValueError),
        ("out.json", "yaml", ValueError),
        ("absent/out.json", None, OSError),
        (".", "json", OSError),
    ],
)
def test_where_nothing_can_be_written(name: str, kind: Any, error: type[Exception], tmp_path: Path) -> None:
    """A name that doesn't say a format, or a place that isn't there, is an error before anything is read."""
    with cm.open("memory:") as store:
        with pytest.raises(error) as caught:
            export_store(store, tmp_path / name, format=kind)
        assert not isinstance(caught.value, CloudStoreError)
    assert not list(tmp_path.iterdir())
