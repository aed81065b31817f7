"""`python app.py keys add|list|revoke|require`: who may use the API from other machines."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any

from ui import format as fmt
from ui.api.keys import ApiKeys
from ui.cli import absolute


def register(subparsers: Any) -> None:
    """Add `keys` and its actions."""
    keys = subparsers.add_parser("keys", help="keys with which programs may use the API: add, list, revoke")
    actions = keys.add_subparsers(title="actions", metavar="ACTION", required=True)
    add = _action(actions, "add", _add, "make a key; it is shown once")
    add.add_argument("name", help="what it is for, for example the name of a computer")
    _action(actions, "list", _list, "every key, with when it was last used")
    revoke = _action(actions, "revoke", _revoke, "make a key open nothing any more")
    revoke.add_argument("name")
    require = _action(actions, "require", _require, "want a key even from programs on this computer")
    require.add_argument("required", choices=("yes", "no"))


def _action(actions: Any, name: str, run: Callable[[ApiKeys, argparse.Namespace], int], text: str) -> Any:
    parser = actions.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
    parser.add_argument("--data-dir", type=absolute, default=argparse.SUPPRESS, help="folder of the keys")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    parser.set_defaults(run=lambda arguments: run(ApiKeys(arguments.data_dir), arguments))
    return parser


def _add(keys: ApiKeys, arguments: argparse.Namespace) -> int:
    key = keys.add(arguments.name)
    if arguments.json:
        print(json.dumps({"name": arguments.name.strip(), "key": key}))
    else:
        print(f"{key}\nThis is the only time it is shown. Programs send it as their API key.")
    return 0


def _list(keys: ApiKeys, arguments: argparse.Namespace) -> int:
    known = keys.all()
    if arguments.json:
        shown = [
            {"name": k.name, "hint": k.hint, "created_at": k.created_at, "last_used_at": k.last_used_at}
            for k in known
        ]
        print(json.dumps({"required": keys.required, "keys": shown}, indent=2))
        return 0
    for key in known:
        used = f"last used {fmt.when(key.last_used_at)}" if key.last_used_at else "never used"
        print(f"{key.name}  …{key.hint}  made {fmt.when(key.created_at)}, {used}")
    wanted = "A key is wanted from everybody." if keys.required else "On this computer none is needed."
    print(f"{fmt.counted(len(known), 'key')}. {wanted}")
    return 0


def _revoke(keys: ApiKeys, arguments: argparse.Namespace) -> int:
    keys.revoke(arguments.name)
    print(json.dumps({"revoked": arguments.name}) if arguments.json else f"{arguments.name} is revoked.")
    return 0


def _require(keys: ApiKeys, arguments: argparse.Namespace) -> int:
    keys.require(arguments.required == "yes")
    if arguments.json:
        print(json.dumps({"required": keys.required}))
    else:
        print("A key is wanted from everybody." if keys.required else "On this computer none is needed.")
    return 0
