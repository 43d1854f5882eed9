# SPDX-License-Identifier: MIT
"""`python,class=/srv/filter.py:Class,key=value`: a filter that the operator wrote.

It runs in the daemon, with all its rights, so the operator has to allow it first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from xenpy.backend import DeviceError
from xenpy.drivers.block.filters.base import Filter, FilterPlace
from xenpy.drivers.block.operator_code import NOT_ALLOWED, make, split
from xenpy.drivers.block.store import Store
from xenpy.words import Words

__all__ = ["Python"]


@dataclass(frozen=True, slots=True)
class Python:
    """The words.

    Attributes:
        place: the file or module.
        class_name: in it, a subclass of `Filter`; made with the store that it wraps.
        options: what else it is made with, by name.
    """

    place: str
    class_name: str
    options: Mapping[str, str]
    lower_readonly: bool = False

    @classmethod
    def parse(cls, words: Words) -> Python:
        name = words.text("class")
        try:
            place, class_name = split(name)
        except ValueError as error:
            raise ValueError(f"python: class: {error}") from None
        return cls(place, class_name, words.rest())

    def wrap(self, lower: Store, place: FilterPlace) -> Store:
        if not place.python:
            raise DeviceError(f"a python filter {NOT_ALLOWED}")
        return make(Filter, self.place, self.class_name, lower, **self.options)
