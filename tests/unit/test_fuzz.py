"""Seeded damage to what every parser reads: the right facts or a DockfixError, and nothing else."""

import functools
import json

import pytest

from conftest import containers_of

ROUNDS = 2500
ID = "0123456789abcdef" * 4
IDS = ["%064x" % (i * 0x1234567 + 11) for i in range(4)]
SHADOW = (
    b"root:$6$salt$"
    + b"a" * 86
    + b":19000:0:99999:7:::\nbin:*:1::::::\napp:!!:19001:0:99999:7:::\n"
)
PS = "".join("%s name%d,app/name%d Up %d hours\n" % (one, i, i, i) for i, one in enumerate(IDS))
INSPECT = json.dumps(
    [
        {
            "Id": one,
            "Name": "/name%d" % i,
            "State": {"Running": True, "Pid": 10 + i, "Status": "running"},
            "Mounts": [{"Type": "bind", "Source": "/srv", "Destination": "/etc", "RW": True}],
            "HostConfig": {
                "Binds": ["/srv:/etc"],
                "Tmpfs": {"/run": ""},
                "Mounts": [{"Type": "tmpfs", "Target": "/tmp"}],
                "ReadonlyRootfs": False,
                "UsernsMode": "",
            },
            "GraphDriver": {"Name": "overlay2", "Data": {"UpperDir": "/u"}},
            "Config": {"User": "", "Labels": {}},
        }
        for i, one in enumerate(IDS)
    ]
)
MOUNTINFO = (
    "22 1 0:21 / / rw,relatime shared:1 - overlay overlay rw,upperdir=/u\n23 22 0:22 / /proc"
    " rw,nosuid - proc proc rw\n24 22 8:1 /a\\040b /etc rw master:1 - ext4 /dev/sda1 rw\n"
)
SPICE = [
    b"\0",
    b"\r",
    b"\r\n",
    b"\n",
    b"\t",
    b" ",
    b":",
    b"\xff",
    "\u5bb9\u5668".encode("utf-8"),
    b"\x1b[0m",
    b"9" * 40,
    b"-1",
    b"null",
    b"[]",
    b"{}",
    b'""',
    b"\\",
    b",",
    b"\\999",
    b"\\04",
    b"\\ud800",
    b"1e999",
    b"$",
    b"!",
]


def damage(rng, data):
    """Truncate, duplicate, drop, reorder, flip, insert."""
    data = bytearray(data)
    for _ in range(rng.randrange(1, 4)):
        at, end = sorted((rng.randrange(len(data) + 1), rng.randrange(len(data) + 1)))
        kind = rng.randrange(6)
        if kind == 0:
            del data[at:]
        elif kind == 1:
            data[at:at] = data[at:end]
        elif kind == 2:
            del data[at : min(end, at + 1 + rng.randrange(20))]
        elif kind == 3:
            rows = bytes(data).split(b"\n")
            rng.shuffle(rows)
            data = bytearray(b"\n".join(rows))
        elif kind == 4 and data:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        else:
            data[at:at] = rng.choice(SPICE)
    return bytes(data)


def mutants(rng, data):
    for _ in range(ROUNDS):
        yield damage(rng, data)


def text(data):
    return data.decode("utf-8", "surrogateescape")


def judged(dockfix, parser, value):
    """The answer of a parser, or None for a DockfixError; anything else is the test's failure, with
    the input shown."""
    try:
        return parser(value)
    except dockfix.DockfixError:
        return None
    except Exception as e:
        pytest.fail(
            "%s raised %s: %s on %r"
            % (getattr(parser, "__name__", parser), type(e).__name__, e, value)
        )


def test_ps(dockfix, rng):
    understood = 0
    for data in mutants(rng, PS.encode()):
        targets = judged(dockfix, dockfix.parse_ps, text(data)) or []
        understood += bool(targets)
        rows = [row for row in text(data).split("\n") if row.strip()]
        for target in targets:
            assert len(target.id) == 64 and set(target.id) <= set("0123456789abcdef")
            assert target.name and not set(target.name) & set("/, \n")
            assert any(
                row.startswith(target.id + " ")
                and target.name in row
                and row.rstrip().endswith(target.status.strip())
                for row in rows
            ), (target, data)
    assert 20 < understood < ROUNDS - 20


def strings(value):
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, tuple)):
        for one in value:
            for inner in strings(one):
                yield inner
    elif isinstance(value, dict):
        for key, one in value.items():
            for inner in [key, *list(strings(one))]:
                yield inner


def etc_refusal(dockfix, container):
    """Why the container's /etc must not be written, '' where it may."""
    try:
        dockfix.require_own_etc(container, False, lambda source: False)
    except dockfix.Refused as refusal:
        return refusal.msg
    return ""


def test_inspect(dockfix, rng):
    """A container whose /etc mount is still written in the text is never said to have none."""
    understood = 0
    for data in mutants(rng, INSPECT.encode()):
        containers = judged(dockfix, containers_of(dockfix), data) or []
        understood += bool(containers)
        for container in containers:
            assert len(container.id) == 64 and container.id.encode() in data
            why = judged(dockfix, lambda c: etc_refusal(dockfix, c), container)
            try:
                [document] = [d for d in json.loads(text(data)) if d.get("Id") == container.id]
            except ValueError:  # damaged, or one container twice
                continue
            mounts = document.get("Mounts")
            if isinstance(mounts, list) and any(
                isinstance(m, dict) and m.get("Destination") == "/etc" for m in mounts
            ):
                assert why or why is None, (container, data)
    assert 20 < understood < ROUNDS - 20


def hostile(rng, value, depth=0):
    """The same document with some values of another type."""
    if rng.random() < 0.04:
        return rng.choice(
            [
                None,
                True,
                0,
                -1,
                1e300,
                "",
                "x",
                [],
                {},
                [[]],
                {"a": None},
                "\u5bb9",
                "\ud800",
                "9" * 50,
                ID,
            ]
        )
    if isinstance(value, dict):
        return {k: hostile(rng, v, depth + 1) for k, v in value.items() if rng.random() > 0.03}
    if isinstance(value, list):
        return [hostile(rng, v, depth + 1) for v in value if rng.random() > 0.03]
    return value


def test_inspect_of_hostile_types(dockfix, rng):
    for _ in range(ROUNDS):
        document = hostile(rng, json.loads(INSPECT))
        for container in (
            judged(dockfix, containers_of(dockfix), json.dumps(document).encode()) or []
        ):
            assert len(container.id) == 64
            judged(dockfix, lambda c: etc_refusal(dockfix, c), container)


def test_mountinfo(dockfix, rng):
    understood = 0
    for data in mutants(rng, MOUNTINFO.encode()):
        mounts = judged(dockfix, dockfix.parse_mountinfo, text(data))
        if mounts:
            understood += 1
            rows = [row for row in text(data).split("\n") if " - " in row]
            assert len(mounts) <= len(rows) and all(
                any(m.fstype in row and m.dev in row for row in rows) for m in mounts
            )
    assert 20 < understood < ROUNDS - 20


def test_password_lines(dockfix, rng):
    understood = 0
    for data in mutants(rng, b"root:secret\napp:other one\nlast:x:y"):
        accounts = judged(dockfix, dockfix.parse_password_lines, data)
        if accounts:
            understood += 1
            assert not set(data) & {0, 13}
            rows = [row for row in data.split(b"\n") if row]
            assert {a.user + b":" + a.secret for a in accounts} <= set(rows)
            for account in accounts:
                assert (
                    account.user
                    and account.secret
                    and b":" not in account.user
                    and b"\n" not in account.secret
                )
    assert 20 < understood < ROUNDS - 20


def test_accounts(dockfix, rng):
    """Whatever is damaged: refused, or every reader finds the hash afterwards and no other line has
    changed."""
    changed = refused = 0
    for data in mutants(rng, SHADOW):
        for user in (b"root", b"app"):
            files = dockfix.AccountFiles(b"root:x:0:0::/:/bin/sh\napp:!:1:1::/:/bin/sh\n", data)
            edit = functools.partial(dockfix.edit_accounts, hashes={user: b"H"}, day=3)
            new = judged(dockfix, edit, files)
            if new is None:
                refused += 1
                continue
            changed += 1
            assert dockfix.passwords_not_set(new, {user: b"H"}) == []
            read = dockfix.find_user_lines("shadow", new.shadow, user)
            assert {line and line.field for line in read} in ({b"H"}, {None})
            a, b = data.split(b"\n"), new.shadow.split(b"\n")
            if a[-1] and not b[-1]:
                a.append(b"")  # the line end that was missing
            other = [(x, y) for x, y in zip(a, b) if x.split(b":")[0].strip() != user]
            assert len(a) == len(b) and all(x == y for x, y in other)
    assert changed > 100 and refused > 100


def test_hash_checks(dockfix, rng):
    ok = 0
    for data in mutants(rng, b"$6$rounds=5000$saltsalt$" + b"a" * 86):
        scheme = judged(dockfix, dockfix.require_hash, data)
        if scheme:
            ok += 1
            assert not set(data) & set(b"\0\r\n: !*") and data.startswith(
                b"$" + scheme.encode() + b"$"
            )
    assert ok < ROUNDS


def test_sizes(dockfix, rng):
    for data in mutants(rng, b"1024M"):
        size = judged(dockfix, dockfix.parse_size, text(data))
        assert size is None or (isinstance(size, int) and size >= 0)


def test_printable_and_sh_quote_take_any_text(dockfix, rng):
    for data in mutants(rng, "plain text \x1b[0m".encode()):
        shown = dockfix.escape_controls(text(data))
        assert shown == "".join(c for c in shown if c.isprintable() or c == " ")
        if b"\0" not in data:
            assert not set(dockfix.quote_word(text(data))) & set(map(chr, [*list(range(32)), 127]))
