"""Each way alone, where it must work and where it must not; the safety options; and what each costs
in docker calls."""

import os
import re

import pytest

from kit import static_busybox
from test_chpasswd_zoo import LOCKED, MOUNTS, SET_ROOT

# container: the ways that can change it; all others must leave it alone and say why
WORKS = {
    "debian": {"exec", "proc", "cp"},
    "no-sbin": {"exec", "proc", "cp"},
    "user": {"exec", "proc", "cp"},
    "busybox": {"proc", "cp"},
    "scratch": {"proc", "cp"},
    "cap-drop": {"proc", "cp"},
    "paused": {"proc", "cp"},
    "stopped": {"cp"},
    "created": {"cp"},
    "chrooted": {"exec", "cp"},
    "read-only": set(),
    "tmpfs-etc": set(),
}
PASSWORDS = {way: "for the %s way" % way for way in ("exec", "proc", "cp")}


@pytest.fixture(scope="module")
def ways(lab):
    """{way: (run, shadows after it)}; the shadows before under None."""
    host = lab.host_dir("chrooted", {"sleep": lab.read_bytes(static_busybox())})
    os.mkdir(os.path.join(host, "etc"))
    with open(os.path.join(host, "etc", "shadow"), "wb") as f:
        f.write(b"root:*:18000:0:99999:7:::\n")
    make = {
        "debian": lambda name: lab.run(name),
        "no-sbin": lambda name: lab.run(name, "-e", "PATH=/usr/bin"),
        "user": lambda name: lab.run(name, "-u", "1000"),
        "busybox": lambda name: lab.run(name, image="busybox"),
        "scratch": lambda name: lab.run(name, image="scratch"),
        "cap-drop": lambda name: lab.run(name, "--cap-drop", "ALL"),
        "paused": lambda name: (lab.run(name), lab.docker("pause", name)),
        "stopped": lambda name: (lab.run(name), lab.docker("kill", name)),
        "created": lambda name: lab.create(name),
        "chrooted": lambda name: lab.run(
            name, "-v", host + ":/mnt/host", command=["chroot", "/mnt/host", "/sleep", "1000000"]
        ),
        "read-only": lambda name: lab.run(name, "--read-only"),
        "tmpfs-etc": lambda name: (
            lab.run(name, *MOUNTS),
            lab.inside(name, "cp -a /etc /new; mount -t tmpfs none /etc; cp -a /new/. /etc"),
        ),
    }
    assert set(make) == set(WORKS)
    lab.parallel(lambda name: make[name](name), make)
    lab.watch(host)
    found = {None: (None, lab.parallel(lab.shadow, WORKS))}
    for way in ("exec", "proc", "cp"):
        run = lab.dockfix(
            "chpasswd",
            "--via",
            way,
            "--all",
            "--stopped",
            "--json",
            stdin=b"root:%s\n" % PASSWORDS[way].encode(),
        )
        found[way] = run, lab.parallel(lab.shadow, WORKS)
    return found


@pytest.mark.parametrize("way", ["exec", "proc", "cp"])
@pytest.mark.parametrize("name", sorted(WORKS))
def test_way(lab, ways, way, name):
    before = ways[{"exec": None, "proc": "exec", "cp": "proc"}[way]][1][name]
    run, shadows = ways[way]
    row, after = run.rows[name], shadows[name]
    if way in WORKS[name]:
        assert (row["status"], row["via"]) == ("changed", way), row
        field = lab.field_of(after.data).encode()
        assert lab.crypt(PASSWORDS[way].encode(), field) == field
        assert lab.only_password_changed(before, after) == ""
    else:
        refused = name in ("read-only", "tmpfs-etc")  # no way may; the others cannot this way
        assert row["status"] == ("refused" if refused else "failed") and row["msg"], row
        assert after == before


def test_a_run_by_one_way_reports_all_and_exits_3(ways):
    for way in ("exec", "proc", "cp"):
        assert ways[way][0].rc == 3 and set(ways[way][0].rows) == set(WORKS)


def test_the_mounted_directory_of_the_chrooted_container_is_untouched(lab, ways):
    ((host, before),) = lab.watched.items()
    assert lab.tree(host) == before


def test_docker_calls_do_not_grow_faster_than_the_containers(lab):
    """A fixed handful, and one exec for each container, where root is local."""
    names = ["many%d" % n for n in range(6)]
    lab.parallel(lab.run, names)
    counts = {}
    for number in (2, 6):
        recorder = lab.recorder()
        run = lab.dockfix(
            "chpasswd",
            "--json",
            *names[:number],
            stdin=b"root:%d containers\n" % number,
            recorder=recorder,
        )
        assert run.rc == 0 and {row["via"] for row in run.rows.values()} == {"exec"}, run
        counts[number] = [call.argv for call in recorder.calls()]
        assert all(lab.opens(name, "%d containers" % number) for name in names[:number])
    assert len(counts[6]) <= len(counts[2]) + 4, counts
    assert len(counts[2]) - 2 <= 5, counts[2]
    execs = [argv for argv in counts[6] if argv[0] == "exec"]
    assert sorted(argv[argv.index("chpasswd") - 1] for argv in execs) == sorted(
        lab.id(name) for name in names
    )


def test_locked_account_is_refused_until_unlock(lab):
    lab.parallel(
        lambda name: (lab.run(name), lab.inside(name, SET_ROOT % LOCKED)), ["locked1", "locked2"]
    )
    lab.docker("kill", "locked2")
    before = {name: lab.shadow(name) for name in ("locked1", "locked2")}
    refused = lab.dockfix("chpasswd", "locked1", "locked2", "--json", stdin=b"root:pw\n")
    assert refused.rc == 5 and all(
        "--unlock" in row["msg"] for row in refused.rows.values()
    ), refused
    assert before == {name: lab.shadow(name) for name in ("locked1", "locked2")}
    done = lab.dockfix("chpasswd", "locked1", "locked2", "--unlock", "--json", stdin=b"root:pw\n")
    assert done.rc == 0, done
    for name in before:
        assert (
            lab.opens(name, "pw")
            and lab.only_password_changed(before[name], lab.shadow(name)) == ""
        )


def test_allow_shared_etc_lifts_the_refusal_but_never_for_the_hosts_own(lab):
    shared, link = lab.host_dir("shared"), os.path.join(lab.folder, "host", "link")
    stopped = lab.host_dir("shared-stopped")
    os.symlink("/etc", link)
    lab.run("shared", "-v", shared + ":/etc")
    lab.create("shared-created", "-v", stopped + ":/etc")
    lab.run("own-etc", "-v", "/etc:/etc:ro")
    lab.create("own-etc-by-link", "-v", link + ":/etc:ro")
    lab.create("own-root", "-v", "/:/etc:ro")
    lab.create("own-shadow", "-v", "/etc/shadow:/etc/shadow:ro")
    names = ["shared", "shared-created", "own-etc", "own-etc-by-link", "own-root", "own-shadow"]
    own, before = lab.read_bytes("/etc/shadow"), lab.read_bytes(os.path.join(shared, "shadow"))
    refused = lab.dockfix("chpasswd", *([*names, "--json"]), stdin=b"root:pw\n")
    assert refused.rc == 5 and {row["status"] for row in refused.rows.values()} == {
        "refused"
    }, refused
    assert "--allow-shared-etc" in refused.rows["shared"]["msg"]
    assert lab.read_bytes(os.path.join(shared, "shadow")) == before
    run = lab.dockfix("chpasswd", *([*names, "--allow-shared-etc", "--json"]), stdin=b"root:pw\n")
    assert run.rc == 3, run
    assert {name for name, row in run.rows.items() if row["status"] == "changed"} == {
        "shared",
        "shared-created",
    }, run
    assert {run.rows[name]["status"] for name in names[2:]} == {"refused"}
    for folder in (shared, stopped):
        field = lab.field_of(lab.read_bytes(os.path.join(folder, "shadow"))).encode()
        assert lab.crypt(b"pw", field) == field
    assert lab.read_bytes("/etc/shadow") == own


def test_a_volume_of_the_hosts_etc_is_known_before_it_is_mounted(lab):
    """A dry run, for a mistake here would cost the host its passwords."""
    lab.docker(
        "volume",
        "create",
        "-d",
        "local",
        "-o",
        "type=none",
        "-o",
        "o=bind",
        "-o",
        "device=/etc",
        "ring-hosts-etc",
    )
    lab.create("not-started", "-v", "ring-hosts-etc:/etc:ro")
    run = lab.dockfix("chpasswd", "not-started", "--allow-shared-etc", "-n", "--json")
    assert run.rc == 5 and "never written" in run.rows["not-started"]["msg"], run


def test_lines_for_several_users_all_or_none(lab):
    """One line that cannot be carried out keeps the others of that container from being carried
    out."""
    lab.parallel(lambda name: lab.run(name), ["both", "only-root", "stopped-root"])
    lab.parallel(
        lambda name: lab.inside(name, "sed -i /^games:/d /etc/passwd"),
        ["only-root", "stopped-root"],
    )
    lab.docker("kill", "stopped-root")
    before = {name: lab.shadow(name) for name in ("only-root", "stopped-root")}
    run = lab.dockfix(
        "chpasswd", "both", "only-root", "stopped-root", "--json", stdin=b"root:one\ngames:two\n"
    )
    assert (
        run.rc == 3
        and run.rows["both"]["status"] == "changed"
        and run.rows["both"]["users"] == ["root", "games"]
    ), run
    assert lab.opens("both", "one") and lab.opens("both", "two", "games")
    for name in before:
        assert run.rows[name]["status"] == "refused" and "games" in run.rows[name]["msg"], run
        assert lab.shadow(name) == before[name]


def test_generate_gives_every_container_its_own(lab):
    lab.parallel(lab.run, ["gen1", "gen2"])
    lab.run("gen3", image="busybox")
    lab.run("gen-read-only", "--read-only")
    names = ["gen1", "gen2", "gen3", "gen-read-only"]
    output = os.path.join(lab.new_folder(), "passwords")
    run = lab.dockfix("chpasswd", "--generate", "--output", output, "--json", *names)
    assert run.rc == 3, run
    assert os.stat(output).st_mode & 0o7777 == 0o600
    content = lab.read_bytes(output)
    lines = [line.split("\t") for line in content.decode().splitlines()]
    assert {line[0] for line in lines} >= {"gen1", "gen2", "gen3"} and content.endswith(b"\n")
    assert all(
        line[1] == run.rows[line[0]]["id"]
        and line[2] == "root"
        and re.match("[A-Za-z0-9]{20}$", line[3])
        for line in lines
    )
    assert len({line[3] for line in lines}) == len(lines)
    passwords = {line[0]: line[3] for line in lines}
    assert not any(password.encode() in run.out + run.err for password in passwords.values())
    assert [
        name for name in names if name in passwords and lab.opens(name, passwords[name])
    ] == names[:3]
    again = lab.dockfix("chpasswd", "--generate", "--output", output, "--json", *names)
    assert again.rc == 5 and lab.read_bytes(output) == content
    assert lab.opens("gen1", passwords["gen1"])


@pytest.mark.parametrize(
    "salt", ["$6$saltsalt$", "$6$rounds=7000$saltsalt$", "$5$saltsalt$", "$y$j9T$saltsaltsalt$"]
)
def test_encrypted_values_arrive_as_they_are(lab, salt):
    names = ["hashed", "hashed-busybox", "hashed-created"]
    if "hashed" not in lab.status():
        lab.run("hashed")
        lab.run("hashed-busybox", image="busybox")
        lab.create("hashed-created")
    value = lab.crypt(b"prepared", salt.encode())
    assert value.startswith(salt.encode()) and len(value) > len(salt) + 40
    run = lab.dockfix("chpasswd", "-e", "--json", *names, stdin=b"root:" + value + b"\n")
    assert run.rc == 0, run
    assert [lab.field(name) for name in names] == [value.decode()] * 3
    said = [row["msg"] for row in run.rows.values()] + [f["text"] for f in run.doc["findings"]]
    assert ("musl" in " ".join(said) + run.err.decode()) == salt.startswith("$y$")


def test_password_from_a_file_and_from_standard_input_for_another_user(lab):
    lab.run("other")
    secret = os.path.join(lab.new_folder(), "secret")
    with open(secret, "wb") as f:
        f.write(b"from: a file\n")
    run = lab.dockfix("chpasswd", "other", "--password-file", secret, "--user", "games", "--json")
    assert run.rc == 0 and run.rows["other"]["users"] == ["games"], run
    assert lab.opens("other", "from: a file", "games") and lab.field("other") == "*"
    run = lab.dockfix("chpasswd", "other", "--password-stdin", "--json", stdin=b"from stdin\n")
    assert (
        run.rc == 0
        and lab.opens("other", "from stdin")
        and lab.opens("other", "from: a file", "games")
    ), run
