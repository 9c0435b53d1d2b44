"""Tensors that were saved whole: all of a tuned model, or what an adapter's folder holds beside its factors."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor

from rankscope.models.base_tensors import BaseTensors, Source
from rankscope.models.tensor_files import TensorFiles
from rankscope.models.updates import Update, check_name, expert_name, finite, make_update, wrong_shape


class WholeTensors:
    """Reads the updates of tensors that were saved whole.

    Args:
        base: The base's tensors.
        files: The tuned ones.
    """

    def __init__(self, base: BaseTensors, files: TensorFiles) -> None:
        self.base = base
        self.files = files

    def updates(self, keys: dict[str, str]) -> list[Update]:
        """Updates of tensors, given their keys in the files by their names in the model."""
        made = []
        for name, key in keys.items():
            canonical = self.base.canonical(name)
            if name != canonical and canonical in keys and self._are_equal(key, keys[canonical]):
                continue  # a tied weight that was saved under both its names and is still one
            check_name(self.base, canonical)
            if self.base.is_experts(canonical):
                made += self._experts(canonical, key)
            else:
                made.append(self._whole(name, self.base.source(canonical), key))
        return made

    def _whole(self, name: str, source: Source, key: str) -> Update:
        shape, tuned = self.base.shape(source), self.files.shape(key)
        tuned = tuned[::-1] if source.transposed else tuned
        is_table = self.base.canonical(name) in self.base.tables
        if shape[1:] != tuned[1:] or (shape != tuned and not is_table):
            raise wrong_shape(self.base, name, shape, tuned)
        common = (min(shape[0], tuned[0]), *shape[1:]) if shape else shape

        def rows(start: int, stop: int) -> Tensor:
            part = (start, stop) if is_table else None
            W0 = self.base.read(source, part)
            W = self.files.read(key) if part is None else self.files.read_rows(key, *part)
            # In float64, because a difference of near equals keeps few of float32's digits.
            delta_W = (W.T if source.transposed else W).double().sub_(W0)
            return finite(delta_W, name)

        added = tuned[0] - shape[0] if shape else 0
        return replace(make_update(self.base, name, common, source), num_added_rows=added, read_rows=rows)

    def _experts(self, parameter: str, key: str) -> list[Update]:
        """The matrices of all experts of a parameter that the tuned files hold in one tensor."""
        sources, tuned = self.base.expert_sources(parameter), self.files.shape(key)
        updates = []
        for expert, source in enumerate(sources):
            shape = self.base.shape(source)
            if tuned != (len(sources), *(shape[::-1] if source.transposed else shape)):
                raise wrong_shape(self.base, parameter, (len(sources), *shape), tuned)

            def rows(start: int, stop: int, expert: int = expert, source: Source = source) -> Tensor:
                W = self.files.read_rows(key, expert, expert + 1)[0]
                return finite((W.T if source.transposed else W).double().sub_(self.base.read(source)), parameter)

            update = make_update(self.base, expert_name(parameter, expert), shape, source)
            updates.append(replace(update, read_rows=rows))
        return updates

    def _are_equal(self, one: str, other: str) -> bool:
        return self.files.shape(one) == self.files.shape(other) and torch.equal(
            self.files.read(one), self.files.read(other)
        )


def resized(updates: Iterable[Update]) -> list[str]:
    """A sentence for each table with more or fewer rows than the base's."""
    return [
        f"{update.name} has {abs(update.num_added_rows)} rows "
        f"{'more' if update.num_added_rows > 0 else 'fewer'} than the base's; only the rows of both are compared"
        for update in updates
        if update.num_added_rows
    ]
