"""The pure functions: bytes or text in, facts out, and a DockfixError where the facts are not
there."""

import json
import os
import shutil
import subprocess
import time

import pytest

from conftest import containers_of

ID = "0123456789abcdef" * 4
OTHER = "fedcba9876543210" * 4


def not_the_hosts(source):
    return False


def etc_refusal(dockfix, container, allow=False, is_hosts=not_the_hosts):
    """Why the container's /etc must not be written, '' where it may."""
    try:
        dockfix.require_own_etc(container, allow, is_hosts)
    except dockfix.Refused as refusal:
        return refusal.msg
    return ""


# ---- lines of USER:PASSWORD


def lines(dockfix, data):
    return [(account.user, account.secret) for account in dockfix.parse_password_lines(data)]


@pytest.mark.parametrize(
    "data, expected",
    [
        (b"root:x\n", [(b"root", b"x")]),
        (b"root:x", [(b"root", b"x")]),
        (
            b"root:a:b:c\napp: lead and trail \n",
            [(b"root", b"a:b:c"), (b"app", b" lead and trail ")],
        ),
        (b"root:\xff\xfe\xe9\n", [(b"root", b"\xff\xfe\xe9")]),
        (b"root:#no comment\n", [(b"root", b"#no comment")]),
        (b"root:\t\n", [(b"root", b"\t")]),
        (b"root:" + b"x" * 511, [(b"root", b"x" * 511)]),
    ],
)
def test_password_lines(dockfix, data, expected):
    assert lines(dockfix, data) == expected


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\n",
        b"\n\n",
        b"root",
        b"root\n",
        b":x\n",
        b"root:\n",
        b"root:x\r\n",
        b"root:x\0y\n",
        b"ro\0ot:x\n",
        b"ro\rot:x\n",
        b"root:x\napp\n",
        b"root:" + b"x" * 512,
    ],
)
def test_bad_password_lines(dockfix, data):
    with pytest.raises(dockfix.UsageError):
        dockfix.parse_password_lines(data)


def test_a_bad_line_is_named_by_its_number(dockfix):
    with pytest.raises(dockfix.UsageError) as e:
        dockfix.parse_password_lines(b"root:x\napp:y\nbroken\n")
    assert "3" in str(e.value)


def test_a_user_given_twice_has_one_meaning(dockfix):
    """Refused, or the last one wins as in chpasswd(8); never both and never the first."""
    try:
        found = lines(dockfix, b"root:one\nroot:two\n")
    except dockfix.UsageError:
        return
    assert found[-1] == (b"root", b"two")


@pytest.mark.parametrize("secret", [b"x", b"a:b", b"\xff", b" ", b"x" * 511])
def test_secrets_that_will_do(dockfix, secret):
    assert dockfix.require_secret(secret, "password") in (None, secret)


@pytest.mark.parametrize("secret", [b"", b"a\nb", b"a\r", b"\0", b"x" * 512, b"\xef\xbb\xbfx"])
def test_secrets_that_will_not(dockfix, secret):
    with pytest.raises(dockfix.UsageError) as e:
        dockfix.require_secret(secret, "the thing")
    assert "the thing" in str(e.value)
    assert e.value.code == 2


@pytest.mark.parametrize("user", [b"root", b"a-b_c.d$", b"\xe5\xae\xb9", b"-n"])
def test_users_that_will_do(dockfix, user):
    assert dockfix.require_user_name(user, "user") in (None, user)


@pytest.mark.parametrize("user", [b"", b"a:b", b"a\nb", b"a\r", b"a\0", b"\xef\xbb\xbfroot"])
def test_users_that_will_not(dockfix, user):
    with pytest.raises(dockfix.UsageError):
        dockfix.require_user_name(user, "user")


@pytest.mark.parametrize(
    "value, scheme",
    [
        (b"$5$salt$" + b"a" * 43, "5"),
        (b"$5$rounds=1000$salt$" + b"a" * 43, "5"),
        (b"$6$salt$" + b"a" * 86, "6"),
        (b"$6$rounds=999999999$saltsaltsaltsalt$" + b"./" * 43, "6"),
        (b"$2a$05$" + b"a" * 53, "2a"),
        (b"$2b$12$" + b"a" * 53, "2b"),
        (b"$2x$12$" + b"a" * 53, "2x"),
        (b"$2y$12$" + b"a" * 53, "2y"),
        (b"$y$j9T$abcdefgh$" + b"a" * 43, "y"),
    ],
)
def test_hashes(dockfix, value, scheme):
    assert dockfix.require_hash(value) == scheme


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"*",
        b"!",
        b"x",
        b"secret",
        b"$6$",
        b"$6$salt",
        b"$6$salt$",
        b"$6$salt$" + b"a" * 85,
        b"$6$salt$" + b"a" * 87,
        b"$5$salt$" + b"a" * 86,
        b"$6$" + b"s" * 17 + b"$" + b"a" * 86,
        b"$6$sa:lt$" + b"a" * 86,
        b"$6$salt$" + b"a" * 85 + b"!",
        b"$6$salt$" + b"a" * 86 + b"\n",
        b"$6$rounds=x$salt$" + b"a" * 86,
        b"$1$salt$" + b"a" * 22,
        b"!$6$salt$" + b"a" * 86,
        b"$2b$12$" + b"a" * 52,
        b"$2c$12$" + b"a" * 53,
        b"$2b$1$" + b"a" * 53,
        b"$y$j9T$abc$",
        b"$7$salt$" + b"a" * 43,
        b"$gy$j9T$abc$" + b"a" * 43,
        b"\xff" * 20,
        b"$6$s\xc3\xa9$" + b"a" * 86,
        b" $6$salt$" + b"a" * 86,
    ],
)
def test_values_that_are_no_hash(dockfix, value):
    with pytest.raises(dockfix.UsageError):
        dockfix.require_hash(value)


# ---- the field of a password


@pytest.mark.parametrize(
    "field, state",
    [
        (b"", "empty"),
        (b"*", "never"),
        (b"!", "never"),
        (b"!!", "never"),
        (b"!locked", "never"),
        (b"*LK*", "never"),
        (b"!*", "never"),
        (b"$6$salt$" + b"a" * 86, "set"),
        (b"$y$j9T$salt$" + b"a" * 43, "set"),
        (b"$1$salt$" + b"a" * 22, "set"),
        (b"!$6$salt$" + b"a" * 86, "locked"),
        (b"!!$6$salt$" + b"a" * 86, "locked"),
        (b"!!!$2b$10$" + b"a" * 53, "locked"),
        (b"!$1$salt$" + b"a" * 22, "locked"),
        (b"!$y$j9T$salt$" + b"a" * 43, "locked"),
    ],
)
def test_field_state(dockfix, field, state):
    assert dockfix.field_state(field) == state


# ---- docker ps


@pytest.mark.parametrize(
    "line, expected",
    [
        (ID + " web1 Up 2 hours", (ID, "web1", "Up 2 hours")),
        (ID + " web1 Up 2 hours (Paused)", (ID, "web1", "Up 2 hours (Paused)")),
        (
            ID + " web1 Up 5 minutes (health: starting)",
            (ID, "web1", "Up 5 minutes (health: starting)"),
        ),
        (ID + " web1 Exited (137) 4 weeks ago", (ID, "web1", "Exited (137) 4 weeks ago")),
        (ID + " web1 Restarting (1) 4 seconds ago", (ID, "web1", "Restarting (1) 4 seconds ago")),
        (ID + " web1 Created", (ID, "web1", "Created")),
        (ID + " web1 Dead", (ID, "web1", "Dead")),
        (ID + " web1 Removal In Progress", (ID, "web1", "Removal In Progress")),
        (ID + " app/db,db,app/store Up 1 second", (ID, "db", "Up 1 second")),
        (ID + " db,app/db Up Less than a second", (ID, "db", "Up Less than a second")),
        (ID + " a.b-c_D9 Up About an hour", (ID, "a.b-c_D9", "Up About an hour")),
    ],
)
def test_ps(dockfix, line, expected):
    assert [tuple(t[:3]) for t in dockfix.parse_ps(line + "\n")] == [expected]


def test_ps_of_several_and_of_none(dockfix):
    text = "%s one Up 1 second\n%s two Created\n" % (ID, OTHER)
    assert [t.name for t in dockfix.parse_ps(text)] == ["one", "two"]
    assert list(dockfix.parse_ps("")) == []
    assert list(dockfix.parse_ps("\n")) == []


def test_ps_of_a_created_container_of_1_12_has_an_empty_or_plain_status(dockfix):
    assert [t.name for t in dockfix.parse_ps(ID + " one Created\n")] == ["one"]


@pytest.mark.parametrize(
    "text",
    [
        "CONTAINER ID NAMES STATUS\n",
        "<html>\n",
        ID + "\n",
        ID[:12] + " web1 Up 2 hours\n",
        ID.upper() + " web1 Up 2 hours\n",
        "x" * 64 + " web1 Up 2 hours\n",
        ID + "\tweb1\tUp 2 hours\n",
        "Error response from daemon: template: :1:2\n",
        "\0",
        ID + " web1 Up 2 hours\n" + ID + " web2 Up 2 hours\n",
    ],
    ids=[
        "header",
        "html",
        "id only",
        "short id",
        "capitals",
        "no hex",
        "tabs",
        "error",
        "NUL",
        "an id twice",
    ],
)
def test_ps_garbage(dockfix, text):
    with pytest.raises(dockfix.DockfixError):
        dockfix.parse_ps(text)


# ---- docker inspect


def inspected(**changes):
    document = {
        "Id": ID,
        "Name": "/web1",
        "State": {
            "Status": "running",
            "Running": True,
            "Paused": False,
            "Restarting": False,
            "Pid": 4711,
        },
        "Mounts": [],
        "Config": {"User": "", "Labels": None, "Env": None},
        "HostConfig": {"Binds": None, "Tmpfs": None, "ReadonlyRootfs": False, "UsernsMode": ""},
        "GraphDriver": {
            "Name": "overlay2",
            "Data": {"UpperDir": "/var/lib/docker/overlay2/x/diff"},
        },
    }
    for key, value in changes.items():
        if (key in document["HostConfig"] and not isinstance(value, type(document))) or key in (
            "Tmpfs",
            "HostMounts",
        ):
            document["HostConfig"]["Mounts" if key == "HostMounts" else key] = value
        else:
            document[key] = value
    return document


def parse(dockfix, *documents):
    return containers_of(dockfix)(json.dumps(list(documents)).encode())


def test_inspect_facts(dockfix):
    [container] = parse(dockfix, inspected())
    assert container.id == ID and container.name == "web1" and container.pid == 4711


def test_inspect_of_1_12(dockfix):
    document = inspected(
        Mounts=[
            {
                "Source": "/srv/x",
                "Destination": "/data",
                "Mode": "",
                "RW": True,
                "Propagation": "rprivate",
            }
        ]
    )
    document["GraphDriver"] = {
        "Name": "devicemapper",
        "Data": {"DeviceId": "15", "DeviceName": "docker-253:0-1-x", "DeviceSize": "10737418240"},
    }
    del document["HostConfig"]["Tmpfs"]
    document["State"].pop("Paused")
    [container] = parse(dockfix, document)
    assert container.id == ID and not etc_refusal(dockfix, container)


@pytest.mark.parametrize(
    "changes",
    [
        {"Mounts": None},
        {"Config": None},
        {"GraphDriver": None},
        {"GraphDriver": {"Name": "vfs", "Data": None}},
        {"GraphDriver": {}},
    ],
)
def test_inspect_with_nulls(dockfix, changes):
    [container] = parse(dockfix, inspected(**changes))
    assert container.id == ID and not etc_refusal(dockfix, container)


@pytest.mark.parametrize(
    "changes",
    [
        {"Id": None},
        {"Id": 7},
        {"Id": "short"},
        {"Id": [ID]},
        {"State": "running"},
        {"State": []},
        {"State": {"Running": "yes", "Pid": "many"}},
        {"Mounts": "all"},
        {"Mounts": {"a": 1}},
        {"Mounts": [7]},
        {"Mounts": ["/etc"]},
        {"Mounts": [{"Destination": 7}]},
        {"Mounts": [{"Source": "/x"}]},
        {"Mounts": [{"Destination": None}]},
        {"HostConfig": []},
        {"HostConfig": "x"},
        {"HostConfig": {"Binds": "/a:/etc"}},
        {"HostConfig": {"Binds": [7]}},
        {"HostConfig": {"Tmpfs": ["/etc"]}},
        {"HostConfig": {"Mounts": {"Target": "/etc"}}},
        {"HostConfig": {"Mounts": [{"Target": 7}]}},
    ],
    ids=repr,
)
def test_inspect_with_hostile_types_fails_closed(dockfix, changes):
    """Never another exception; and what cannot be understood is not taken for `no mounts`."""
    try:
        containers = parse(dockfix, inspected(**changes))
    except dockfix.DockfixError:
        return
    for container in containers:
        assert etc_refusal(dockfix, container)


@pytest.mark.parametrize("key", ["Mounts", "HostConfig", "State"])
def test_inspect_without_the_facts_about_mounts_fails_closed(dockfix, key):
    document = inspected()
    del document[key]
    with pytest.raises(dockfix.DockfixError):
        parse(dockfix, document)


@pytest.mark.parametrize("name", [None, 7, "", [], "/"], ids=repr)
def test_inspect_with_an_odd_name(dockfix, name):
    try:
        [container] = parse(dockfix, inspected(Name=name))
    except dockfix.DockfixError:
        return
    assert container.id == ID and isinstance(container.name, str)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"{}",
        b"[",
        b"[1]",
        b"[null]",
        b"[[]]",
        b"\xff",
        b'"x"',
        b"[{}]",
        b"Error: No such object: x\n",
        b"[" * 100000,
    ],
)
def test_inspect_garbage(dockfix, data):
    with pytest.raises(dockfix.DockfixError):
        containers_of(dockfix)(data)


def test_inspect_keeps_names_it_cannot_decode(dockfix):
    text = json.dumps([inspected()]).encode().replace(b'"User": ""', b'"User": "caf\xe9"')
    [container] = containers_of(dockfix)(text)
    assert container.id == ID


# ---- mounts over /etc


def refusal(dockfix, allow=False, **changes):
    [container] = parse(dockfix, inspected(**changes))
    return etc_refusal(dockfix, container, allow, dockfix.is_host_account_file)


FORMS = {
    "Mounts": lambda path, source: {
        "Mounts": [{"Type": "bind", "Source": source, "Destination": path, "RW": True}]
    },
    "Mounts, 1.12": lambda path, source: {
        "Mounts": [{"Source": source, "Destination": path, "Mode": "", "RW": True}]
    },
    "Binds": lambda path, source: {"Binds": ["%s:%s" % (source, path)]},
    "Binds with options": lambda path, source: {"Binds": ["%s:%s:rw,z" % (source, path)]},
    "HostConfig.Mounts": lambda path, source: {
        "HostMounts": [{"Type": "bind", "Source": source, "Target": path}]
    },
    "Tmpfs": lambda path, source: {"Tmpfs": {path: "rw"}},
    "HostConfig.Mounts tmpfs": lambda path, source: {
        "HostMounts": [{"Type": "tmpfs", "Target": path}]
    },
    "HostConfig.Mounts volume": lambda path, source: {
        "HostMounts": [{"Type": "volume", "Target": path, "Source": "data"}]
    },
}


@pytest.mark.parametrize(
    "path",
    [
        "/etc",
        "/",
        "/etc/shadow",
        "/etc/passwd",
        "//etc/",
        "/etc/.",
        "/etc//shadow",
        "/x/../etc",
        "/etc/../etc",
        "etc",
        "/./etc",
        "//",
        "/etc/./passwd",
    ],
)
@pytest.mark.parametrize("form", sorted(FORMS))
def test_every_form_of_mount_is_seen(dockfix, form, path):
    assert refusal(dockfix, **FORMS[form](path, "/srv/x"))


@pytest.mark.parametrize(
    "path",
    [
        "/etc/hosts",
        "/etc/hostname",
        "/etc/resolv.conf",
        "/etcetera",
        "/data/etc",
        "/etc/shadow.d",
        "/etc/nginx",
        "/home",
        "/etc/shadow-",
    ],
)
@pytest.mark.parametrize("form", sorted(FORMS))
def test_other_mounts_are_fine(dockfix, form, path):
    assert refusal(dockfix, **FORMS[form](path, "/srv/x")) == ""


@pytest.mark.parametrize("form", sorted(FORMS))
def test_allow_shared(dockfix, form):
    assert refusal(dockfix, allow=True, **FORMS[form]("/etc", "/srv/x")) == ""


@pytest.mark.parametrize(
    "source", ["/", "/etc", "/etc/", "//etc", "/etc/.", "/usr/../etc", "/etc/shadow", "/etc/passwd"]
)
@pytest.mark.parametrize(
    "form", ["Mounts", "Mounts, 1.12", "Binds", "Binds with options", "HostConfig.Mounts"]
)
def test_allow_shared_never_means_the_hosts_own(dockfix, form, source):
    path = source if source in ("/etc/shadow", "/etc/passwd") else "/etc"
    assert refusal(dockfix, allow=True, **FORMS[form](path, source))


def test_a_refusal_is_one_printable_line(dockfix):
    text = refusal(dockfix, **FORMS["Mounts"]("/etc", "/srv/\n\x1b[31mrm -rf /"))
    assert text and "/etc" in dockfix.escape_controls(text)


# ---- mountinfo

OVERLAY_OPTIONS = "rw,lowerdir=/l1:/l2,upperdir=/var/lib/docker/overlay2/x/diff,workdir=/w"
MOUNTINFO = r"""22 1 0:21 / / rw,relatime shared:1 - overlay overlay %s
23 22 0:22 / /proc rw,nosuid - proc proc rw
24 22 8:1 /srv/a\040b /etc/my\011tab\134\012x rw master:1 propagate_from:2 - ext4 /dev/sda1 %s
25 22 0:40 / /no\040options rw - tmpfs tmpfs rw
"""


def test_mountinfo(dockfix):
    root, proc, etc, last = dockfix.parse_mountinfo(
        MOUNTINFO % (OVERLAY_OPTIONS, "rw,errors=remount-ro")
    )
    assert (root.point, root.fstype, root.options) == (
        "/",
        "overlay",
        tuple(OVERLAY_OPTIONS.split(",")),
    )
    assert (proc.point, proc.fstype) == ("/proc", "proc")
    assert (etc.root, etc.point) == ("/srv/a b", "/etc/my\ttab\\\nx")
    assert (etc.fstype, etc.source, etc.dev) == ("ext4", "/dev/sda1", "8:1")
    assert (last.point, last.fstype) == ("/no options", "tmpfs")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "garbage\n",
        "22 1 0:21 / / rw\n",
        "22 1 0:21 / / rw -\n",
        "22 1 0:21 / / rw - overlay\n",
        "\0\n",
    ],
)
def test_mountinfo_garbage_proves_nothing(dockfix, text):
    """An error, or no mounts; either way the root is not shown to be the container's own."""
    try:
        mounts = dockfix.parse_mountinfo(text)
    except dockfix.DockfixError:
        return
    [container] = parse(dockfix, inspected())
    assert list(mounts) == [] and dockfix.root_mount(mounts, container) is None


@pytest.mark.parametrize(
    "line, data, own",
    [
        (
            "22 1 0:21 / / rw - overlay overlay rw,upperdir=/d/x/diff",
            {"UpperDir": "/d/x/diff"},
            True,
        ),
        (
            "22 1 0:21 / / rw - overlay overlay rw,upperdir=/d/x/diff,workdir=/w",
            {"UpperDir": "/d/y/diff"},
            False,
        ),
        ("22 1 0:21 / / rw - overlay overlay rw,upperdir=/d/x/diff", {}, False),
        (
            "22 1 0:21 / / rw - overlay overlay rw,lowerdir=/d/x/diff",
            {"UpperDir": "/d/x/diff"},
            False,
        ),
        (
            "22 1 0:21 / /mnt rw - overlay overlay rw,upperdir=/d/x/diff",
            {"UpperDir": "/d/x/diff"},
            False,
        ),
        (
            "22 1 0:21 /srv / rw - overlay overlay rw,upperdir=/d/x/diff",
            {"UpperDir": "/d/x/diff"},
            False,
        ),
        ("22 1 8:1 / / rw - ext4 /dev/sda1 rw", {"UpperDir": "/d/x/diff"}, False),
        (
            "22 1 253:9 /rootfs / rw - xfs /dev/mapper/docker-8:1-77-abc rw",
            {"DeviceName": "docker-8:1-77-abc"},
            True,
        ),
        (
            "22 1 253:9 /rootfs / rw - xfs /dev/mapper/docker-8:1-77-other rw",
            {"DeviceName": "docker-8:1-77-abc"},
            False,
        ),
        (
            "22 1 253:9 /home / rw - xfs /dev/mapper/docker-8:1-77-abc rw",
            {"DeviceName": "docker-8:1-77-abc"},
            False,
        ),
    ],
)
def test_only_the_containers_own_layer_is_its_own_root(dockfix, line, data, own):
    document = inspected()
    document["GraphDriver"]["Data"] = data
    [container] = parse(dockfix, document)
    assert bool(dockfix.root_mount(dockfix.parse_mountinfo(line + "\n"), container)) is own


def test_mountinfo_of_this_very_process(dockfix):
    with open("/proc/self/mountinfo") as f:
        text = f.read()
    mounts = list(dockfix.parse_mountinfo(text))
    assert len(mounts) == len(text.splitlines()) and any("/proc" in list(m) for m in mounts)


# ---- words for people and for shells


@pytest.mark.parametrize(
    "text, expected",
    [
        ("plain text ~!@#$%^&*()", "plain text ~!@#$%^&*()"),
        ("", ""),
        ("\u5bb9\u5668 caf\xe9", "\u5bb9\u5668 caf\xe9"),
        ("\x1b[31m", "\\x1b[31m"),
        ("\x07\x08\x7f\0", "\\x07\\x08\\x7f\\x00"),
    ],
)
def test_printable(dockfix, text, expected):
    assert dockfix.escape_controls(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "\x80",
        "\x9b31m",
        "\u202e",
        "\u2066",
        "\u200b",
        "\ufeff",
        "\udcff",
        "\ud800",
        "\u2028",
        "\u2029",
        "\n",
        "\r",
        "\U000e0041",
        "\x85",
    ],
    ids=ascii,
)
def test_printable_escapes_what_a_terminal_would_obey(dockfix, text):
    shown = dockfix.escape_controls("a" + text + "z")
    assert text not in shown and shown.startswith("a") and shown.endswith("z") and "\\" in shown
    shown.encode("utf-8")


def random_word(rng):
    kinds = [
        lambda: chr(rng.randrange(1, 128)),
        lambda: rng.choice("\n\t\r\x1b\x7f\\'\"$`!*?[]{}~#&|;<>() =-%"),
        lambda: rng.choice("\u5bb9\u5668\u5bc6\u7801\xe9\u202e"),
        lambda: chr(rng.randrange(0xDC80, 0xDD00)),
        lambda: rng.choice("abz019_"),
    ]
    return "".join(rng.choice(kinds)() for _ in range(rng.randrange(0, 14)))


def shells():
    found = [
        (name, [path])
        for name, path in ((n, shutil.which(n)) for n in ("sh", "dash", "bash"))
        if path
    ]
    return found + [("busybox", [path, "sh"]) for path in [shutil.which("busybox")] if path]


@pytest.mark.parametrize("shell", [s[1] for s in shells()], ids=[s[0] for s in shells()])
def test_sh_quote_through_a_real_shell(dockfix, rng, shell):
    words = [random_word(rng) for _ in range(300)] + [
        "",
        "-n",
        "--",
        "end\n",
        "\n\n",
        "a\\",
        "'",
        "%s",
        "\\n",
        "\\0101",
        "~",
        "a=b",
        "\udcff",
        "\x01",
    ]
    script = (
        "show() { for word do printf '%s\\0' \"$word\"; done; }\nshow "
        + " \\\n".join(dockfix.quote_word(w) for w in words)
        + "\n"
    )
    data = script.encode("utf-8", "surrogateescape")
    assert not set(data) & (set(range(32)) - {10} | {127})
    assert data.count(b"\n") == len(words) + 1
    p = subprocess.Popen(
        shell,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={"LC_ALL": "C", "PATH": os.defpath},
    )
    out, err = p.communicate(data)
    assert (p.returncode, err) == (0, b"")
    assert out.split(b"\0")[:-1] == [w.encode("utf-8", "surrogateescape") for w in words]


def test_plain_words_are_not_quoted(dockfix):
    assert [dockfix.quote_word(w) for w in ("abc", "/a/b.c", "a-b_c", "x@y:z,1")] == [
        "abc",
        "/a/b.c",
        "a-b_c",
        "x@y:z,1",
    ]


# ---- sizes


@pytest.mark.parametrize(
    "text, size",
    [
        ("0", 0),
        ("1", 1),
        ("512", 512),
        ("1k", 1024),
        ("1K", 1024),
        ("1M", 1 << 20),
        ("3G", 3 << 30),
        ("2T", 2 << 40),
        ("1.5M", 3 << 19),
        ("1.5m", 3 << 19),
        ("20MiB", 20 << 20),
        ("0.001T", 1099511628),
    ],
)
def test_parse_size(dockfix, text, size):
    assert dockfix.parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "x",
        "-1",
        "1Q",
        "M",
        "1 2",
        "nan",
        "inf",
        "1e3x",
        "0x10",
        "\u0661",
        "--",
        "1MM",
        "1.2.3M",
        "1.5",
        "1 M",
        "5GB",
        "5B",
        "\n1",
    ],
)
def test_parse_size_garbage(dockfix, text):
    with pytest.raises(dockfix.DockfixError):
        dockfix.parse_size(text)


@pytest.mark.parametrize(
    "text, size",
    [
        ("8G", 8 << 30),
        ("500GB", 500 << 30),
        ("10GiB", 10 << 30),
        ("64k", 1 << 16),
        ("7", 7),
        ("1.5G", None),
        ("10 GB", None),
        ("7B", None),
        ("", None),
    ],
)
def test_sizes_in_dockers_options(dockfix, text, size):
    assert dockfix.parse_option_size(text) == size


@pytest.mark.parametrize(
    "text, size",
    [
        ("204800.0 Mb", 204800 << 20),
        ("0.5 Mb", 1 << 19),
        ("64 Kb", 1 << 16),
        ("64.0 Kb", None),
        ("5 Mb", None),
        ("64 kB", None),
    ],
)
def test_sizes_of_a_pool_under_engines_up_to_1_2(dockfix, text, size):
    assert dockfix.parse_old_pool_size(text) == size


# ---- speed, as far as it is a promise not to hang


def parse_much(dockfix, count):
    """The processor's seconds for so much of it."""
    many = "".join("%064x name%d Up 2 hours\n" % (i, i) for i in range(count))
    big = b"".join(b"user%d:*:1::::::\n" % i for i in range(2 * count))
    last = b"user%d" % (2 * count - 1)
    began = time.process_time()
    assert len(dockfix.parse_ps(many)) == count
    names = b"".join(b"user%d:x:1:1::/:/bin/sh\n" % i for i in range(2 * count))
    files = dockfix.edit_accounts(dockfix.AccountFiles(names, big), {last: b"h"}, 1)
    assert files == (names, big[: -len(b"*:1::::::\n")] + b"h:1::::::\n")
    assert dockfix.escape_controls("\x1b" * 10 * count) == "\\x1b" * 10 * count
    return time.process_time() - began


def test_parsers_are_linear(dockfix):
    """Eight times as much takes about eight times as long; were one quadratic, it were 64 times."""
    short, long = (min(parse_much(dockfix, count) for _ in range(3)) for count in (2000, 16000))
    assert long < 30 * short


@pytest.mark.parametrize(
    "words, kept, host, context",
    [
        ("docker", "docker", "", ""),
        ("docker -H tcp://h:1", "docker", "tcp://h:1", ""),
        ("docker -Htcp://h:1 --tls", "docker --tls", "tcp://h:1", ""),
        ("docker --host=unix:///x", "docker", "unix:///x", ""),
        ("docker --host unix:///x", "docker", "unix:///x", ""),
        ("docker -c far", "docker", "", "far"),
        ("docker --context=far -D", "docker -D", "", "far"),
        ("docker --config /root/.docker", "docker --config /root/.docker", "", ""),
        ("sudo -H -u root docker", "sudo -H -u root docker", "", ""),
        ("sudo -H docker -H unix:///x", "sudo -H docker", "unix:///x", ""),
        ("ssh -c aes docker docker -H unix:///x", "ssh -c aes docker docker", "unix:///x", ""),
        ("/opt/wrap -H unix:///x", "/opt/wrap", "unix:///x", ""),
        ("docker-1.12 -H", "docker-1.12", "", ""),
    ],
)
def test_what_names_the_engine_in_a_docker_command(dockfix, words, kept, host, context):
    found = dockfix.split_client(words.split())
    assert (" ".join(found.words), found.host, found.context) == (kept, host, context)


@pytest.mark.parametrize(
    "text, number",
    [("MainPID=123\n", 123), ("123", 123), ("77\n", 77), ("MainPID=0\n", 0), ("", 0), ("x\n", 0)],
)
def test_the_number_of_a_main_process(dockfix, text, number):
    assert dockfix.last_number(text) == number
