"""The contract in words, as the page and the report show it; docs/measure.md says the same at length."""

from __future__ import annotations

from engines.measure.spread import RESAMPLES, SEED

POINTS = (
    (
        "Equal prompts",
        "the same token ids on every lane, their SHA-256 kept and shown; other ids are refused.",
    ),
    (
        "Equal work",
        "greedy, exactly N new tokens, end of sequence ignored; a reply that stops early is refused.",
    ),
    ("No help from before", "kept caches are off and every repeat's prompt begins differently."),
    ("Alone", "one lane at a time; nothing else of the app runs or stays loaded meanwhile."),
    ("Warm", "loaded, compiled, and one full generation done before the first that counts."),
    ("Repeated", "at least five times, interleaved across lanes, with a pause between."),
    (
        "Watched",
        "other programs' load, power, temperature and clock; a disturbed repeat is told and done again.",
    ),
    ("Possible", "a rate beyond 1.2 × what the memory can deliver is refused."),
    ("Memory", "in a pass of its own."),
    ("Answers are checked", "before speed is believed."),
)
"""(title, the rule): the titles stand in docs/measure.md, in this order."""

DEFINITIONS = (
    ("TTFT", "first token − start of the request, by the worker's clock; template and tokenisation included"),
    ("Prefill", "prompt tokens ÷ TTFT"),
    ("Decode", "(n − 1) ÷ (t<sub>n</sub> − t<sub>1</sub>): the first token is excluded"),
    ("Whole answer", "last token − start of the request"),
    ("ITL p95", "95th percentile of the gaps between tokens, nearest rank"),
    ("Energy", "joules above idle ÷ tokens"),
    (
        "Interval",
        f"middle 95 % of {RESAMPLES:,} bootstrap medians: numpy's default_rng({SEED}).choice of the sorted values; "
        "anyone gets the same from the offsets",
    ),
)
"""(figure, how it is made from the offsets), as HTML."""
