"""The rule, recomputed: figures from raw offsets by ten lines of their own, verdicts on made-up repeats."""

import statistics
from dataclasses import replace

import pytest

from engines.measure import document, verdict
from engines.measure.records import Case, Foreground, LaneResult, Ledger, Measurement, Quality, Repeat, Suite
from engines.measure.spread import case_figures
from engines.protocol import Failed
from tests.helpers.measuring import lane

CHAT, BOOK = Case("chat", "Chat", "chat", 64, 4), Case("book", "Book", "summarisation", 512, 4)
SUITE = Suite("own", "Own", (CHAT, BOOK), 5)
GOOD = Quality(True, (), None, 20, 20)
SHORT_JOB, LONG_JOB, BACKGROUND, BATTERY = verdict.JOBS


def result(name, *, ttft=0.1, gap=0.05, wobble=0.001, book=1.0, quality=GOOD, repeats=5, **fields):
    """A lane with so many repeats of both cases; `wobble` apart from each other."""
    made = []
    for number in range(1, repeats + 1):
        shift = wobble * (number - repeats / 2)
        for case, scale in ((CHAT, 1.0), (BOOK, book)):
            offsets = tuple(scale * ttft + shift + gap * at for at in range(4))
            made.append(Repeat(case.name, number, token_offsets_s=offsets, prompt_tokens=case.prompt_tokens))
    return LaneResult(
        lane("echo", name), "measured", device="CPU", quality=quality, repeats=tuple(made), **fields
    )


def measured(*results, **fields):
    return Measurement("m", "demo", SUITE, "2026-11-20T10:00:00.000Z", results, status="finished", **fields)


def test_an_independent_script_gets_the_reports_figures_from_the_stored_offsets():
    made = document.to_document(measured(result("100"), result("20", gap=0.08)))
    for shown in made["lanes"]:
        for case in ("chat", "book"):
            runs = [
                r for r in shown["repeats"] if r["case"] == case and not r["disturbed"] and not r["refused"]
            ]
            rates = [(len(o) - 1) / (o[-1] - o[0]) for o in (r["token_offsets_s"] for r in runs)]
            assert shown["medians"][case]["decode_tok_s"] == pytest.approx(statistics.median(rates))
            assert shown["medians"][case]["ttft_s"] == pytest.approx(
                statistics.median(r["token_offsets_s"][0] for r in runs)
            )
            assert shown["medians"][case]["answer_s"] == pytest.approx(
                statistics.median(r["token_offsets_s"][-1] for r in runs)
            )
            low, high = shown["intervals"][case]["decode_tok_s"]
            assert min(rates) <= low <= statistics.median(rates) <= high <= max(rates)


def test_categories_are_joined_by_their_geometric_mean_and_only_if_none_is_missing():
    (shown,) = document.to_document(measured(result("100", book=4)))["lanes"]
    both = [shown["medians"][case]["ttft_s"] for case in ("chat", "book")]
    assert shown["geometric_means"]["ttft_s"] == pytest.approx((both[0] * both[1]) ** 0.5)
    half = result("100")
    half = replace(half, repeats=tuple(r for r in half.repeats if r.case == "chat"))
    assert document.to_document(measured(half))["lanes"][0]["geometric_means"] == {}


def test_the_document_says_what_the_issue_names():
    made = document.to_document(measured(result("100"), machine={"processor": "P"}))
    assert {"contract", "machine", "environment", "lanes", "verdict"} <= set(made)
    assert {"repeats", "medians", "intervals", "weight_bytes", "quality", "placement"} <= set(
        made["lanes"][0]
    )
    assert {"token_offsets_s", "prompt_sha256", "disturbed"} <= set(made["lanes"][0]["repeats"][0])
    assert {"job", "winner", "by", "confidence", "because", "would_change"} <= set(made["verdict"])
    assert document.loads(document.dumps(measured(result("100")))) == measured(result("100"))


def test_apart_intervals_make_a_clear_winner_and_by_how_much():
    found = verdict.verdict_for(SHORT_JOB, measured(result("100", gap=0.05), result("20", gap=0.10)))
    assert (found.winner, found.runner_up, found.confidence) == ("echo/CPU/100", "echo/CPU/20", "clear")
    assert found.by == pytest.approx(0.4 / 0.25 - 1, abs=0.02)
    assert found.because
    assert found.would_change


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ({"gap": 0.0505, "wobble": 0.02}, "overlap"),
        ({"gap": 0.0505, "wobble": 0.00001}, "less than the 3 %"),
        ({"gap": 0.052475, "wobble": 0.000001}, "2.9 % is less than the 3 %"),
        ({"gap": 0.10, "repeats": 2}, "fewer than 3"),
    ],
)
def test_what_is_too_close_or_too_little_has_no_clear_winner(other, says):
    first = result("100", wobble=other.get("wobble", 0.001))
    found = verdict.verdict_for(SHORT_JOB, measured(first, result("20", **other)))
    assert (found.winner, found.confidence) == (None, "unclear")
    assert says in " ".join(found.because)


def test_each_job_has_its_own_winner_and_the_crossing_is_named():
    quick_start = result("100", ttft=0.05, gap=0.06, book=20, ledger=Ledger(load_s=1.0))
    deep = result("20", ttft=0.06, gap=0.05, book=4, ledger=Ledger(load_s=9.0))
    made = measured(quick_start, deep)
    assert verdict.verdict_for(LONG_JOB, made).winner == "echo/CPU/20"
    short = verdict.verdict_for(SHORT_JOB, made)
    assert short.winner == "echo/CPU/20"
    assert any("For fewer than 400 prompts" in line for line in short.would_change)


def test_a_lane_behind_the_runner_up_that_scatters_widely_may_be_the_best_as_well():
    made = measured(result("100"), result("20", gap=0.06), result("fast", gap=0.07, wobble=0.06))
    found = verdict.verdict_for(SHORT_JOB, made)
    assert (found.winner, found.confidence, found.runner_up) == (None, "unclear", "echo/CPU/20")
    assert "interval of echo/CPU/fast overlaps" in found.because[1]


def test_a_lane_that_cannot_win_does_not_choose_the_longest_prompt():
    """The only one whose context holds the book writes garbage: the others are judged by what they can do."""
    garbage = result("fast", quality=replace(GOOD, passed=False, reasons=("garbage",)))
    short = [
        replace(r, repeats=tuple(repeat for repeat in r.repeats if repeat.case == "chat"))
        for r in (result("100"), result("20", gap=0.08))
    ]
    found = verdict.verdict_for(LONG_JOB, measured(garbage, *short))
    assert (found.winner, found.confidence) == ("echo/CPU/100", "clear")
    assert verdict.job_case(LONG_JOB, measured(garbage)) == BOOK


def test_of_prompts_that_are_taken_whole_the_longest_is_the_one_that_was():
    whole = tuple(replace(case, prompt_tokens=0) for case in SUITE.cases)
    for cases in (whole, whole[::-1]):
        made = replace(measured(result("100")), suite=replace(SUITE, cases=cases))
        assert [verdict.job_case(job, made).name for job in (SHORT_JOB, LONG_JOB)] == ["chat", "book"]


def test_what_took_nothing_at_all_is_no_certain_winner():
    nothing, something = (
        replace(r, repeats=tuple(replace(repeat, energy_j=joules) for repeat in r.repeats))
        for r, joules in ((result("100"), 0.0), (result("20"), 2.0))
    )
    found = verdict.verdict_for(BATTERY, measured(nothing, something, result("fast")))
    assert (found.winner, found.by, found.confidence) == (None, None, "unclear")
    assert "cannot be said of 0" in found.because[1]
    assert found.excluded["echo/CPU/fast"] == "its energy per token was not measured"


def test_a_lane_that_lied_about_its_device_is_told_with_the_evidence():
    evidence = ["Asked for CPU.", "The NPU stood still while the processor worked."]
    liar = replace(result("100"), asked_device=False, placement={"evidence": evidence})
    assert verdict.excluded(liar, measured(liar)) == (
        "did not run on CPU: The NPU stood still while the processor worked"
    )


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"failure": Failed("crashed", "It fell over.")}, "failed: It fell over"),
        ({"asked_device": False}, "not on CPU"),
        ({"quality": None}, "not been checked"),
        ({"quality": replace(GOOD, passed=False, reasons=("9 garbage",))}, "9 garbage"),
        ({"reference_only": True}, "reference"),
        ({"repeats": ()}, "no repeat was finished"),
    ],
)
def test_a_lane_that_may_not_win_does_not_and_is_told_why(change, reason):
    fast = replace(result("100", gap=0.001), **change)
    made = measured(fast, result("20"))
    found = verdict.verdict_for(SHORT_JOB, made)
    assert (found.winner, found.confidence) == ("echo/CPU/20", "only")
    assert reason in (verdict.excluded(fast, made) or "")


def test_a_single_refused_repeat_excludes_its_lane():
    fast = result("100", gap=0.001)
    repeats = (*fast.repeats[:-1], replace(fast.repeats[-1], refused="impossible: 9 tok/s"))
    made = measured(replace(fast, repeats=repeats), result("20"))
    assert verdict.verdict_for(SHORT_JOB, made).winner == "echo/CPU/20"


def test_in_the_background_the_least_tax_wins_of_those_fast_enough_to_read():
    gentle = result("100", gap=0.1, foreground=Foreground((100.0,) * 8, (95.0, 96.0, 94.0, 95.5) * 2))
    greedy = result("20", gap=0.01, foreground=Foreground((100.0,) * 8, (50.0, 51.0, 49.0, 52.0) * 2))
    asleep = result("fast", gap=1.0, foreground=Foreground((100.0,) * 8, (99.9,) * 8))
    found = verdict.verdict_for(BACKGROUND, measured(gentle, greedy, asleep))
    assert (found.winner, found.confidence) == ("echo/CPU/100", "clear")
    assert found.by == pytest.approx(0.45, abs=0.03)
    assert "slower than people read" in found.excluded["echo/CPU/fast"]


def test_energy_that_nobody_measures_is_absent_and_never_guessed():
    found = verdict.verdict_for(BATTERY, measured(result("100"), result("20")))
    assert (found.winner, found.by, found.confidence) == (None, None, "none")
    assert "energy cannot be measured" in found.because[0]
    with_energy = result("100")
    repeats = tuple(replace(r, energy_j=2.0 + r.number / 100) for r in with_energy.repeats)
    made = measured(replace(with_energy, repeats=repeats), result("20"))
    assert verdict.verdict_for(BATTERY, made).winner == "echo/CPU/100"
    assert case_figures(repeats, "chat")["joules_per_token"].median == pytest.approx(2.03 / 4)


def test_the_share_of_the_limit_is_bytes_times_rate_over_bandwidth():
    lane_ = result("100", gap=0.05, read_bytes_per_token=1_000_000_000, bandwidth_bytes_s=40e9)
    assert verdict.share_of_limit(lane_, measured(lane_)) == pytest.approx(0.5, rel=0.01)
    assert verdict.share_of_limit(replace(lane_, bandwidth_bytes_s=None), measured(lane_)) is None
