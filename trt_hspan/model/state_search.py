"""Finds an HSPAN's state dict in what people save: wrappers, prefixes, averaged copies, other networks beside it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from trt_hspan.errors import HspanError
from trt_hspan.model.checkpoint_file import HEADER, objects_error
from trt_hspan.model.config import DEFAULT_RES_SCALE, Shape, config_from_shapes
from trt_hspan.model.hspan import MeanShift

_WRAPPERS: Final = r"(?:_orig_mod|module|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
# A key of the attention; before its first `body` stands the prefix. Wrappers may be around any module inside.
_ATTENTION: Final = re.compile(
    r"(?P<prefix>(?:.*?\.)??)body\.W\d+\.Wbody\.W\d+\.Wconv_(?:match1|match2|assembly)\.W[01]\.(?:weight|bias)".replace(
        "W", f"(?:{_WRAPPERS})*"
    )
)
_SHIFTS: Final = ("sub_mean.", "add_mean.")
_AVERAGED: Final = re.compile(r"ema|averag|shadow|swa", re.IGNORECASE)
_MOST_LEVELS: Final = 8


@dataclass(frozen=True, kw_only=True)
class FoundState:
    """A state dict that was found in a file.

    Attributes:
        state: with the official names, if it is an HSPAN's.
        where: the file, and the entry in it, for errors.
        note: where it was found, in one line; None for a bare state dict.
        res_scale: what the file says beside the weights, such as in its training's arguments; None where it does not.
    """

    state: dict[str, Tensor]
    where: str
    note: str | None
    res_scale: float | None = None


@dataclass(frozen=True, kw_only=True)
class _Candidate:
    """A mapping's keys under one prefix; `entry` is such as "['params_ema']"."""

    entry: str
    prefix: str
    items: dict[str, object]
    left_out: tuple[str, ...]

    @property
    def name(self) -> str:
        return (
            " with ".join(filter(None, [self.entry, self.prefix and f"the prefix {self.prefix!r}"]))
            or "the file itself"
        )

    def fits(self) -> bool:
        state = {key: item for key, item in self.items.items() if isinstance(item, Tensor)}
        try:
            config_from_shapes(shapes_from_state(with_constants(state)), where=self.name)
        except HspanError:
            return False
        return True


def state_from_loaded(loaded: object, path: Path, objects: list[str]) -> FoundState:
    """Finds the network in what a file contains.

    Of several copies one that is complete is taken, and of these an averaged one (EMA), which is what people publish.

    Args:
        loaded: as `read_checkpoint_file` returns it, with the names of `objects` that were not loaded.
        path: for errors.

    Raises:
        HspanError: no tensors, or values that are not tensors under a network's keys.
    """
    mappings = list(_mappings(loaded, "", _MOST_LEVELS))
    candidates = [candidate for entry, mapping in mappings for candidate in _candidates(entry, mapping)]
    if not candidates:
        return _without_attention(loaded, mappings, path, objects)
    ranked = sorted(
        candidates,
        key=lambda each: (not each.fits(), not _AVERAGED.search(each.entry + each.prefix)),
    )
    best = ranked[0]
    where = f"{path}: {best.entry}" if best.entry else str(path)
    wrong = [key for key, item in best.items.items() if not isinstance(item, Tensor)]
    if wrong:
        raise HspanError(where, f"not tensors: {', '.join(wrong[:5])}", "save model.state_dict()")
    parts = [f"its network is in {best.name}"] if best.entry or best.prefix else []
    if len(ranked) > 1:
        parts.append(f"also an HSPAN: {', '.join(each.name for each in ranked[1:])}")
    if best.left_out:
        more = f" and {len(best.left_out) - 3} more" if len(best.left_out) > 3 else ""
        parts.append(f"left out: {', '.join(best.left_out[:3])}{more}")
    state = {key: item for key, item in best.items.items() if isinstance(item, Tensor)}
    if not any(key.startswith(_SHIFTS) for key in state):
        whole = next((each for each in ranked if any(key.startswith(_SHIFTS) for key in each.items)), None)
        shifts = {} if whole is None else {k: t for k, t in whole.items.items() if k.startswith(_SHIFTS)}
        state = with_constants(state) | {k: item for k, item in shifts.items() if isinstance(item, Tensor)}
        source = "DIV2K's" if whole is None else f"those of {whole.name}"
        parts.append(f"it lacks the mean shifts, which are constants; took {source}")
    res_scale = _stored_res_scale(mappings)
    if res_scale not in (None, DEFAULT_RES_SCALE):
        parts.append(f"it says res_scale {res_scale:g}")
    return FoundState(state=state, where=where, note="; ".join(parts) or None, res_scale=res_scale)


def shapes_from_state(state: Mapping[str, Tensor]) -> dict[str, Shape]:
    """Key -> shape; that of a nested tensor, which has none, is ()."""
    return {key: () if tensor.is_nested else tuple(tensor.shape) for key, tensor in state.items()}


def with_constants(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict with what is the same in every HSPAN where it is left out, as in averages of trained weights."""
    if any(key.startswith(_SHIFTS) for key in state):
        return state
    shifts = {"sub_mean": MeanShift(-1), "add_mean": MeanShift(1)}
    constants = {
        f"{name}.{key}": t for name, shift in shifts.items() for key, t in shift.state_dict().items()
    }
    return {"a": torch.zeros(1), **constants, **state}


def _stored_res_scale(mappings: list[tuple[str, Mapping[object, object]]]) -> float | None:
    """The one value that stands under this name in a file; None where there is none, or several differ."""
    values = set()
    for _, mapping in mappings:
        try:
            values.add(float(mapping["res_scale"]))  # type: ignore[arg-type]  # whatever was saved
        except (KeyError, TypeError, ValueError):
            continue
    valid = {value for value in values if 0.0 <= value < float("inf")}
    return valid.pop() if len(valid) == 1 else None


def _mappings(value: object, entry: str, levels: int) -> Iterator[tuple[str, Mapping[object, object]]]:
    """All mappings in a saved value, outermost first, each with the words that reach it."""
    if levels == 0:
        return
    if isinstance(value, Mapping):
        yield entry, value
        inner = list(value.items())
    elif isinstance(value, list | tuple) and len(value) <= 100:
        inner = list(enumerate(value))
    else:
        return
    for key, item in inner:
        yield from _mappings(item, f"{entry}[{key!r}]", levels - 1)


def _candidates(entry: str, mapping: Mapping[object, object]) -> Iterator[_Candidate]:
    keys = [key for key in mapping if isinstance(key, str) and key != HEADER]
    prefixes = list(dict.fromkeys(match["prefix"] for match in map(_ATTENTION.match, keys) if match))
    for prefix in prefixes:
        inner = [other for other in prefixes if other != prefix and other.startswith(prefix)]
        own = [key for key in keys if key.startswith(prefix) and not key.startswith(tuple(inner))]
        names = {key: re.sub(rf"(?<![^.]){_WRAPPERS}", "", key.removeprefix(prefix)) for key in own}
        # Beside the weights of a bare state dict stand an epoch or a loss, under keys that no module has, and beside
        # those of each module what thop counted.
        notes = {
            key
            for key in own
            if key.endswith(("total_ops", "total_params"))
            or ("." not in names[key] and not isinstance(mapping[key], Tensor))
        }
        yield _Candidate(
            entry=entry,
            prefix=prefix,
            items={names[key]: mapping[key] for key in own if key not in notes},
            left_out=tuple(key for key in keys if key not in own or key in notes),
        )


def _without_attention(
    loaded: object, mappings: list[tuple[str, Mapping[object, object]]], path: Path, objects: list[str]
) -> FoundState:
    """The state dict that comes nearest, for the error that says what it lacks."""
    states = [
        (
            entry,
            {key: item for key, item in mapping.items() if isinstance(key, str) and isinstance(item, Tensor)},
        )
        for entry, mapping in mappings
    ]
    if any("_parameters" in mapping for _, mapping in mappings):
        raise objects_error(path, objects)  # modules that were pickled whole
    entry, state = max(states, key=lambda each: len(each[1]), default=("", {}))
    if state:
        return FoundState(state=state, where=f"{path}: {entry}" if entry else str(path), note=None)
    if objects:
        raise objects_error(path, objects)
    what = type(loaded).__name__
    if isinstance(loaded, Mapping):
        keys = ", ".join(str(key) for key in list(loaded)[:5])
        what = f"a dict of {keys} without tensors" if keys else "an empty dict"
    raise HspanError(path, f"contains {what}, expected a state dict", "save model.state_dict()")
