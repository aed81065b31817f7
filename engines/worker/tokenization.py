"""The tokenizer, special tokens and chat template of a model folder, as transformers' AutoTokenizer has them.

What a folder's files mean is decided by transformers: some tokenizer classes rebuild what tokenizer.json says,
special tokens come from four different files, BOS and EOS from more. So its own loader is asked, and what it made is
kept as one file per content, because importing it takes seconds, which an engine that needs no transformers should
not pay at every start. Folders whose tokenizer.json is taken as it is (its plain class; all added tokens in it) are
read without it: that is every step such a loading does. A folder that transformers cannot read, or an environment
without it, gets tokenizer.json as it is, too.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines.engine import ModelError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

log = logging.getLogger(__name__)

KEPT_FOLDER = "tokenizers"
_FORMAT = 1
_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("config.json", "genai_config.json", "chat_template.jinja", "chat_template.json"),
)
_TEMPLATES = "additional_chat_templates"
_PLAIN_CLASSES = ("PreTrainedTokenizerFast", "TokenizersBackend")
_PLAIN_ARCHITECTURES = ("phi3", "phimoe")
"""transformers takes their tokenizer.json as it is, whatever class they name: it lists them as models with the wrong
class on the Hub."""
_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


@dataclass(frozen=True)
class Tokenization:
    """How one model folder turns text into ids."""

    tokenizer: Tokenizer
    special_tokens: Mapping[str, str]
    """`bos_token` -> `<s>`: what the chat template may call by name."""
    template: str | None
    """Source of the chat template; None: the model has none."""


def read_tokenization(folder: Path, kept: Path | None = None) -> Tokenization:
    """Read a model folder; `kept`: where to keep what transformers made of it. Raises ModelError."""
    if not (folder / "tokenizer.json").is_file():
        raise ModelError(
            f"{folder} has no tokenizer.json",
            "Get the model again, or choose one that ships a fast tokenizer.",
        )
    found = _as_it_is(folder) if _is_plain(folder) else _kept(folder, kept) or _as_it_is(folder)
    found.tokenizer.no_truncation()
    found.tokenizer.no_padding()
    return found


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; empty where there is no such file. Raises ModelError when it cannot be read."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise _unreadable(path, error) from error
    return content if isinstance(content, dict) else {}


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (ValueError, OSError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> ModelError:
    return ModelError(
        f"{path.name} in {path.parent} cannot be read: {error}",
        "Get the file again, or take the one of the original model.",
    )


# --- as transformers reads it --------------------------------------------------------------------------------


def _kept(folder: Path, kept: Path | None) -> Tokenization | None:
    """What transformers makes of the folder, from what was kept of it if possible; None where it cannot read it."""
    content = _content_hash(folder)
    if kept is not None and (found := _newest_kept(kept, content)) is not None:
        return found
    try:
        path = kept / f"{content}-{metadata.version('transformers')}.json" if kept else None
    except metadata.PackageNotFoundError:
        return None
    try:
        record = _ask_transformers(folder)
    except Exception as error:  # noqa: BLE001 - remote code, an unknown class, a missing package: whatever it is
        log.warning(
            "transformers cannot read the tokenizer in %s, so tokenizer.json is taken as it is: %s",
            folder,
            error,
        )
        return None
    if path is not None:
        _keep(path, json.dumps(record))
    return _from_record(record)


def _newest_kept(kept: Path, content: str) -> Tokenization | None:
    """What the newest transformers made of it, so that engines with an old one get the same prompts as the others.

    One that was here before and is newer than this environment's counts, an older one does not.
    """
    try:
        here = _version_key(metadata.version("transformers"))
    except metadata.PackageNotFoundError:
        here = ()
    found = {_version_key(path.stem.partition("-")[2]): path for path in kept.glob(f"{content}-*.json")}
    newest = max(found, default=())
    if not found or newest < here:
        return None
    with contextlib.suppress(OSError, ValueError, KeyError):
        return _from_record(json.loads(found[newest].read_text(encoding="utf-8")))
    return None


def _version_key(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version))


def _ask_transformers(folder: Path) -> dict[str, Any]:
    from transformers import AutoConfig, AutoTokenizer

    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    architecture = _architecture(folder)
    if architecture and not (folder / "config.json").is_file():
        # Which tokenizer a folder gets depends on its architecture, too.
        with contextlib.suppress(ValueError, KeyError):
            options["config"] = AutoConfig.for_model(architecture)
    tokenizer = AutoTokenizer.from_pretrained(str(folder), **options)
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = _chosen(template)
    return {
        "tokenizer": tokenizer.backend_tokenizer.to_str(),
        "splits_special_tokens": bool(tokenizer.backend_tokenizer.encode_special_tokens),
        "special_tokens": {
            name: value for name, value in tokenizer.special_tokens_map.items() if isinstance(value, str)
        },
        "template": template if template is not None else _processors_template(folder),
    }


def _from_record(record: Mapping[str, Any]) -> Tokenization:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(record["tokenizer"])
    tokenizer.encode_special_tokens = record["splits_special_tokens"]
    return Tokenization(tokenizer, record["special_tokens"], record["template"])


def _content_hash(folder: Path) -> str:
    """Of all that decides, but for the version of transformers."""
    digest = hashlib.sha256(f"{_FORMAT}".encode())
    for path in (*(folder / name for name in _FILES), *sorted((folder / _TEMPLATES).glob("*.jinja"))):
        if path.is_file():
            content = path.read_bytes()
            digest.update(f"\0{path.name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()[:32]


def _keep(path: Path, text: str) -> None:
    """Write it whole or not at all; where that is impossible, the next start asks again."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, partial = tempfile.mkstemp(dir=path.parent, suffix=".part")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as out:
                out.write(text)
            Path(partial).replace(path)
        finally:
            Path(partial).unlink(missing_ok=True)


# --- as it is ------------------------------------------------------------------------------------------------


def _as_it_is(folder: Path) -> Tokenization:
    from tokenizers import Tokenizer

    config = read_json(folder / "tokenizer_config.json")
    try:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:
        raise _unreadable(folder / "tokenizer.json", error) from error
    tokenizer.encode_special_tokens = bool(config.get("split_special_tokens"))
    tokens = {
        name: text for name, value in _named_tokens(folder, config).items() if (text := _as_text(value))
    }
    return Tokenization(tokenizer, tokens, _template(folder, config))


def _is_plain(folder: Path) -> bool:
    """Whether transformers would take tokenizer.json as it is, and nothing else would change it."""
    config = read_json(folder / "tokenizer_config.json")
    class_name, architecture = config.get("tokenizer_class"), _architecture(folder)
    plain_class = class_name in _PLAIN_CLASSES or (class_name and architecture in _PLAIN_ARCHITECTURES)
    if not (plain_class and architecture) or "auto_map" in config or "fix_mistral_regex" in config:
        return False
    if "fast_tokenizer_files" in config or (folder / "added_tokens.json").is_file():
        return False
    there = {
        token.get("id"): {name: value for name, value in token.items() if name != "id"}
        for token in read_json(folder / "tokenizer.json").get("added_tokens") or ()
    }
    declared = config.get("added_tokens_decoder") or {}
    if any(not _same_token(there.get(int(number)), token) for number, token in declared.items()):
        return False
    named = _named_tokens(folder, config)
    extra = config.get("extra_special_tokens") or config.get("additional_special_tokens") or []
    extra = list(extra.values()) if isinstance(extra, dict) else extra
    spellings = {token["content"] for token in there.values()}
    values = [value for value in (*named.values(), *extra) if value is not None]
    return all(_as_text(value) in spellings for value in values)


def _architecture(folder: Path) -> str | None:
    """As the folder states it: in its config.json, or where ONNX Runtime's model builder writes it."""
    stated = read_json(folder / "config.json").get("model_type")
    if stated is None:
        model = read_json(folder / "genai_config.json").get("model")
        stated = model.get("type") if isinstance(model, dict) else None
    return stated if isinstance(stated, str) else None


def _same_token(there: Mapping[str, Any] | None, declared: Mapping[str, Any]) -> bool:
    flags = ("content", "lstrip", "rstrip", "single_word", "normalized", "special")
    return there is not None and all(there.get(name) == declared.get(name, False) for name in flags)


def _named_tokens(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """The special tokens that have names: standard ones first, then the model's own."""
    named = dict(config)
    if "added_tokens_decoder" not in config:  # only then transformers looks there
        named |= read_json(folder / "special_tokens_map.json")
    extra = named.get("extra_special_tokens")
    own = {
        name: value
        for name, value in named.items()
        if name.endswith("_token") and name not in _NAMED and not name.startswith("add_") and value
    }
    standard = {name: named[name] for name in _NAMED if named.get(name)}
    return standard | own | (extra if isinstance(extra, dict) else {})


def _as_text(token: Any) -> str | None:
    """Special tokens are written as text or as {"content": …}."""
    value = token.get("content") if isinstance(token, dict) else token
    return value if isinstance(value, str) else None


# --- chat templates ------------------------------------------------------------------------------------------


def _template(folder: Path, config: Mapping[str, Any]) -> str | None:
    """The template that is used when nobody names one: files outweigh the configuration."""
    files = {path.stem: path for path in sorted((folder / _TEMPLATES).glob("*.jinja"))}
    if (folder / "chat_template.jinja").is_file():
        files["default"] = folder / "chat_template.jinja"
    if files:
        return _chosen({name: _read_text(path) for name, path in files.items()})
    source = config.get("chat_template")
    if isinstance(source, list):
        source = {item.get("name"): item.get("template") for item in source}
    if isinstance(source, dict):
        source = _chosen(source)
    return source if source is not None else _processors_template(folder)


def _chosen(named: Mapping[str, str]) -> str | None:
    """`default`; without it the first: there is nobody to ask which one is meant."""
    return named.get("default") or next(iter(named.values()), None)


def _processors_template(folder: Path) -> str | None:
    """Models that also see or hear may keep their only template here, where transformers' processors look."""
    source = read_json(folder / "chat_template.json").get("chat_template")
    return source if isinstance(source, str) else None


def control_tokens(tokenizer: Tokenizer) -> Iterator[str]:
    """Spellings of the tokens that are no text."""
    for token in tokenizer.get_added_tokens_decoder().values():
        if token.special and token.content:
            yield token.content
