"""Model output to HTML that can do nothing: Markdown is rendered here, on the server, with raw HTML switched off.

Every tag in the result was written by the renderer; `<script>`, `<img onerror>` and forms typed by a model come out
as text. Images are replaced by their description, links keep only http(s) and mailto and open apart, so nothing is
fetched from anywhere because of what a model said. Code is coloured by Pygments' class names (assets/page.css).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token
from pygments import highlight
from pygments.formatters.html import HtmlFormatter
from pygments.lexers import get_lexer_by_name
from pygments.util import ClassNotFound

from ui import format as fmt

MAX_RENDERED_CHARS = 60_000
"""Longer replies are shown as plain text: parsing Markdown is not worth a stalled page."""
LONGEST_LINE_CHARS = 10_000
HIGHLIGHT_LIMIT_CHARS = 20_000
STABLE_CHARS = 3_000
"""A streaming reply longer than this is rendered in two parts, and the first is kept."""


class _Renderer(RendererHTML):
    def image(self, tokens: Sequence[Token], idx: int, options: Any, env: Any) -> str:
        description = self.renderInlineAsText(tokens[idx].children or [], options, env)
        return f'<span class="md-image">[image: {fmt.text(description or "no description")}]</span>'

    def link_open(self, tokens: Sequence[Token], idx: int, options: Any, env: Any) -> str:
        tokens[idx].attrSet("target", "_blank")
        tokens[idx].attrSet("rel", "noopener noreferrer nofollow")
        return self.renderToken(tokens, idx, options, env)

    def fence(self, tokens: Sequence[Token], idx: int, options: Any, env: Any) -> str:
        words = tokens[idx].info.split()
        return _code_block(tokens[idx].content, words[0] if words else "")

    def heading_open(self, tokens: Sequence[Token], idx: int, options: Any, env: Any) -> str:
        return f'<p class="md-h md-{tokens[idx].tag}">'  # headings of a reply are no headings of the page

    def heading_close(self, tokens: Sequence[Token], idx: int, options: Any, env: Any) -> str:
        return "</p>"

    def table_open(self, tokens: Sequence[Token], idx: int, options: Any, env: Any) -> str:
        return '<div class="md-table" tabindex="0" role="group" aria-label="Table"><table>'

    def table_close(self, tokens: Sequence[Token], idx: int, options: Any, env: Any) -> str:
        return "</table></div>"


def _code_block(code: str, language: str) -> str:
    label = fmt.text(language[:20] or "code")
    return (
        f'<div class="md-code"><div class="md-code-bar"><span>{label}</span>'
        '<button type="button" class="copy-code" aria-label="Copy this code">Copy</button></div>'
        f'<pre tabindex="0" role="group" aria-label="Code, {label}">'
        f"<code>{_coloured(code, language)}</code></pre></div>"
    )


def _coloured(code: str, language: str) -> str:
    if not language or len(code) > HIGHLIGHT_LIMIT_CHARS:
        return fmt.text(code)
    try:
        lexer = get_lexer_by_name(language)
    except ClassNotFound:
        return fmt.text(code)
    return highlight(code, lexer, HtmlFormatter(nowrap=True))


def _safe_link(url: str) -> bool:
    return url.strip().lower().startswith(("http://", "https://", "mailto:"))


def _parser() -> MarkdownIt:
    parser = MarkdownIt(
        "commonmark", {"html": False, "breaks": True, "maxNesting": 30}, renderer_cls=_Renderer
    )
    parser.enable(["table", "strikethrough"])
    parser.disable("code")  # models indent verse and lists; they fence code
    parser.validateLink = _safe_link  # type: ignore[method-assign] # as the library documents it
    return parser


_MARKDOWN = _parser()


def render(text: str) -> str:
    """Markdown to inert HTML; very long text comes out as plain text."""
    if len(text) > MAX_RENDERED_CHARS or _longest_line(text) > LONGEST_LINE_CHARS:
        return f'<div class="md-plain">{fmt.text(text)}</div>'
    return _MARKDOWN.render(text)


@lru_cache(maxsize=512)
def render_kept(text: str) -> str:
    """`render`, remembered: for finished replies, which are drawn again with every new turn."""
    return render(text)


class GrowingMarkdown:
    """Renders one reply again and again while it grows, without paying for its beginning each time."""

    def __init__(self) -> None:
        self._source = ""
        self._html = ""

    def render(self, text: str) -> str:
        """HTML of the whole text so far; one block may look different until the reply is finished."""
        if not text.startswith(self._source):
            self._source = self._html = ""
        rest = text[len(self._source) :]
        cut = _last_block_boundary(rest) if len(rest) > STABLE_CHARS else 0
        if cut:
            self._html += render(rest[:cut])
            self._source += rest[:cut]
            rest = rest[cut:]
        return self._html + render(rest)


def _last_block_boundary(text: str) -> int:
    """Index after the last blank line outside fenced code and lists, or 0."""
    inside_fence, position, boundary = False, 0, 0
    for line in text.splitlines(keepends=True):
        position += len(line)
        if line.lstrip().startswith(("```", "~~~")):
            inside_fence = not inside_fence
        elif not inside_fence and not line.strip():
            boundary = position
    return boundary if text[boundary : boundary + 1] not in (" ", "\t") else 0


def _longest_line(text: str) -> int:
    return max((len(line) for line in text.split("\n")), default=0)
