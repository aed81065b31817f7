"""A tiny model that thinks: the bundled one, its tokenizer renamed so that what it says has a thought in it.

Its `<|assistant|>` is spelled `<think>`, so the chat template opens a thought with the very ids that the model was
trained on, and its `;` is spelled `</think>`. Asked for the difference between int4 and int8 it thinks one clause.
"""

import json
import shutil
from pathlib import Path

from tests.helpers.worlds import DEMO_WEIGHTS

QUESTION = "What is the difference between int4 and int8?"
TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'assistant' %}<think>\n{{ m.content }}<|end|>\n"
    "{% else %}{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<think>\n"
    "{% if enable_thinking is defined and not enable_thinking %}</think>{% endif %}{% endif %}"
)
_SPELLED = {"<|assistant|>": "<think>", ";": "</think>"}


def thinking_model(folder: Path) -> Path:
    """Make it in a new folder; returns the folder."""
    shutil.copytree(DEMO_WEIGHTS, folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    vocab = tokenizer["model"]["vocab"]
    tokenizer["model"]["vocab"] = {_SPELLED.get(token, token): number for token, number in vocab.items()}
    tokenizer["model"]["merges"] = [
        merge for merge in tokenizer["model"]["merges"] if ";" not in "".join(merge)
    ]
    for token in tokenizer["added_tokens"]:
        token["content"] = _SPELLED.get(token["content"], token["content"])
    closing = {"id": vocab[";"], "content": "</think>", "special": False, "normalized": False}
    tokenizer["added_tokens"].append({**dict.fromkeys(("single_word", "lstrip", "rstrip"), False), **closing})
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    config["added_tokens_decoder"]["3"]["content"] = "<think>"
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    return folder
