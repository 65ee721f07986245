"""A sentinel password appears nowhere but on the standard input of nobody: only its hash leaves dockfix."""

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
    result = run(*(flags + ["chpasswd", "web1"] + options), stdin=stdin)
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
        result = web.quick(*(flags + ["chpasswd", "web1"]), stdin=BAD[name])
        assert result.rc in (2, 5)
        assert_unseen(web, result)


def test_a_password_where_a_hash_belongs_is_not_shown(web):
    result = web.quick("--json", "chpasswd", "-e", "web1", stdin=b"root:" + SENTINEL + b"\n")
    assert result.rc == 2
    assert_unseen(web, result)


def test_docker_that_repeats_its_input_gives_nothing_away(web):
    """The tool inside sees a hash only, so even one that prints what it reads cannot print the password."""
    web.rule("exec", out=b"got it\n", err=b"chpasswd: (user root) pam_chauthtok() failed\n", rc=1)
    result = web.quick(
        "--json", "chpasswd", "--via", "exec", "web1", stdin=b"root:" + SENTINEL + b"\n"
    )
    assert result.rc == 1
    assert_unseen(web, result)


FAULTS = [
    "sha512_crypt",
    "parse_ps",
    "parse_objects",
    "edit_accounts",
    "find_user_lines",
    "set_fields",
    "accounts_tar",
    "field_state",
    "etc_refusal",
    "printable",
]


@pytest.mark.parametrize(
    "error",
    [RuntimeError, MemoryError, OSError, KeyError, UnicodeDecodeError, RecursionError],
    ids=lambda e: e.__name__,
)
@pytest.mark.parametrize("name", FAULTS)
def test_tracebacks_do_not_show_it(web, name, error):
    """An internal function that breaks: whatever is printed, the password is not in it, and the exit code is not 0."""

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
    if name not in ("printable",):
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
    inner = web.program("docker-inner", open(web.at("bin", "docker")).read().split("\n", 1)[1])
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
