"""What may change in a sweep that has run: it grows, or is carried out differently, and nothing else."""

from collections.abc import Mapping
from typing import Any


def changed_keys(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The dotted keys in which a sweep differs from its earlier self, growth of targets left out.

    Trials may rise and seeds may be added; the label, workers, retries, the runtime section and data.root may change,
    and so may the storage: a queue that is not there is rebuilt from the records. A key that an older version did not
    write yet counts as its default.
    """
    free = (
        *("label", "workers", "runs_per_gpu", "max_retries", "max_lost", "changed_code", "storage"),
        *("base.runtime", "base.data.root", "base.data.download"),
    )
    flat_old, flat_new = _flat(old), _flat(new)
    changed = []
    for key in sorted({*flat_old, *flat_new}):
        before, after = flat_old.get(key), flat_new.get(key)
        if before == after or any(key == name or key.startswith(f"{name}.") for name in free):
            continue
        if key == "tune.trials" and before and after and after > before:
            continue
        if key == "final.seeds" and set(before or ()) <= set(after or ()):
            continue
        changed.append(key)
    return changed


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, item in value.items():
        name = f"{prefix}{key}"
        if isinstance(item, Mapping) and item:
            flat |= _flat(item, f"{name}.")
        else:
            flat[name] = item
    return flat
