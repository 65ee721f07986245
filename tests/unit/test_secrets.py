"""A sentinel password appears nowhere but on the standard input of nobody: only its hash leaves
dockfix."""

import base64
import os

import pytest

SENTINEL = b"Xq7-s3nt1nel-Zk9"


def assert_unseen(box, result, *more):
    places = {"stdout": result.out, "stderr": result.err, "calls": box.read("calls")}
    for place, data in list(places.items()) + [("extra", m) for m in more]:
        assert SENTINEL not in data, "%s holds the password: %r" % (place, data[:2000])
    for call in box.calls():
        for word in call.argv + list(call.env) + list(call.env.values()) + [call.stdin]:
            assert SENTINEL not in word, call


def source(box, how):
    """(options, stdin) of each way to hand in the password."""
    if how == "file":
        return ["--password-file", box.file("secret", SENTINEL + b"\n")], b""
    if how == "stdin":
        return ["--password-stdin"], SENTINEL
    return [], b"root:" + SENTINEL + b"\n"


@pytest.mark.parametrize(
    "flags",
    [[], ["--json"], ["-v"], ["-v", "--json"], ["-n"], ["-n", "--json"], ["-q"]],
    ids=" ".join,
)
@pytest.mark.parametrize("how", ["lines", "file", "stdin"])
def test_every_source_and_every_output(web, how, flags):
    options, stdin = source(web, how)
    run = web.run if "-v" in flags else web.quick
    result = run(*([*flags, "chpasswd", "web1", *options]), stdin=stdin)
    assert result.rc == 0 and (web.field("web1") == b"*") == ("-n" in flags)
    assert_unseen(web, result)


@pytest.mark.parametrize("via", ["exec", "cp", "auto"])
@pytest.mark.parametrize("kind", ["shadow-utils", "missing", "liar", "refuses", "rehash"])
def test_every_way_and_every_failure(box, via, kind):
    box.container("c", chpasswd=kind, truncates=1)
    result = box.quick(
        "--json", "-v", "chpasswd", "--via", via, "c", stdin=b"root:" + SENTINEL + b"\n"
    )
    assert set(result.statuses()) == {"c"} and len(box.calls()) > 2
    assert_unseen(box, result)


def test_nor_on_the_disk(web):
    assert web.run("chpasswd", "--all", stdin=b"root:" + SENTINEL + b"\n").rc == 0 and web.field(
        "db"
    ).startswith(b"$6$")
    os.unlink(web.at("stdin"))
    holding = [path for path, entry in web.picture().items() if SENTINEL in entry[-1]]
    assert holding == []


BAD = {
    "CR": b"root:" + SENTINEL + b"\r\n",
    "NUL": b"root:" + SENTINEL + b"\0\n",
    "no colon": SENTINEL + b"\n",
    "long": b"root:" + SENTINEL * 40,
    "user": SENTINEL + b"\n:x\n",
    "absent user": b"ghost:" + SENTINEL + b"\n",
}


@pytest.mark.parametrize("name", sorted(BAD))
def test_messages_about_bad_lines_do_not_show_them(web, name):
    for flags in ([], ["--json"]):
        result = web.quick(*([*flags, "chpasswd", "web1"]), stdin=BAD[name])
        assert result.rc == (5 if name == "absent user" else 2)
        assert_unseen(web, result)


def test_a_password_where_a_hash_belongs_is_not_shown(web):
    result = web.quick("--json", "chpasswd", "-e", "web1", stdin=b"root:" + SENTINEL + b"\n")
    assert result.rc == 2
    assert_unseen(web, result)


def test_docker_that_repeats_its_input_gives_nothing_away(web):
    """The tool inside sees a hash only, so even one that prints what it reads cannot print the
    password."""
    web.rule("exec", out=b"got it\n", err=b"chpasswd: (user root) pam_chauthtok() failed\n", rc=1)
    result = web.quick(
        "--json", "chpasswd", "--via", "exec", "web1", stdin=b"root:" + SENTINEL + b"\n"
    )
    assert result.rc == 1
    assert_unseen(web, result)


PARROTS = [
    "parrot",
    "parrot-pieces",
    "parrot-spaced",
    "parrot-base64",
    "parrot-hash-base64",
    "parrot-hex",
]


def pieces(text, size):
    return {text[at : at + size] for at in range(len(text) - size + 1)}


@pytest.mark.parametrize(
    "flags", [["--json"], ["-v"], ["-v", "--json"]], ids=lambda flags: "".join(flags)
)
@pytest.mark.parametrize("encrypted", [False, True], ids=["password", "hash given"])
@pytest.mark.parametrize("kind", PARROTS)
def test_an_image_whose_chpasswd_repeats_what_it_reads(box, kind, encrypted, flags):
    """The hash opens the account to whoever guesses long enough; what the program says of it is in
    no message, no JSON, no log."""
    value = box.module.sha512_crypt(SENTINEL, b"Vq8Xw3Kz5Tn7Bd2P")
    box.container("c", chpasswd=kind)
    options = ["-e"] if encrypted else []
    result = box.quick(
        *([*flags, "chpasswd", "--via", "exec", "c", *options]),
        stdin=b"root:" + (value if encrypted else SENTINEL) + b"\n",
    )
    assert result.rc == 1
    assert_unseen(box, result)
    [sent] = {call.stdin for call in box.calls("exec")}
    sent_hash = sent.rstrip(b"\n").split(b":")[1]
    shown = result.out + result.err
    full_id = box.id("c").encode()
    shown = b"".join(shown.replace(full_id, b"").split())
    for secret in (
        sent_hash,
        base64.b64encode(sent),
        base64.b64encode(sent_hash),
        sent.hex().encode(),
    ):
        assert not pieces(secret, 8) & pieces(shown, 8), (kind, shown)
    if "--json" in flags:
        assert "not shown" in result.rows()["c"]["msg"]


COLON = "root:" + SENTINEL.decode()


@pytest.mark.parametrize(
    "flags", [[], ["--json"], ["-v"], ["-n"], ["-n", "--json"], ["-q"]], ids=" ".join
)
@pytest.mark.parametrize(
    "words",
    [
        ["chpasswd", COLON],
        ["chpasswd", "web1", COLON],
        ["chpasswd", "--", "web1", COLON],
        ["chpasswd", "--all", COLON],
        ["chpasswd", "web1", COLON, "--password-stdin"],
        ["chpasswd", "web1", COLON, "--generate"],
        ["chpasswd", "web1", COLON, "--via", "cp", "--via=nonsense"],
        ["chpasswd", "web1", COLON, "--jobs", "many"],
        ["chpasswd", "web1", COLON, "--no-such-option"],
        ["chpasswd", "web1", "--password=" + COLON],
        ["chpasswd", "web1", "--passwd=" + SENTINEL.decode()],
        ["chpasswd", "web1", "--user", COLON],
        ["chpasswd", "web1", "--exclude", COLON],
        ["chpasswd", "--from", "FILE"],
        ["chpasswd", "--all", "--from", "FILE"],
        ["chpaswd", "web1", COLON],
        ["passwd", "web1", COLON],
        [COLON, "chpasswd", "web1"],
        [COLON],
        ["exec", COLON, "--", "id"],
        ["clock", COLON],
        ["timezone", "web1", COLON],
    ],
    ids=lambda words: " ".join(words).replace(COLON, "USER:PASSWORD"),
)
def test_a_password_given_as_a_name_is_not_repeated(web, words, flags):
    """As people type it who know `docker exec`; the shell's history has it, nothing of ours
    does."""
    names = web.file("names", b"web1\n" + COLON.encode() + b"\n")
    words = [names if word == "FILE" else word for word in words]
    result = web.quick(*(flags + words), stdin=b"")
    assert result.rc == 2, result
    assert_unseen(web, result)
    assert not [call for call in web.calls() if call.command == "exec"]


FAULTS = [
    "sha512_crypt",
    "parse_ps",
    "parse_objects",
    "edit_accounts",
    "find_user_lines",
    "set_fields",
    "accounts_tar",
    "field_state",
    "require_own_etc",
    "escape_controls",
]


@pytest.mark.parametrize(
    "error",
    [RuntimeError, MemoryError, OSError, KeyError, UnicodeDecodeError, RecursionError],
    ids=lambda e: e.__name__,
)
@pytest.mark.parametrize("name", FAULTS)
def test_tracebacks_do_not_show_it(web, name, error):
    """An internal function that breaks: whatever is printed, the password is not in it, and the
    exit code is not 0."""

    def prelude(dockfix):
        def broken(*args, **kw):
            if error is UnicodeDecodeError:
                raise UnicodeDecodeError("utf-8", b"root:" + SENTINEL, 0, 1, "injected")
            raise error("injected fault")

        setattr(dockfix, name, broken)

    assert hasattr(web.module, name)
    result = web.quick(
        "-v", "chpasswd", "--via", "cp", "web1", stdin=b"root:" + SENTINEL + b"\n", prelude=prelude
    )
    assert_unseen(web, result)
    if name not in ("escape_controls",):
        assert result.rc != 0, result


def test_json_stays_json_when_an_internal_function_breaks(web):
    def prelude(dockfix):
        def broken(*args, **kw):
            raise RuntimeError("injected fault")

        dockfix.parse_ps = broken

    result = web.quick(
        "--json", "chpasswd", "web1", stdin=b"root:" + SENTINEL + b"\n", prelude=prelude
    )
    assert result.rc not in (0, 2) and result.json["errors"]
    assert_unseen(web, result)


def test_a_child_cannot_read_it_from_a_descriptor(web):
    """The file with the password is closed, or closed on exec, in every child."""
    spy = web.program("spy", "ls -l /proc/$$/fd >> '%s' 2>&1" % web.at("fds"))
    with open(web.at("bin", "docker")) as f:
        inner = web.program("docker-inner", f.read().split("\n", 1)[1])
    web.program(
        "docker",
        "'%s'\nls -l /proc/self/fd >> '%s' 2>&1\nexec '%s' \"$@\"" % (spy, web.at("fds"), inner),
    )
    path = web.file("secret", SENTINEL)
    assert web.run("chpasswd", "--password-file", path, "web1").rc == 0
    assert b"/proc" in web.read("fds") and path.encode() not in web.read("fds")
    os.unlink(web.at("fds"))
    stdin_name = web.at("stdin").encode()
    assert web.run("chpasswd", "web1", stdin=b"root:" + SENTINEL + b"\n").rc == 0
    assert stdin_name not in web.read("fds"), web.read("fds")
