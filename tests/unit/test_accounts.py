"""Which line, and which of the two account files, login reads a password from: values worked out by
hand from the sources of glibc, musl, BusyBox and pam_unix, and tried on their own functions
(getpwnam, getspnam) when this was written."""

import pytest

GOOD = b"root:A:19000:0:99999:7:::"
PASSWD = b"root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000::/tmp:/bin/sh\n"
NEW = b"$6$new$" + b"n" * 86


def fields(dockfix, kind, data, user=b"root"):
    """What glibc, musl and BusyBox read; None where they find no such user."""
    return [line and line.field for line in dockfix.find_user_lines(kind, data, user)]


A, NONE = [b"A"] * 3, [None] * 3


@pytest.mark.parametrize(
    "line, read",
    [
        (GOOD, A),
        (b"root:A:::::::", A),
        (b"root::19000:0:99999:7:::", [b""] * 3),
        (b"root:A:19000:0:99999:7:::\r", [None, None, b"A"]),
        (b"root:A", NONE),
        (b"root:A:19000", NONE),
        (b"root:A:19000:0:99999", [b"A", None, None]),  # the form of 1988
        (b"root:A:19000:0:99999:", [b"A", None, None]),
        (b"root:A:19000:0:99999:7", NONE),
        (b"root:A:19000:0:99999:7:30:20000", [b"A", None, None]),
        (b"root:A:19000:0:99999:7:::5:", NONE),
        (b"root:A:19000:0:99999:7::::", NONE),
        (b"root:A:x:0:99999:7:::", [None, None, b"A"]),
        (b"root:A:19000:0:99999:7x:::", NONE),
        (b"root:A: 19000:0:99999:7:::", [b"A", None, b"A"]),
        (b"root:A:-1:0:99999:7:::", [None, None, b"A"]),
        (b" root:A:19000:0:99999:7:::", [b"A", None, b"A"]),
        (b"root :A:19000:0:99999:7:::", [None, None, b"A"]),
        (b"#root:A:19000:0:99999:7:::", NONE),
        (b"rooty:A:19000:0:99999:7:::", NONE),
        (b"xroot:A:19000:0:99999:7:::", NONE),
    ],
)
def test_one_line_of_shadow(dockfix, line, read):
    assert fields(dockfix, "shadow", line + b"\n") == read
    assert fields(dockfix, "shadow", b"bin:*:1:0:99999:7:::\n" + line + b"\n# end\n") == read


def test_a_last_line_without_its_end_is_none_for_musl(dockfix):
    assert fields(dockfix, "shadow", GOOD) == [b"A", None, b"A"]


@pytest.mark.parametrize("length, read", [(254, True), (255, False)])
def test_a_line_that_is_too_long_for_musl_and_busybox(dockfix, length, read):
    line = b"root:" + b"A" * (length - len(b"root::1:0:99999:7:::")) + b":1:0:99999:7:::"
    assert len(line) == length
    found = fields(dockfix, "shadow", line + b"\n" + GOOD + b"\n")
    assert found[0].startswith(b"AA")
    assert found[1:] == ([found[0]] * 2 if read else [None, None])  # they do not go on to the next


@pytest.mark.parametrize(
    "line, read",
    [
        (b"root:x:0:0:root:/root:/bin/sh", [b"x"] * 3),
        (b"root::0:0:root:/root:/bin/sh", [b""] * 3),
        (b"root:*:0:0:::", [b"*"] * 3),
        (b"root:x:0:0:root:/root:/bin/sh\r", [b"x"] * 3),
        (b"root:x:0:0", [b"x", None, None]),
        (b"root:x:0", NONE),
        (b"root:x", NONE),
        (b"root:x:0:0:root:/root", [b"x", None, None]),
        (b"root:x:0:0:root:/root:/bin/sh:more", [b"x", b"x", None]),
        (b"root:x::0:root:/root:/bin/sh", [None, b"x", b"x"]),
        (b"root:x:0::root:/root:/bin/sh", [None, b"x", None]),
        (b" root:x:0:0:root:/root:/bin/sh", [b"x", None, b"x"]),
        (b"root: x:0:0:root:/root:/bin/sh", [b" x", b" x", b"x"]),
        (b"+root:x:0:0:root:/root:/bin/sh", NONE),
        (b"#root:x:0:0:root:/root:/bin/sh", NONE),
    ],
)
def test_one_line_of_passwd(dockfix, line, read):
    assert fields(dockfix, "passwd", line + b"\n") == read


@pytest.mark.parametrize(
    "passwd, shadow, takes",
    [
        (b"x", b"H", True),
        (b"x", b"other", False),
        (b"x", None, False),
        (b"x", b"", False),
        (b"H", None, True),  # no line in shadow: the field of passwd decides alone
        (b"H", b"H", True),
        (b"H", b"other", False),  # sshd without PAM and dropbear prefer shadow
        (b"", b"H", False),  # opens without any password
        (b"*", b"H", False),  # BusyBox looks into shadow, PAM does not
        (b"other", b"H", False),
        (b"##root", b"H", False),  # PAM looks into shadow, BusyBox does not
    ],
)
def test_when_a_hash_is_what_login_compares_with(dockfix, passwd, shadow, takes):
    line = b"" if shadow is None else b"root:%b:1:0:99999:7:::\n" % shadow
    files = dockfix.AccountFiles(b"root:%b:0:0::/:/bin/sh\n" % passwd, b"bin:*:1::::::\n" + line)
    assert dockfix.login_takes(files, b"root", b"H") is takes
    assert dockfix.passwords_not_set(files, {b"root": b"H"}) == ([] if takes else [b"root"])


@pytest.mark.parametrize("field", [b"x", b"", b"*", b"!", b"$6$old$" + b"o" * 86, b"##root", b"x "])
def test_the_field_of_passwd_becomes_x(dockfix, field):
    passwd = b"bin:*:1:1::/:/bin/false\nroot:%b:0:0:a, b:/root:/bin/sh\n+::::::\n"
    shadow = b"bin:*:1::::::\nroot:A:5:0:99999:7::20000:\nlast:!:::::::\n"
    files = dockfix.AccountFiles(passwd % field, shadow)
    new = dockfix.edit_accounts(files, {b"root": NEW}, 20001)
    assert new.passwd == passwd % b"x"
    assert new.shadow == shadow.replace(b"root:A:5:", b"root:" + NEW + b":20001:")


@pytest.mark.parametrize("shadow", [None, b"", b"bin:*:1::::::\n", b"root:A:1\n"])
@pytest.mark.parametrize("field", [b"", b"*", b"!", b"$6$old$" + b"o" * 86])
def test_without_a_line_in_shadow_the_password_goes_where_it_stood(dockfix, shadow, field):
    files = dockfix.AccountFiles(b"root:%b:0:0::/root:/bin/sh\n" % field, shadow)
    new = dockfix.edit_accounts(files, {b"root": NEW}, 20001)
    assert new == (b"root:%b:0:0::/root:/bin/sh\n" % NEW, shadow)


@pytest.mark.parametrize(
    "shadow, why",
    [
        (None, "no /etc/shadow"),
        (b"bin:*:1::::::\n", "root has no line"),
        (b"root:A\n", "2 fields in place of 9"),
        (b"root:A:19000:0:99999:7::::\n", "10 fields in place of 9"),
    ],
)
def test_where_shadow_should_have_a_line_and_has_none(dockfix, shadow, why):
    files = dockfix.AccountFiles(PASSWD, shadow)
    with pytest.raises(dockfix.Refused, match="(?s)%s.*pwconv" % why):
        dockfix.edit_accounts(files, {b"root": NEW}, 20001)


@pytest.mark.parametrize(
    "passwd, shadow, why",
    [
        (None, GOOD, "no /etc/passwd"),
        (b"app:x:1:1::/:/bin/sh\n", b"app:A:1::::::\n", "no user root in its /etc/passwd"),
        (b"app:x:1:1::/:/bin/sh\n", GOOD + b"\n", "only in /etc/shadow"),
        (b"app:x:1:1::/:/bin/sh\n+::::::\n", GOOD + b"\n", "NIS"),
        (b"+@admins::::::\n" + PASSWD, GOOD + b"\n", "NIS"),
        (b"-root::::::\n" + PASSWD, GOOD + b"\n", "NIS"),
        (PASSWD, b"+\n" + GOOD + b"\n", "NIS"),
        (PASSWD, GOOD + b"\r\n", "carriage return"),
        (PASSWD, b"root:A:19000:0:99999\n", "5 fields in place of 9"),
        (b"root:x:0:0\n", GOOD + b"\n", "4 fields in place of 7"),
        (b"root:x:0:0:::", GOOD + b"\n", "no line end"),
        (PASSWD, GOOD + b"\n\0\n", "NUL"),
        (PASSWD + b"\0", GOOD + b"\n", "NUL"),
        (PASSWD, (GOOD + b"\n") * 101, "more than 100 lines"),
    ],
)
def test_what_no_reader_or_not_every_reader_finds_is_refused_by_name(dockfix, passwd, shadow, why):
    with pytest.raises(dockfix.Refused) as e:
        dockfix.edit_accounts(dockfix.AccountFiles(passwd, shadow), {b"root": NEW}, 20001)
    assert why in e.value.msg


@pytest.mark.parametrize("user", [b"+root", b"-root", b"#root", b" root", b"root "])
def test_names_that_no_login_has(dockfix, user):
    files = dockfix.AccountFiles(PASSWD + user + b":x:1:1::/:/bin/sh\n", user + b":A:1::::::\n")
    with pytest.raises(dockfix.Refused):
        dockfix.edit_accounts(files, {user: NEW}, 20001)


def test_nis_lines_after_the_user_do_not_matter(dockfix):
    files = dockfix.AccountFiles(PASSWD + b"+::::::\n", GOOD + b"\n+\n")
    new = dockfix.edit_accounts(files, {b"root": NEW}, 1)
    assert new.shadow == b"root:" + NEW + b":1:0:99999:7:::\n+\n"


def test_of_doubled_lines_the_first_that_is_accepted_counts(dockfix):
    files = dockfix.AccountFiles(PASSWD, b"root:damaged\n" + GOOD + b"\nroot:B:1:0:99999:7:::\n")
    new = dockfix.edit_accounts(files, {b"root": NEW}, 20001)
    expected = b"root:damaged\nroot:" + NEW + b":20001:0:99999:7:::\nroot:B:1:0:99999:7:::\n"
    assert new.shadow == expected
    assert dockfix.require_login_lines(files, b"root").same_for_all()


def test_where_readers_take_different_lines_each_gets_the_hash(dockfix):
    files = dockfix.AccountFiles(PASSWD, GOOD + b"\r\nroot:B:1:0:99999:7:::\nroot:C:1::::::\n")
    new = dockfix.edit_accounts(files, {b"root": NEW}, 2)
    first, second = b"root:" + NEW + b":2:0:99999:7:::\r\n", b"root:" + NEW + b":2:0:99999:7:::\n"
    assert new.shadow == first + second + b"root:C:1::::::\n"
    assert not dockfix.require_login_lines(files, b"root").same_for_all()


def test_a_missing_line_end_is_added_only_where_the_line_is_edited(dockfix):
    files = dockfix.AccountFiles(PASSWD, GOOD)
    assert dockfix.edit_accounts(files, {b"root": NEW}, 2).shadow.endswith(b":7:::\n")
    other = dockfix.AccountFiles(PASSWD, GOOD + b"\nbin:*:1::::::")
    assert dockfix.edit_accounts(other, {b"root": NEW}, 2).shadow.endswith(b"\nbin:*:1::::::")


def test_several_users_all_or_none(dockfix):
    files = dockfix.AccountFiles(PASSWD, GOOD + b"\n")
    with pytest.raises(dockfix.Refused, match="app has no line"):
        dockfix.edit_accounts(files, {b"root": NEW, b"app": NEW}, 2)
    both = files._replace(shadow=GOOD + b"\napp:!:1::::::\n")
    new = dockfix.edit_accounts(both, {b"root": b"R", b"app": b"P"}, 2)
    assert new == (PASSWD, b"root:R:2:0:99999:7:::\napp:P:2::::::\n")


def test_a_hash_that_makes_the_line_too_long_is_refused(dockfix):
    files = dockfix.AccountFiles(PASSWD, GOOD + b"\n")
    with pytest.raises(dockfix.Refused, match="too long"):
        dockfix.edit_accounts(files, {b"root": b"h" * 250}, 2)


# ---- what is said before and after


def judge_root(dockfix, files, unlock):
    """What is worth a note before root's password is set. Raises Refused where it must not be."""
    lines = dockfix.require_login_lines(files, b"root")
    dockfix.require_unlocked(lines, b"root", unlock)
    return dockfix.describe_accounts(files, {b"root": lines})


@pytest.mark.parametrize(
    "passwd, shadow, note",
    [
        (b"x", b"$6$old$" + b"o" * 86, ""),
        (b"x", b"*", r"root had no password before \(\*\)$"),
        (b"x", b"", r"root had an empty password before \(\)$"),
        (b"", b"*", r"root had an empty password before in /etc/passwd itself \(\)$"),
        (
            b"*",
            b"$6$old$" + b"o" * 86,
            r"root had no password before in /etc/passwd itself \(\*\)$",
        ),
        (b"$6$old$" + b"o" * 86, b"*", "root's password stood in /etc/passwd itself$"),
    ],
)
def test_notes_on_the_old_password(dockfix, passwd, shadow, note):
    files = dockfix.AccountFiles(
        b"root:%b:0:0::/:/bin/sh\n" % passwd, b"root:%b:1:0:99999:7:::\n" % shadow
    )
    said = judge_root(dockfix, files, False)
    assert dockfix.re.match(note, said) if note else said == ""


@pytest.mark.parametrize("place", ["passwd", "shadow"])
def test_a_lock_counts_in_either_file(dockfix, place):
    lock = b"!$6$old$" + b"o" * 86
    passwd, shadow = (lock, b"*") if place == "passwd" else (b"$6$old$" + b"o" * 86, lock)
    files = dockfix.AccountFiles(
        b"root:%b:0:0::/:/bin/sh\n" % passwd, b"root:%b:1:0:99999:7:::\n" % shadow
    )
    with pytest.raises(dockfix.Refused, match="locked"):
        judge_root(dockfix, files, False)
    assert isinstance(judge_root(dockfix, files, True), str)


@pytest.mark.parametrize("field", [b"*$6$salt$" + b"a" * 86, b"!x$6$half", b"*aaaaaaaaaaaaaaaa"])
def test_a_note_never_shows_what_may_be_a_part_of_a_hash(dockfix, field):
    files = dockfix.AccountFiles(PASSWD, b"root:%b:1:0:99999:7:::\n" % field)
    said = judge_root(dockfix, files, True)
    assert "(...)" in said and field.decode()[1:8] not in said


HASHES = {b"root": b"$6$Salt4Salt4Salt4$" + b"Zz9" * 28 + b"Zz", b"app": b"$5$x$" + b"q" * 43}


@pytest.mark.parametrize(
    "text",
    [
        "root:$6$Salt4Salt4Salt4$Zz9Zz9",
        "line 1: root:$6$",
        "got Salt4Salt",
        "S a l t 4 S a l t",
        "Zz9Z",
        "cm9vdDokNiRTYWx0NFNhbHQ0U2FsdDQk",  # base64 of root:$6$Salt4...
        "JDYkU2FsdDRTYWx0NFNhbHQ0JA==",  # of the hash alone
        "726f6f743a24362453616c74",
        "726F6F743A24362453616C74",
        "an older one: $y$j9T$abc$def",
        "an older one: $1$abc$def",
        "$2b$10$abcdefgh",
        "qqqq",
    ],
)
def test_what_an_image_says_of_a_hash_is_not_repeated(dockfix, text):
    assert dockfix.hide_secrets(text, HASHES) == dockfix.HIDDEN


@pytest.mark.parametrize(
    "text",
    [
        "chpasswd: cannot lock /etc/passwd; try again later.",
        "chpasswd: line 1: user 'root' does not exist",
        "chpasswd: unknown user app",
        "OCI runtime exec failed: exec failed: container_linux.go:380: starting container process",
        "Error response from daemon: Container 0123 is not running",
        "no message",
        "",
    ],
)
def test_what_an_image_says_without_a_hash_is_shown(dockfix, text):
    assert dockfix.hide_secrets(text, HASHES) == text


@pytest.mark.parametrize(
    "text",
    [
        "existing lock file /etc/shadow.lock with an invalid PID 'root:abtwqqgwtNKFI:20787:0:9999'",
        "root:$sha1$40000$jtNX3nZ2$hBNaIXkt4wBI2o5rsi8KejSjNqIq",
        "_J9..rasmBYk8r9AiWNc",
        "root:abJnggxhB.yWI:19000::",
        " ".join(str(byte) for byte in next(iter(HASHES.values()))),
        "".join(chr(byte) + "-x-" for byte in next(iter(HASHES.values())) if byte != 36),
        next(iter(HASHES.values())).decode()[::-1].replace("$", ""),
    ],
)
def test_a_line_that_is_no_plain_speech_is_not_shown(dockfix, text):
    """The old hash, a file of the host, the new hash in a form that can be turned back."""
    assert dockfix.hide_secrets(text, HASHES) == dockfix.HIDDEN
