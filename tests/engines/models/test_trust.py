"""The owner's decisions about models' own code: two steps, one model, one revision, kept."""

import os

import pytest

from engines.models.trust import FILE_NAME, QUESTION_LASTS_S, Trust, code_revision, python_files


def allowed(trust: Trust, model: str, revision: str) -> None:
    trust.confirm(trust.ask(model, revision, ("code.py",)).token)


def test_nothing_is_allowed_until_a_question_was_asked_and_answered(tmp_path):
    trust = Trust(tmp_path)
    assert not trust.allows("org/model", "r1")
    question = trust.ask("org/model", "r1", ("modeling.py",))
    assert not trust.allows("org/model", "r1")
    for guess in (None, "", "token", "org/model"):
        assert trust.confirm(guess) is None
    assert trust.confirm(question.token) == question
    assert trust.allows("org/model", "r1")
    assert trust.confirm(question.token) is None


def test_a_decision_is_about_one_model_in_one_revision(tmp_path):
    trust = Trust(tmp_path)
    allowed(trust, "org/model", "r1")
    assert not trust.allows("org/model", "r2")
    assert not trust.allows("org/other", "r1")
    assert not trust.allows("org/model", None)


def test_decisions_outlive_the_app_and_can_be_taken_back(tmp_path):
    allowed(Trust(tmp_path), "org/model", "r1")
    trust = Trust(tmp_path)
    assert trust.allows("org/model", "r1")
    assert trust.withdraw("org/model")
    assert not trust.withdraw("org/model")
    assert not Trust(tmp_path).allows("org/model", "r1")


def test_a_question_cannot_be_answered_later_than_people_remember_it(tmp_path):
    now = [0.0]
    trust = Trust(tmp_path, clock=lambda: now[0])
    question = trust.ask("org/model", "r1", ())
    now[0] += QUESTION_LASTS_S + 1
    assert trust.confirm(question.token) is None
    assert not trust.allows("org/model", "r1")


@pytest.mark.skipif(os.name != "posix", reason="Windows keeps the profile folder private instead")
def test_the_decisions_are_the_owners_alone(tmp_path):
    allowed(Trust(tmp_path), "org/model", "r1")
    assert (tmp_path / FILE_NAME).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("damaged", ["", "[]", "{", '{"m": 5}', '{"m": "r1"}'])
def test_a_damaged_file_allows_nothing(tmp_path, damaged):
    (tmp_path / FILE_NAME).write_text(damaged)
    assert not Trust(tmp_path).allows("m", "r1")


def test_other_code_in_the_same_folder_is_another_revision(tmp_path):
    (tmp_path / "inner").mkdir()
    (tmp_path / "modeling.py").write_text("print(1)")
    before = code_revision(tmp_path, "abc")
    assert code_revision(tmp_path, "abc") == before
    assert code_revision(tmp_path, "abd") != before
    (tmp_path / "inner" / "more.py").write_text("")
    assert code_revision(tmp_path, "abc") != before
    assert python_files(tmp_path) == ("inner/more.py", "modeling.py")
