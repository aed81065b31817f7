"""Numbers as the page spells them: no figure jumps in width because it was rounded up."""

import pytest

from ui import format as fmt


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (9.994, "9.99"),
        (9.996, "10.0"),
        (45.26, "45.3"),
        (999.94, "999.9"),
        (999.96, "1,000"),
        (1204.4, "1,204"),
    ],
)
def test_a_rate_in_three_figures_or_all_before_the_point(value, shown):
    assert fmt.rate(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [(999, "999 B"), (999_400, "999 kB"), (999_600, "1 MB"), (999.6e6, "1.00 GB"), (9.996e9, "10 GB")],
)
def test_a_size_is_never_a_thousand_of_its_unit(value, shown):
    assert fmt.size(value) == shown
