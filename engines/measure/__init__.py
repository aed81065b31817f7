"""Measure: the fair benchmark, the tuner and the verdict. Knows no page and no database.

`records` holds what is measured, `suites` what is asked, `session` does it, `verdict` reads it, `document` writes it.
"""
