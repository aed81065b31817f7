"""Accounts, guessing, and how long a login lasts."""

from pathlib import Path

import pytest

from ui.access import Role
from ui.share.logins import (
    FREE_GUESSES,
    HERE,
    MOST_LOGINS,
    SHORTEST_PASSWORD,
    Accounts,
    Budget,
    Logins,
    PasswordError,
    Throttle,
    new_password,
    read_accounts,
)
from ui.share.settings import _from_file as password_from

PASSWORD = "correct horse"


@pytest.fixture(scope="module")
def accounts() -> Accounts:
    accounts = Accounts()
    accounts.add("owner", Role.OWNER, PASSWORD)
    accounts.add("visitor", Role.VISITOR, "battery staple")
    return accounts


def logins(accounts, **options) -> Logins:
    return Logins(accounts, **options)


def test_passwords_are_kept_as_hashes_only(accounts):
    kept = repr(vars(accounts)) + repr(list(accounts._accounts.values()))
    assert PASSWORD not in kept
    assert "$argon2id$" in kept


def test_a_password_opens_its_own_account_only(accounts):
    assert accounts.check("owner", PASSWORD).role is Role.OWNER
    for name, password in (("visitor", PASSWORD), ("owner", PASSWORD.upper()), ("owner", ""), ("", PASSWORD)):
        assert accounts.check(name, password) is None


@pytest.mark.parametrize("password", ["", "short", "x" * (SHORTEST_PASSWORD - 1), "x" * 5000])
def test_a_password_of_no_fit_length_is_refused(password):
    with pytest.raises(PasswordError, match="characters"):
        Accounts().add("owner", Role.OWNER, password)


def test_made_passwords_are_long_and_never_the_same():
    made = {new_password() for _ in range(200)}
    assert len(made) == 200
    assert all(len(password) >= 16 for password in made)


def test_guessing_is_slowed_and_a_thousand_guesses_at_once_are_a_thousand(accounts):
    now = [0.0]
    throttle = Throttle(clock=lambda: now[0])
    taken = [throttle.take(Budget("place:1.2.3.4")) for _ in range(1000)]
    assert taken.count(0.0) == FREE_GUESSES
    now[0] += taken[-1]
    assert throttle.take(Budget("place:1.2.3.4")) == 0
    assert throttle.take(Budget("place:1.2.3.4")) > taken[-1]


def test_ten_thousand_guesses_from_ten_thousand_places_wait_for_each_other(accounts):
    tried = logins(accounts)
    tried.throttle = Throttle(clock=lambda: 1000.0)  # on a busy machine the waits would pass meanwhile
    looked_at = [0]
    check = accounts.check

    def counting(name, password):
        looked_at[0] += 1

    tried.accounts = type("Counting", (), {"check": staticmethod(counting)})()
    waits = [tried.attempt("owner", f"guess{n}", f"10.0.{n // 256}.{n % 256}").wait_s for n in range(10_000)]
    assert looked_at[0] < 100
    assert sum(wait > 0 for wait in waits) > 9_900
    tried.accounts = type("Real", (), {"check": staticmethod(check)})()
    # Meanwhile the owner comes in at this computer, and from a browser that was logged in before.
    assert tried.attempt("owner", PASSWORD, HERE).token
    token, _ = tried.open("owner", Role.OWNER)
    mark = tried.remember_browser(token)
    assert tried.attempt("owner", PASSWORD, "10.0.0.1", mark).token
    assert tried.attempt("owner", PASSWORD, "10.0.0.1", "made-up-mark").wait_s > 0


def test_a_login_ends_after_a_day_on_logout_and_with_the_sharing(accounts):
    now, ended = [1000.0], []
    tried = logins(accounts, clock=lambda: now[0])
    tried.on_end = lambda login: ended.append(login.name)
    owner, visitor, other = (
        tried.open(*who)[0] for who in (("o", Role.OWNER), ("v", Role.VISITOR), ("w", Role.VISITOR))
    )
    tried.close(other)
    assert tried.find(other) is None
    tried.close_visitors()
    assert tried.find(visitor) is None
    assert tried.find(owner) is not None
    now[0] += 24 * 3600 + 1
    assert tried.find(owner) is None
    tried.sweep()
    assert ended == ["w", "v", "o"]


def test_visitors_cannot_push_the_owner_out_by_their_number(accounts):
    tried = logins(accounts)
    owner, _ = tried.open("owner", Role.OWNER)
    for _ in range(MOST_LOGINS + 50):
        tried.open("visitor", Role.VISITOR)
    assert tried.find(owner) is not None
    assert len(tried._sessions) == MOST_LOGINS


@pytest.mark.parametrize("token", [None, "", "x", "é" * 50, "\ud800"])
def test_a_made_up_cookie_is_nobodys(accounts, token):
    assert logins(accounts).find(token) is None


def accounts_in(folder: Path, text: str) -> Accounts:
    path = folder / "accounts.txt"
    path.write_text(text, encoding="utf-8")
    return read_accounts(path)


def test_accounts_come_from_a_file_with_passwords_or_their_hashes(tmp_path, accounts):
    hashed = accounts._accounts["owner"].hash
    read = accounts_in(tmp_path, f"# who\n\nowner ada {hashed}\nvisitor bob  two words and more\n")
    assert read.check("ada", PASSWORD).role is Role.OWNER
    assert read.check("bob", "two words and more").role is Role.VISITOR


def test_files_may_be_as_windows_powershell_writes_them(tmp_path):
    file = tmp_path / "secret.txt"
    file.write_text(f"owner jürgen {PASSWORD}\r\n", encoding="utf-16", newline="")
    assert read_accounts(file).check("jürgen", PASSWORD).role is Role.OWNER
    file.write_text(f"{PASSWORD}\r\n", encoding="utf-16", newline="")
    assert password_from(file) == PASSWORD
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(PasswordError, match="cannot be read"):
        password_from(file)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("visitor bob long enough", "no owner"),
        ("owner ada short", "Line 1"),
        ("# x\nowner ada", "Line 2"),
        ("root ada long enough", "owner NAME PASSWORD"),
        ("owner ada long enough\nvisitor ada another one", "Line 2.*ada has an account already"),
        ("owner ada $argon2id$v=19$m=19456,t=2,p=1$c29tZXNhbHQ", "Line 1.*give it whole"),
        ("owner ada $argon2id", "Line 1.*give it whole"),
    ],
)
def test_a_file_of_accounts_that_cannot_be_taken_names_the_line(tmp_path, text, said):
    with pytest.raises(PasswordError, match=said):
        accounts_in(tmp_path, text)


def test_a_file_of_accounts_that_is_not_there_is_one_sentence(tmp_path):
    with pytest.raises(PasswordError, match="cannot be read"):
        read_accounts(tmp_path / "absent")
