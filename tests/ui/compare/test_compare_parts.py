"""The Compare tab's parts without a browser: rendering, choices, findings, numbers, settings."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.protocol import Availability, DeviceStatus, EngineSpec, Failed, Loaded, RunMetrics, Target
from ui import format as fmt
from ui.chat.conversations import PastRun, TalkTurn
from ui.chat.run_view import RunView
from ui.chat.turns import TurnError
from ui.compare.actions import read_attachment, settings_from, with_attachment
from ui.compare.browser_tab import panels_from_json, panels_to_json
from ui.compare.offer import Offer, ignored_settings, sharing_panels
from ui.compare.panel_html import (
    Naming,
    PanelState,
    exchange,
    failure_card,
    head,
    numbers_line,
    tuning_line,
)
from ui.compare.summary_html import (
    Line,
    agreement,
    chart,
    difference,
    first_difference,
    lines,
    prompt_agreement,
    summary,
    table,
    ticks,
)
from ui.reply_html import GrowingMarkdown, render

ALLOWED_TAGS = {
    *("p", "strong", "em", "ul", "ol", "li", "code", "pre", "div", "span", "button", "a", "br", "hr"),
    *("blockquote", "table", "thead", "tbody", "tr", "th", "td", "s"),
}
NAMING = Naming(lambda engine: engine.title())


def tags(html: str) -> set[str]:
    return set(re.findall(r"<\s*/?\s*([a-zA-Z0-9]+)", html))


# --- model output ------------------------------------------------------------------------------------------

HOSTILE = (
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "![tracker](https://example.com/x.png)",
    "[click](javascript:alert(1)) [data](data:text/html,<script>alert(1)</script>)",
    '<form action="https://example.com"><input name=q></form>',
    "<iframe src=https://example.com></iframe><style>*{display:none}</style>",
    '```"><img src=x onerror=alert(1)>\ncode\n```',
    "<svg onload=alert(1)>",
    "| a |\n|---|\n| <b onmouseover=alert(1)>x</b> |",
    "x" * 100_000,
    "**" * 5_000,
    "> " * 3_000,
)


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_output_is_text(text):
    html = render(text)
    assert tags(html) <= ALLOWED_TAGS
    assert not re.search(r'<[^>]*(\son\w+=|(href|src)="(?!https?:|mailto:))', html)
    assert "<img" not in html


@given(st.text(alphabet=st.sampled_from("<>\"'`*_[]()!#|-\n abc&;:/="), max_size=200))
@settings(max_examples=150, deadline=None)
def test_whatever_is_written_only_known_tags_come_out(text):
    assert tags(render(text)) <= ALLOWED_TAGS


def test_markdown_is_rendered_with_coloured_code():
    html = render("**bold**\n\n```python\ndef f():\n    return 1\n```\n\n[a](https://example.com)")
    assert "<strong>bold</strong>" in html
    assert '<span class="k">def</span>' in html
    assert 'href="https://example.com" target="_blank" rel="noopener' in html


def test_a_growing_reply_ends_like_a_whole_one():
    text = "\n\n".join(f"Paragraph {n} with *some* words in it." for n in range(400))
    growing = GrowingMarkdown()
    for length in range(0, len(text) + 700, 700):
        html = growing.render(text[:length])
    assert html == render(text)


# --- what can be chosen ------------------------------------------------------------------------------------

FAST = EngineSpec("fast", "Fast", "m", devices=("CPU", "GPU"), precisions=("int4", "int8"), honours=("seed",))
GONE = EngineSpec("gone", "Gone", "m", devices=("NPU",), precisions=("int4",))
OFFER = Offer(
    (FAST, GONE),
    {
        "fast": Availability(
            True,
            (
                DeviceStatus("CPU", True),
                DeviceStatus("GPU", False, reason="No driver.", remedy="Install one."),
            ),
        ),
        "gone": Availability(False, reason="No library.", remedy="Run setup."),
    },
)


def test_unavailable_choices_are_listed_and_say_why():
    assert OFFER.engine_choices() == [("Fast", "fast"), ("Gone — not available", "gone")]
    assert OFFER.device_choices("fast") == [("CPU", "CPU"), ("GPU — not available", "GPU")]
    assert OFFER.trouble(Target("fast", "CPU", "int4")) is None
    assert OFFER.trouble(Target("fast", "GPU", "int4")).remedy == "Install one."
    assert OFFER.trouble(Target("gone", "NPU", "int4")).reason == "No library."


def test_a_menu_holds_what_is_chosen_even_where_it_is_not_to_be_had():
    served = EngineSpec("served", "Served", "m", devices=(), precisions=("served",))
    offer = Offer((FAST, served), OFFER.availability)
    target = offer.best_target(served)
    assert offer.holding(offer.device_choices("served"), target.device) == [("CPU — not available", "CPU")]
    assert offer.holding(offer.device_choices("fast"), "CPU") == offer.device_choices("fast")
    assert Offer((served,), {}, probing=True).holding([], "CPU") == [("CPU", "CPU")]


def test_defaults_are_the_able_engines_in_their_best_precision():
    assert OFFER.default_targets() == (Target("fast", "CPU", "int4"),)


def test_a_choice_that_makes_no_sense_falls_back():
    assert OFFER.settle("fast", "NPU", "fp64", " ") == Target("fast", "CPU", "int4")
    assert OFFER.settle("unknown", "CPU", "int8", "x") == Target("fast", "CPU", "int8", "x")


def test_kept_panels_survive_what_an_older_app_or_a_person_wrote():
    targets = {2: Target("fast", "CPU", "int8", "org/model")}
    assert panels_from_json(panels_to_json(targets), OFFER) == targets
    for broken in (
        None,
        "x",
        [1],
        [[9, "fast", "CPU", "int4", "demo"]],
        [[1, "none", "CPU", "int4", "demo"]],
        [[1, 2]],
    ):
        assert panels_from_json(broken, OFFER) == {}


def test_shared_devices_and_ignored_settings():
    both = {
        1: Target("fast", "CPU", "int4"),
        3: Target("fast", "CPU", "int8"),
        4: Target("fast", "GPU.0", "int4"),
    }
    assert sharing_panels(both) == [("CPU", [1, 3])]
    assert set(ignored_settings([FAST])) == {"temperature", "top_p", "top_k", "repetition_penalty"}


# --- findings ----------------------------------------------------------------------------------------------


def turn_with(
    *replies: str, sha: tuple[str, ...] = (), contended: bool = True, phase: str = "finished"
) -> TalkTurn:
    runs = []
    for panel, text in enumerate(replies, start=1):
        offsets = tuple(0.1 * panel + 0.02 * panel * n for n in range(10))
        target = Target(f"engine{panel}", "CPU", "int4")
        metrics = RunMetrics(output_tokens=10, token_offsets_s=offsets, total_s=offsets[-1])
        view = RunView(
            panel,
            target,
            f"run{panel}",
            phase=phase,
            text=text,
            tokens=10,
            ttft_s=offsets[0],
            elapsed_s=offsets[-1],
            decode_tok_s=metrics.decode_tok_s,
            metrics=metrics,
            token_offsets_s=offsets,
            prompt_sha256=sha[panel - 1] if sha else "same",
            contended=contended,
        )
        runs.append(PastRun(panel, target, f"run{panel}", view))
    return TalkTurn("turn", "the prompt", "together", past=tuple(runs))


def test_summary_names_the_first_the_fastest_and_the_stamp():
    html = summary(turn_with("one two three", "one two four"), NAMING)
    assert "Started first" in html
    assert html.index("Engine1 · CPU · int4") > 0
    assert "2.0× the slowest" in html
    assert "part at word 3" in html
    assert ">contended<" in html
    assert "panels 1, 2 share CPU" in html


def test_summary_of_a_blind_turn_gives_nothing_away():
    html = summary(turn_with("a", "b"), Naming(lambda engine: engine, hidden=True))
    assert "Vote first" in html
    assert "engine" not in html.lower().replace("aria", "")


def test_equal_replies_and_unequal_prompts_are_told():
    assert "identical" in agreement(lines(turn_with("same", "same")), NAMING)
    assert "1 and 2 are identical" in agreement(lines(turn_with("a", "a", "b")), NAMING)
    assert prompt_agreement(lines(turn_with("a", "b"))) == ""
    assert "prompts differ" in prompt_agreement(lines(turn_with("a", "b", sha=("x", "y"))))


def test_chart_is_drawn_from_the_offsets_and_says_so_in_words():
    html = chart(lines(turn_with("a", "b")), NAMING)
    assert html.count("<polyline") == 2
    assert 'role="img"' in html
    assert "10 tokens in 280 ms" in html


def test_no_panels_number_covers_anothers_and_none_is_best_where_all_are_equal():
    found = [
        Line(panel, line.target, line.view)
        for panel, line in enumerate([lines(turn_with("a"))[0]] * 4, start=1)
    ]
    ends = re.findall(r'class="end p\d" cx="([\d.]+)"', chart(found, NAMING))
    assert len(set(ends)) == 4
    assert "(best)" not in table(found, NAMING)


@given(st.floats(min_value=1e-4, max_value=1e5))
def test_ticks_are_few_round_and_within(end):
    found = ticks(end)
    assert 2 <= len(found) <= 7
    assert found[0] == 0
    assert found[-1] <= end * 1.001


@pytest.mark.parametrize(
    ("one", "other", "at"), [("a b c", "a b d", 3), ("a", "a b", 2), ("x", "y", 1), ("a  b", "a c", 2)]
)
def test_first_difference_counts_words(one, other, at):
    assert first_difference(one, other) == at


def test_difference_marks_words_and_escapes_them():
    html = difference("the <b>old</b> cat", "the new cat")
    assert "<del>&lt;b&gt;old&lt;/b&gt;</del><ins>new</ins>" in html
    assert "identical" in difference("same ", "same")


# --- a panel -----------------------------------------------------------------------------------------------


def test_a_failure_shows_message_remedy_and_log_as_text():
    html = failure_card(Failed("crashed", "It <died>.", "Try again.", "Traceback <here>", exit_code=9))
    assert "It &lt;died&gt;." in html
    assert "exit code 9" in html
    said = failure_card(Failed("crashed", "It ended (killed by signal 9).", exit_code=-9))
    assert "exit code" not in said  # it is told already
    assert "Traceback &lt;here&gt;" in html


def test_blind_heads_and_replies_hide_the_backend():
    turn = turn_with("words")
    run = turn.runs[0]
    hidden = Naming(lambda engine: engine, hidden=True)
    html = head(1, run.target, hidden, PanelState("ready", "Ready", memory_bytes=10**9), run.view())
    html += exchange(turn, run, run.view(), hidden)
    assert "engine1" not in html
    assert "CPU" not in html
    assert "tok/s ·" not in html


def test_numbers_line_gives_what_is_known():
    line = numbers_line(RunView(1, Target("e", "CPU", "int4"), phase="stopped", tokens=1, ttft_s=0.042))
    assert re.sub("<.*?>", "", line) == "stopped · TTFT 42 ms · 1 token"


# --- settings and files ------------------------------------------------------------------------------------


def test_settings_come_from_the_fields():
    made = settings_from(" be brief ", 64, 0.7, 0.9, 40, 1.1, "7")
    assert (made.system_prompt, made.max_new_tokens, made.temperature, made.seed) == ("be brief", 64, 0.7, 7)
    neutral = settings_from("", None, None, 1, 0, 1, "")
    assert (neutral.system_prompt, neutral.top_p, neutral.top_k, neutral.repetition_penalty) == (None,) * 4
    assert neutral.seed is None


@pytest.mark.parametrize(
    ("field", "value"),
    [
        (1, 0),
        (1, "many"),
        (1, 32_769),
        (2, -1),
        (2, 2.1),
        (3, 7),
        (4, 2.5),
        (6, "x"),
        (6, "7.5"),
        (2, float("nan")),
    ],
)
def test_a_senseless_setting_is_named(field, value):
    fields = [None, 256, 0, 1, 0, 1, None]
    fields[field] = value
    with pytest.raises(TurnError, match=r"must be between|is not a number|must be a whole number"):
        settings_from(*fields)


def test_a_file_becomes_context(tmp_path):
    file = tmp_path / "notes.txt"
    file.write_text("first ``` line", encoding="utf-8")
    text, problem = read_attachment(str(file))
    assert problem is None
    assert with_attachment("Sum up.", text) == "notes.txt:\n````\nfirst ``` line\n````\n\nSum up."
    file.write_text("Grüße\r\n", encoding="utf-16", newline="")  # as Windows PowerShell writes it
    assert read_attachment(str(file)) == ("notes.txt\nGrüße\n", None)
    file.write_text("Grüße", encoding="latin-1")
    assert read_attachment(str(file)) == ("notes.txt\nGrüße", None)
    file.write_bytes(b"\0\1")
    assert read_attachment(str(file))[1] == "notes.txt is not a text file."


# --- numbers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0.0042, "4.2 ms"),
        (0.1337, "134 ms"),
        (1.375, "1.38 s"),
        (48.21, "48.2 s"),
        (125, "2 min 05 s"),
    ],
)
def test_seconds(value, text):
    assert fmt.seconds(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(None, "–"), (812, "812 B"), (4.2e6, "4 MB"), (1.94e9, "1.94 GB")]
)
def test_size(value, text):
    assert fmt.size(value) == text


def test_a_thought_is_folded_and_told_with_its_time_and_tokens():
    target = Target("e", "CPU", "int4")
    metrics = RunMetrics(
        output_tokens=400,
        token_offsets_s=(0.5, 12.8, 20.0),
        reasoning_tokens=340,
        answer_tokens=58,
        first_reasoning_s=0.5,
        first_answer_s=12.8,
    )
    view = RunView(
        1,
        target,
        phase="finished",
        text="Four.",
        reasoning="<b>2 + 2</b>",
        reasoning_tokens=340,
        answer_tokens=58,
        first_reasoning_s=0.5,
        first_answer_s=12.8,
        note="The system prompt went elsewhere.",
        metrics=metrics,
    )
    html = exchange(TalkTurn("t", "2 + 2?", "together"), PastRun(1, target, "r", view), view, NAMING)
    assert "<summary>Thought for 12.3 s, 340 tokens</summary>" in html
    assert "&lt;b&gt;2 + 2&lt;/b&gt;" in html
    assert html.index("2 + 2&lt;") < html.index("Four.")
    assert "first thought 500 ms · first answer 12.8 s · answer finished 20.0 s" in html
    assert "The system prompt went elsewhere." in html
    growing = RunView(1, target, phase="running", reasoning="x" * 9_000, first_reasoning_s=1.0, elapsed_s=4.0)
    html = exchange(TalkTurn("t", "2 + 2?", "together"), PastRun(1, target, "r", growing), growing, NAMING)
    assert "Thinking… 3.0 s" in html
    assert len(html) < 6_000


def test_a_tuned_lane_says_so_and_others_do_not():
    def loaded(**details):
        return Loaded(1.0, None, None, None, None, "CPU", {}, details)

    view = RunView(1, Target("e", "CPU", "int4"), loaded=loaded(tuning={"threads": 2, "HINT": "<f32>"}))
    assert tuning_line(view) == '<p class="note">Tuned: HINT=&lt;f32&gt;, threads=2</p>'
    assert tuning_line(RunView(1, Target("e", "CPU", "int4"), loaded=loaded(threads=2))) == ""
    assert tuning_line(RunView(1, Target("e", "CPU", "int4"))) == ""
