"""The login page: plain HTML of our own, because Gradio's would bring the whole page's scripts along."""

from __future__ import annotations

from html import escape
from pathlib import Path

_STYLE = (Path(__file__).parents[1] / "assets" / "login.css").read_text("utf-8")


def login_page(problem: str | None = None, name: str = "") -> str:
    """`problem`: why the last try did not do, in a sentence."""
    alert = f'<p class="problem" role="alert">{escape(problem)}</p>' if problem else ""
    focus_name, focus_password = ("", " autofocus") if name else (" autofocus", "")
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="robots" content="noindex"><title>Log in – Backend Arena</title>
<link rel="icon" href="/favicon.ico"><style>{_STYLE}</style>
</head>
<body>
<main>
<h1>Backend Arena</h1>
<p>One prompt, every local backend, side by side. Whoever shares this page gave you a name and a password.</p>
{alert}
<form method="post" action="/login">
<label for="name">Name</label>
<input id="name" name="name" value="{escape(name, quote=True)}" autocomplete="username" required{focus_name}>
<label for="password">Password</label>
<input id="password" name="password" type="password" autocomplete="current-password" required{focus_password}>
<button type="submit">Log in</button>
</form>
</main>
</body>
</html>
"""
