"""Prompts on a terminal of their own (pty)."""

import os
import signal

import pytest


def test_the_password_is_asked_for_twice_and_not_echoed(web, terminal, dockfix):
    session = terminal("chpasswd", "web1", "web2")
    assert b"assword" in session.answer(b"tr0ub4dor\n")
    session.answer(b"tr0ub4dor\n")
    assert session.end() == 0
    assert b"tr0ub4dor" not in session.shown and b"changed" in session.shown
    for name in ("web1", "web2"):
        field = web.field(name)
        assert field == dockfix.sha512_crypt(b"tr0ub4dor", field.split(b"$")[2])


def test_bytes_typed_are_kept(web, terminal, dockfix):
    session = terminal("chpasswd", "web1")
    for _ in range(2):
        session.answer("p\u00e4ss w\u5bb9rd\n".encode("utf-8"))
    assert session.end() == 0
    field = web.field("web1")
    assert field == dockfix.sha512_crypt(
        "p\u00e4ss w\u5bb9rd".encode("utf-8"), field.split(b"$")[2]
    )


def test_passwords_that_differ_are_exit_2(web, terminal):
    session = terminal("chpasswd", "web1")
    session.answer(b"one\n")
    session.answer(b"other\n")
    assert session.end() == 2
    assert b"the two passwords differ; nothing was changed" in session.shown
    assert not web.calls("exec") and web.field("web1") == b"*"


@pytest.mark.parametrize("typed", [b"\n", b"\x04"], ids=["nothing", "end of file"])
def test_nothing_typed_is_exit_2(web, terminal, typed):
    session = terminal("chpasswd", "web1")
    for _ in range(2):
        if not session.ended():
            session.answer(typed)
    assert session.end() == 2
    assert not web.calls("exec") and web.field("web1") == b"*"


def test_ctrl_c_at_the_prompt_dies_of_sigint_and_the_echo_is_back(web, terminal):
    session = terminal("chpasswd", "web1")
    session.answer(b"half\x03")
    assert session.end() == -signal.SIGINT
    assert session.echo() is True
    assert b"Traceback" not in session.shown and b"half" not in session.shown
    assert web.field("web1") == b"*"


def test_sigterm_at_the_prompt_gives_the_echo_back(web, terminal):
    session = terminal("chpasswd", "web1")
    session.expect(b"assword")
    assert session.echo() is False
    os.kill(session.pid, signal.SIGTERM)
    assert session.end() == -signal.SIGTERM
    assert session.echo() is True


def test_the_prompt_is_on_the_terminal_and_not_in_the_product(web, terminal):
    out = os.open(web.at("product"), os.O_RDWR | os.O_CREAT, 0o600)
    session = terminal("--json", "chpasswd", "web1", stdout=out)
    for _ in range(2):
        session.answer(b"pw\n")
    assert session.end() == 0
    os.close(out)
    assert web.read("product").startswith(b"{") and b"for root" not in web.read("product")


def test_names_are_checked_before_anyone_has_to_type(web, terminal):
    session = terminal("chpasswd", "ghost")
    assert session.end() == 2 and b"ghost" in session.shown


def test_generate_does_not_ask(web, terminal):
    session = terminal("chpasswd", "web1", "--generate", "--output", web.at("out"))
    assert session.end() == 0 and b"assword:" not in session.shown and web.field("web1") != b"*"


def test_lines_typed_on_a_terminal_are_not_waited_for(web, terminal):
    """Standard input is a terminal: the prompt, not chpasswd(8)'s lines."""
    session = terminal("chpasswd", "--user", "app", "web1")
    assert b"app" in session.answer(b"pw\n")
    session.answer(b"pw\n")
    assert (
        session.end() == 0
        and web.field("web1", b"app").startswith(b"$6$")
        and web.field("web1") == b"*"
    )


def test_control_characters_do_not_reach_the_terminal(box, terminal):
    box.container("web1", answer={"out": b"\x1b]2;title\x07\x1b[2J\xc2\x9b31m\n"})
    session = terminal("exec", "web1", "--", "x")
    assert session.end() == 0
    assert not set(session.shown) & (set(range(32)) - {9, 10, 13, 27} | {127})
    assert (
        b"web1 | " in session.shown
        and b"\x1b]2;" not in session.shown
        and b"\x1b[2J" not in session.shown
        and b"\xc2\x9b" not in session.shown
    )
