"""What mappings break on: merges, changes during an iteration, aliases, keys of other types, reads that fail."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import hypothesis.strategies as st
from hypothesis.stateful import precondition, rule

from cloudstore_mapping.testing import templates
from cloudstore_mapping.testing.rules import Rules, fresh, handle, known, others, values


class Traps(Rules):
    """
    Tries a mapping beyond what is usually done to a `dict`.

    Hypothesis prefers rules by the order of their names: these come last, for what a simpler one shows as well.
    """

    def merged(self, onto: dict[Any, Any], other: dict[Any, Any]) -> dict[Any, Any]:
        """Return what ``onto | other`` has to give; raises what the merge raises."""
        merge = self.functions["merge"]
        return onto | {
            key: merge(deepcopy(onto[key]), deepcopy(value)) if merge is not None and key in onto else value
            for key, value in other.items()
        }

    @precondition(lambda self: self.has("__ior__"))
    @rule(on=handle, other=st.dictionaries(known, values, max_size=3))
    def trap_merge_in_place(self, on: str, other: dict[Any, Any]) -> None:
        """Merge with ``|=``; what can't be merged is refused, and changes nothing."""
        before = self.program.mapping(on)
        for key in other:
            try:
                self.merged(self.model, {key: other[key]})
            except Exception:  # noqa: BLE001 - whatever the user's function raises
                refused = {key: other[key]}
                self.program.do(templates.REFUSED_MERGE, on, "|= took what can't be merged", other=refused)
                return
        self.program.do("$m |= $other", on, other=other)
        self.model.update(deepcopy(self.merged(self.model, other)))
        if self.program.mapping(on) is not before:
            self.program.check(f"{on}.__ior__({{}}) is {on}", False, True)
        for key in other:
            self.program.same("$m[$key]", on, key=key)

    @precondition(lambda self: self.has("__or__"))
    @rule(on=handle, other=st.dictionaries(known, values, max_size=3), is_swapped=st.booleans())
    def trap_merge_aside(self, on: str, other: dict[Any, Any], is_swapped: bool) -> None:
        """Merge with ``|``, which changes neither side."""
        if is_swapped and not self.has("__ror__"):
            return
        try:
            expected = self.merged(other, self.model) if is_swapped else self.merged(self.model, other)
        except Exception:  # noqa: BLE001 - whatever the user's function raises
            return
        self.program.matches("dict($other | $m)" if is_swapped else "dict($m | $other)", expected, on, other=other)

    @precondition(lambda self: self.model)
    @rule(
        on=handle,
        key=known | fresh,
        value=values,
        iterated=st.sampled_from(sorted(templates.ITERATIONS)),
        change=st.sampled_from(templates.CHANGES),
    )
    def trap_change_while_iterating(self, on: str, key: Any, value: Any, iterated: str, change: str) -> None:
        """Change one key during an iteration: it fails, or misses none of the others."""
        every = {*self.model, key}
        if not change.startswith("del"):
            self.model[key] = deepcopy(value)
        elif key in self.model:
            del self.model[key]
        else:
            return
        sentence = f"an iteration over {iterated.replace('$m', on)} misses or makes up keys when one is changed"
        self.program.do(templates.while_iterating(iterated, change), on, sentence, key=key, value=value, every=every)

    @precondition(lambda self: self.is_copying)
    @rule(on=handle, key=known, value=values, way=st.sampled_from(templates.WAYS_IN))
    def trap_alias_in(self, on: str, key: Any, value: Any, way: str) -> None:
        """Change a value after it was stored."""
        change = templates.change_within(value)
        if change is None:
            return
        self.model[key] = deepcopy(value)
        lines = templates.aliasing_in(way, change)
        self.program.do(lines, on, f"a value that was changed after it was stored {_COPIES}", key=key, value=value)

    @precondition(lambda self: self.is_copying and any(map(templates.change_within, self.model.values())))
    @rule(on=handle, data=st.data(), way=st.sampled_from(templates.WAYS_OUT))
    def trap_alias_out(self, on: str, data: st.DataObject, way: str) -> None:
        """Change a value that was read."""
        key = data.draw(st.sampled_from([key for key in self.model if templates.change_within(self.model[key])]))
        value = self.model[key]
        lines = templates.aliasing_out(way, str(templates.change_within(value)))
        self.program.do(lines, on, f"a value that was changed after it was read {_COPIES}", key=key, value=value)

    @precondition(lambda self: self.has_other_keys)
    @rule(on=handle, key=others, value=values)
    def trap_read_another_type(self, on: str, key: Any, value: Any) -> None:
        """Read what can't be there: no key is taken for another."""
        if key not in self.pool:
            self.program.same("$key in $m", on, key=key)
            self.program.same("$m.get($key, $value)", on, or_raises=TypeError, key=key, value=value)
            self.program.same("$m[$key]", on, or_raises=TypeError, key=key)

    @precondition(lambda self: self.has_other_keys)
    @rule(on=handle, key=others, value=values)
    def trap_store_another_type(self, on: str, key: Any, value: Any) -> None:
        """Save under a key of another type: it is refused, or kept as it is."""
        if key not in self.pool:
            sentence = f"the key {key!r} was taken, but is not the one that is there then"
            self.program.do(templates.STORING_ANOTHER_TYPE, on, sentence, key=key, value=value)

    @precondition(lambda self: self.functions["failing"] is not None and self.model)
    @rule(on=handle, data=st.data(), value=values, read=st.sampled_from(templates.FAILING_READS))
    def trap_read_while_failing(self, on: str, data: st.DataObject, value: Any, read: str) -> None:
        """Read what is there when reading fails: it is not taken for an absent key."""
        key = data.draw(st.sampled_from(list(self.model)))
        lines = templates.WHILE_FAILING.format(read=read)
        sentence = "a read that failed was taken for an absent key"
        self.program.do(lines, on, sentence, key=key, value=value, content=self.model[key])


_COPIES = "changed in the mapping too; where that is meant, say copies=False"
