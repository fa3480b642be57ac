"""What is done to a mapping that could be done to a `dict`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Final

import hypothesis.strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from cloudstore_mapping.testing import templates
from cloudstore_mapping.testing.exact import same
from cloudstore_mapping.testing.program import Program, shown


def _drawn(draw: Callable[[Rules], st.SearchStrategy[Any]]) -> st.SearchStrategy[Any]:
    return st.runner().flatmap(draw)


fresh: Final = _drawn(lambda machine: machine.strategies["keys"])
known: Final = _drawn(lambda machine: st.sampled_from(machine.pool))
values: Final = _drawn(lambda machine: machine.strategies["values"])
others: Final = _drawn(lambda machine: machine.strategies["other keys"])
handle: Final = _drawn(lambda machine: st.sampled_from(machine.handles))


class Rules(RuleBasedStateMachine):
    """Does to a mapping what is usually done to a `dict`, and compares it with one after each line."""

    strategies: ClassVar[dict[str, st.SearchStrategy[Any]]]
    functions: ClassVar[dict[str, Any]]
    has_other_keys: ClassVar[bool]
    is_copying: ClassVar[bool]

    pool: list[Any]
    handles: list[str]

    def __init__(self) -> None:
        super().__init__()
        self.program = Program(self.functions)
        self.pool = []
        self.handles = ["m"]
        self.program.do("$m = factory()")
        if self.functions["handles"] is not None:
            self.program.do("$m = handles(m)", "other")
            self.handles.append("other")

    def teardown(self) -> None:
        """Compare all that is there, and close what can be closed."""
        try:
            for name in () if self.program.has_failed else self.handles:
                self.program.same("dict($m.items())", name)
                self.program.same("len($m)", name)
        finally:
            for name in self.handles if self.has("close") else ():
                self.program.mapping(name).close()

    @property
    def model(self) -> dict[Any, Any]:
        """What has to be there."""
        return self.program.model

    def has(self, method: str) -> bool:
        """Whether the mapping has a method that not each one has."""
        # Not by `getattr`: a class has methods of its own class as well, such as `|` for unions of types.
        kinds = type(self.program.mapping()).__mro__
        return next((vars(kind)[method] for kind in kinds if method in vars(kind)), None) is not None

    @initialize(keys=st.lists(fresh, min_size=2, max_size=5))
    def begin(self, keys: list[Any]) -> None:
        """Choose some keys, so that rules meet on them."""
        self.pool = keys

    @rule(on=handle, key=fresh, value=values)
    def save_new(self, on: str, key: Any, value: Any) -> None:
        """Save under some other key."""
        self.pool.append(key)
        self.program.both("$m[$key] = $value", on, key=key, value=value)

    @rule(on=handle, key=known, value=values)
    def save(self, on: str, key: Any, value: Any) -> None:
        """Save, often under a key that is there, and read."""
        self.program.both("$m[$key] = $value", on, key=key, value=value)
        self.program.same("$m[$key]", on, key=key)

    @rule(on=handle, key=known, value=values, read=st.sampled_from(templates.READS))
    def read(self, on: str, key: Any, value: Any, read: str) -> None:
        """Read one key."""
        self.program.same(read, on, key=key, value=value)

    @rule(on=handle, survey=st.sampled_from(templates.SURVEYS))
    def survey(self, on: str, survey: str) -> None:
        """Read all that is there."""
        self.program.same(survey, on)

    @rule(on=handle, further=st.sampled_from(sorted(templates.FURTHER_SURVEYS)))
    def survey_further(self, on: str, further: str) -> None:
        """Read all that is there in a way that not every mapping has."""
        if self.has(further):
            self.program.same(templates.FURTHER_SURVEYS[further], on)

    @rule(on=handle, key=known, value=values, comparison=st.sampled_from(templates.COMPARISONS))
    def compare(self, on: str, key: Any, value: Any, comparison: str) -> None:
        """Compare with what is there, but for one key."""
        other = {**self.model, key: value}
        self.program.same(comparison, on, other=other, pairs=list(other.items()))

    @rule(on=handle, comparison=st.sampled_from(templates.COMPARISONS))
    def compare_with_itself(self, on: str, comparison: str) -> None:
        """Compare with exactly what is there."""
        self.program.same(comparison, on, other=self.model, pairs=list(self.model.items()))

    @rule(on=handle, some=st.sets(known | fresh, max_size=4), view=st.sampled_from(templates.VIEWS))
    def view(self, on: str, some: set[Any], view: str) -> None:
        """Do what sets do with the view of the keys."""
        self.program.same(view, on, some=some)

    @rule(on=handle, other=st.dictionaries(known, values, max_size=3), view=st.sampled_from(templates.VIEWS_OF_ITEMS))
    def view_of_items(self, on: str, other: dict[Any, Any], view: str) -> None:
        """Do what sets do with the view of the pairs, where a set can hold them."""
        try:
            some = set(other.items())
            hash(tuple(self.model.values()))
        except TypeError:
            return
        self.program.same(view, on, some=some)

    @rule(on=handle, key=known)
    def delete(self, on: str, key: Any) -> None:
        """Delete, also what isn't there."""
        self.program.both("del $m[$key]", on, key=key)

    @rule(on=handle, key=known)
    def pop(self, on: str, key: Any) -> None:
        """Take out, also what isn't there."""
        self.program.same("$m.pop($key)", on, key=key)

    @rule(on=handle, key=known, value=values)
    def pop_or(self, on: str, key: Any, value: Any) -> None:
        """Take out, or get something else."""
        self.program.same("$m.pop($key, $value)", on, key=key, value=value)

    @rule(on=handle, key=known, value=values)
    def setdefault(self, on: str, key: Any, value: Any) -> None:
        """Save where nothing is."""
        self.program.same("$m.setdefault($key, $value)", on, key=key, value=value)

    @rule(on=handle, other=st.dictionaries(known, values, max_size=3), update=st.sampled_from(templates.UPDATES))
    def update(self, on: str, other: dict[Any, Any], update: str) -> None:
        """Save several."""
        self.program.both(update, on, other=other, pairs=list(other.items()))

    @rule(on=handle, other=st.dictionaries(known, values, max_size=3), key=known, value=values)
    def update_by_keywords(self, on: str, other: dict[Any, Any], key: Any, value: Any) -> None:
        """Save several, some as keywords."""
        if all(isinstance(name, str) for name in other):
            self.program.both(templates.UPDATE_BY_KEYWORDS, on, pairs=[(key, value)], other=other)

    @rule(on=handle)
    def popitem(self, on: str) -> None:
        """Take out any one."""
        if not self.model:
            self.program.both("$m.popitem()", on)
            return
        item = self.program.gives("$m.popitem()", on)
        for key, value in self.model.items():
            if same(item, (key, value)):
                self.program.check(f"{on}.popitem()", item, item)
                del self.model[key]
                return
        items = shown(list(self.model.items()))
        self.program.fail(
            f"item = {on}.popitem()\nassert any(same(item, each) for each in {items})",
            AssertionError(f"popitem() gave {shown(item)}, which is not there"),
        )

    @rule(on=handle)
    def clear(self, on: str) -> None:
        """Delete everything."""
        self.program.both("$m.clear()", on)

    @precondition(lambda self: self.functions["reopen"] is not None)
    @rule(on=handle)
    def reopen(self, on: str) -> None:
        """Close and open again."""
        self.program.do("$m = reopen($m)", on)
