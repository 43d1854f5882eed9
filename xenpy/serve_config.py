# SPDX-License-Identifier: MIT
"""The file that `xenpy serve --config` reads: xenpy.toml(5).  Pure, but for the reading."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, cast

from xenpy.paths import KIND

__all__ = ["LOG_LEVELS", "ServeConfig", "read"]

LOG_LEVELS: Final = ("debug", "info", "warning", "error")
WORDS: Final = ("driver", "kind", "rundir", "stats", "store", "log", "metrics")
FILTERS: Final = "filter"
"""The option that may be a list: each becomes one `--filter`."""


@dataclass(frozen=True)
class ServeConfig:
    """What the file says; "" of what it does not.

    Attributes:
        driver, kind, rundir, stats, store, metrics: as of `xenpy serve`.
        log: one of `LOG_LEVELS`.
        options: of the driver, as words.
        filters: of every disk, as `--filter` takes them.
    """

    driver: str = ""
    kind: str = ""
    rundir: str = ""
    stats: str = ""
    store: str = ""
    log: str = ""
    metrics: str = ""
    options: Mapping[str, str] = field(default_factory=dict[str, str])
    filters: tuple[str, ...] = ()


def read(path: Path) -> ServeConfig:
    """Read a file.

    Raises:
        ValueError: it is no such configuration; the text has the file's name.
        OSError: it cannot be read.
    """
    try:
        return _taken(tomllib.loads(path.read_text()))
    except ValueError as error:
        # TOML's own errors, and text that is no UTF-8, among them.
        raise ValueError(f"{path}: {error}") from error


def _taken(content: Mapping[str, object]) -> ServeConfig:
    unknown = sorted(set(content) - {*WORDS, "options"})
    if unknown:
        raise ValueError(
            f"there is no {unknown[0]!r}; there are {', '.join(WORDS)}, and a table [options]"
        )
    words: dict[str, str] = {}
    for name in WORDS:
        value = content.get(name, "")
        if not isinstance(value, str):
            raise ValueError(f"{name} is {value!r}; give a text in quotes")
        words[name] = value
    if words["kind"] and not KIND.fullmatch(words["kind"]):
        raise ValueError(f"kind is {words['kind']!r}, no name of a directory in XenStore")
    if words["log"] and words["log"] not in LOG_LEVELS:
        raise ValueError(f"log is {words['log']!r}; give one of {', '.join(LOG_LEVELS)}")
    options = content.get("options", {})
    if not isinstance(options, dict):
        raise ValueError("options is a table: [options]")
    taken, filters = _options(cast("dict[str, object]", options))
    return ServeConfig(**words, options=taken, filters=filters)


def _options(table: Mapping[str, object]) -> tuple[dict[str, str], tuple[str, ...]]:
    options: dict[str, str] = {}
    filters: tuple[str, ...] = ()
    for name, value in table.items():
        if name == FILTERS and isinstance(value, list):
            listed = cast("list[object]", value)
            if not all(isinstance(one, str) for one in listed):
                raise ValueError(f"options.{name} is a list of texts")
            filters = tuple(str(one) for one in listed)
        elif isinstance(value, bool):
            options[name] = str(int(value))
        elif isinstance(value, str | int):
            options[name] = str(value)
        else:
            raise ValueError(f"options.{name} is {value!r}; give a text, a number, true or false")
    return options, filters
