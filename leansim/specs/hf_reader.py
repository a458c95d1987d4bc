"""The keys of one Hugging Face config, what its type of model fills in, and complaints about them."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from leansim.errors import Problem, suggestion
from leansim.specs.hf_keys import ALIASES, DEFAULTS, LATENT

_WHOLE = "wanted a whole number of at least 1"
_MOST = {"num_hidden_layers": 10_000}
_MOST_OF_OTHERS = 2**40
_MAY_DIFFER = frozenset({"max_position_embeddings", "sliding_window"})


@dataclass
class Reader:
    """One config's keys, and the problems found so far; `source` is where a key was read."""

    config: dict[str, Any]
    type: str = ""
    source: dict[str, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def complain(self, key: str, found: object, wanted: str) -> None:
        """Note a problem with a key."""
        text = found if isinstance(found, str) and " " in found else json.dumps(found)
        self.problems.append(Problem(key, text if len(text) < 80 else text[:77] + "...", wanted))

    def whole(self, key: str) -> int | None:
        """Return a whole number of at least 1, or None after complaining about it."""
        value = self.config.get(key)
        if key not in self.config:
            self.complain(key, "no such key", _WHOLE + suggestion(key, self.config))
        else:
            return self.counted(key, value, _MOST.get(key, _MOST_OF_OTHERS))
        return None

    def counted(self, key: str, value: object, most: int = _MOST_OF_OTHERS) -> int | None:
        """Return a whole number from 1 to `most`, or None after complaining about it."""
        if type(value) is not int or value < 1:
            self.complain(key, value, _WHOLE)
        elif value > most:
            self.complain(key, value, f"wanted at most {most:,}")
        else:
            return value
        return None

    def has(self, key: str) -> bool:
        """Whether the key says anything: present, and not null, false, 0 or empty."""
        return bool(self.config.get(key))

    def listed(self, key: str) -> list[Any]:
        """A list, or an empty one after complaining."""
        value = self.config.get(key)
        if isinstance(value, list):
            return value
        self.complain(key, value, "wanted a list with one entry per layer")
        return []

    @property
    def latent(self) -> bool:
        """Whether the KV cache is MLA's."""
        return self.config.get("use_mla") is not False and all(self.has(key) for key in LATENT[:2])

    @property
    def sliding(self) -> bool:
        """Whether the window is in use; Qwen's is not where `use_sliding_window` does not say so."""
        config = self.config
        if config.get("sliding_window") is None or config.get("use_sliding_window") is False:
            return False
        return config.get("max_window_layers") is None or bool(config.get("use_sliding_window"))

    @property
    def extra_layers(self) -> int:
        """Layers that a list may have beyond the model's, for multi-token prediction."""
        extra = self.config.get("num_nextn_predict_layers")
        return extra if type(extra) is int and extra > 0 else 0


def reader_of(config: dict[str, Any], outer_type: object = None) -> Reader:
    """Read keys by their usual names, then what the type of model has for those that are left out.

    `outer_type` is the type of a model whose part this is, which counts where the part says none.
    """
    given = config.get("model_type") or outer_type
    reader = Reader(dict(config), str(given).removesuffix("_text") if isinstance(given, str) else "")
    for key, others in ALIASES.items():
        for other in others:
            if config.get(other) is None:
                continue
            if config.get(key) is None:
                reader.config[key] = config[other]
                reader.source[key] = other
            elif config[key] != config[other] and key not in _MAY_DIFFER:
                reader.complain(
                    other, config[other], f"wanted {key} {json.dumps(config[key])}, as its key says"
                )
            break
    for key, value in DEFAULTS.get(reader.type, {}).items():
        if key not in reader.config:
            reader.config[key] = value
            reader.source[key] = f"{key}, left out: what {reader.type} has"
    return reader
