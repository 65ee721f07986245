"""pool grow and pool recreate against a played host (fake_host.py): refusals, the whole way and
back, and the kill matrix: SIGKILL before and after every step of grow (online and offline) and
recreate (both drivers), some with a power cut; then resume or rollback.  DOCKFIX_FULL=1: both ways
from each point; without DOCKFIX_TEST=all: a quarter of the points."""

import json
import os
import re
import signal

import pytest

import fake_host
from conftest import die_at_step

if os.geteuid() != 0:
    pytest.skip("storage changes are root's", allow_module_level=True)

FULL = os.environ.get("DOCKFIX_FULL") == "1"
SPARSE = 1 if FULL or os.environ.get("DOCKFIX_TEST") == "all" else 4
SIZES = {
    "grow": ["pool", "grow", "--data", "+64M", "--metadata", "16M", "--overcommit"],
    "offline": ["pool", "grow", "--data", "+64M", "--offline", "--overcommit"],
    "recreate": [
        "pool",
        "recreate",
        "--data",
        "32M",
        "--base-size",
        "1G",
        "--overcommit",
        "--backup",
        "BACKUP",
    ],
    "overlay2": ["pool", "recreate", "--driver", "overlay2", "--backup", "BACKUP"],
}


@pytest.fixture
def host(box, dockfix):
    return Driver(fake_host.FakeHost(box, dockfix), box)


class Driver:
    """box.run on the played host, with a kill at a step."""

    def __init__(self, fake, box):
        self.fake, self.box, self.backup = fake, box, box.at("backup")

    def run(self, *words, **how):
        kill, side = how.pop("kill", None), how.pop("side", "before")

        def prelude(module):
            self.fake.patch(module)
            module.require_overlay = (
                module.require_overlay if how.get("overlay") else lambda host, root: None
            )
            die_at_step(module, kill, side)

        return self.box.run(
            *[self.backup if word == "BACKUP" else word for word in words],
            prelude=prelude,
            env=how.get("env"),
        )

    def journal(self):
        return fake_host.read(os.path.join(self.box.state, "journal.json"))


# From the proof on every call names the socket of the service.
DOCKER = "docker -H " + fake_host.ENDPOINT


def expected(kind, before):
    """The picture after the goal; ids of containers made anew are not compared."""
    after = json.loads(json.dumps(before))
    if kind == "overlay2":
        after.update(
            driver="overlay2",
            pool=None,
            options={"data-root": before["options"]["data-root"], "storage-driver": "overlay2"},
        )
    else:
        sizes = {"grow": (128, 16), "offline": (128, 8), "recreate": (32, 8)}[kind]
        after["pool"].update(data=sizes[0] << 20, metadata=sizes[1] << 20)
        keys = {"dm.loopdatasize=%dM" % sizes[0], "dm.loopmetadatasize=%dM" % sizes[1]} | (
            {"dm.basesize=1G"} if kind == "recreate" else set()
        )
        after["options"]["storage-opts"] = sorted(keys)
    return after


def same(picture, wanted, kind, undone):
    picture = json.loads(json.dumps(picture))
    if not undone:
        picture["options"].get("storage-opts", []).sort()
        if kind in ("recreate", "overlay2"):
            picture["images"] = {
                tag: one
                for tag, one in picture["images"].items()
                if not tag.startswith("dockfix/restored")
            }
            for some in (picture, wanted):
                for one in some["containers"].values():
                    one.pop("id", None)
    return picture == wanted


@pytest.mark.parametrize("kind", sorted(SIZES))
def test_the_whole_way_and_back(host, kind):
    before = host.fake.picture()
    result = host.run("-y", "--json", *SIZES[kind])
    assert result.rc == 0, result
    wanted = expected(kind, before)
    assert same(host.fake.picture(), wanted, kind, False), (host.fake.picture(), wanted)
    assert host.fake.left_behind() == []
    if kind in ("grow", "offline"):
        assert os.listdir(host.box.state) == ["lock"]
        return
    rows = {row["target"]: row for row in result.json["results"][1:]}
    assert set(rows) == {"db", "web", "old", "plain"} and {
        row["status"] for row in rows.values()
    } == {"changed"}
    name = result.json["results"][0]["id"]
    assert host.run("-y", "rollback").rc == 0
    assert same(host.fake.picture(), before, kind, True), (host.fake.picture(), before)
    assert host.fake.left_behind() == []
    assert os.path.exists(host.backup + "/manifest.json")
    keeps = os.path.join(host.fake.root, ".dockfix-" + name)
    assert sorted(os.listdir(keeps)) == sorted(
        [
            "newer-image",
            "newer-containers",
            "newer-buildkit",
            "newer-devicemapper" if kind == "recreate" else "newer-overlay2",
        ]
    )
    assert host.run("-y", "discard", name).rc == 0 and not os.path.exists(keeps)


@pytest.mark.parametrize("part", range(4))
@pytest.mark.parametrize("kind", sorted(SIZES))
def test_killed_before_and_after_every_step(make_box, dockfix, capsys, kind, part):
    """From each point `resume` reaches the goal and `rollback` the old state; every third time the
    power goes too."""
    tried = {"resume": 0, "rollback": 0, "power": 0}
    number, ended, steps = part, False, 0
    while not ended:
        kill, side = number // 2 + 1, ("before", "after")[number % 2]
        for way in (
            ("resume", "rollback")
            if FULL
            else (("resume", "rollback")[(number + number // 2) % 2],)
        ):
            box = make_box("%s-%d-%s" % (kind, number, way))
            host = Driver(fake_host.FakeHost(box, dockfix), box)
            before = host.fake.picture()
            result = host.run("-y", *SIZES[kind], kill=kill, side=side)
            if result.rc != -signal.SIGKILL:
                assert result.rc == 0, result
                ended = True
                break
            steps = len(host.journal()["plan"]["steps"])
            assert host.fake.load()["pool"] is None or host.fake.load()["pool"]["state"] == "ACTIVE"
            power = number % 3 == 0
            if power:
                host.fake.boot()
                tried["power"] += 1
            grown = (host.fake.load()["pool"] or {"data": 0})["data"] > before["pool"]["data"]
            result = host.run("-y", way)
            assert result.rc == 0, (kind, kill, side, way, result)
            wanted, picture = (
                expected(kind, before) if way == "resume" else json.loads(json.dumps(before))
            ), host.fake.picture()
            if (
                way == "rollback"
                and kind in ("grow", "offline")
                and picture["pool"] != wanted["pool"]
            ):
                # a thin pool never shrinks: the stated end is the larger one, with the options of
                # before
                assert grown or kind == "offline"
                wanted["pool"] = expected(kind, before)["pool"]
            if (
                power and kind == "grow"
            ):  # which stops nothing: what a reboot leaves down is not its affair
                wanted["containers"]["plain"]["running"] = False
            assert same(picture, wanted, kind, way == "rollback"), (
                kind,
                kill,
                side,
                way,
                picture,
                wanted,
            )
            assert host.journal() is None and host.fake.left_behind() == []
            tried[way] += 1
        number += (
            8 if kind == "overlay2" and not FULL else 4
        ) * SPARSE  # which shares its steps with recreate
    with capsys.disabled():
        print(
            "\n%s: %d steps; %d resumed, %d rolled back, %d of them after a power cut"
            % (kind, steps, tried["resume"], tried["rollback"], tried["power"])
        )
    assert tried["resume"] + tried["rollback"] >= steps // 5 // SPARSE


def test_a_folder_of_the_operators_own_stays_on_the_way_back(host):
    """A stick's root could not be removed at all."""
    os.mkdir(host.backup)
    os.chmod(host.backup, 0o751)
    assert (
        host.run("-y", *SIZES["recreate"], kill=8).rc == -signal.SIGKILL
        and os.listdir(host.backup)
        and os.stat(host.backup).st_mode & 0o777 == 0o700
    )
    result = host.run("-y", "rollback")
    assert (
        result.rc == 0
        and os.listdir(host.backup) == []
        and os.stat(host.backup).st_mode & 0o777 == 0o751
    ), result


def test_the_script_of_a_rollback_leaves_the_backup_as_the_rollback_does(host):
    """A backup that is complete is never undone."""
    assert host.run("-y", *SIZES["recreate"]).rc == 0
    files = sorted(os.listdir(host.backup))
    script = host.run("-n", "rollback")
    assert script.rc == 0 and b"back" in script.out
    assert os.path.join(host.backup, "images.tar").encode() not in script.out
    assert host.run("-y", "rollback").rc == 0
    assert sorted(os.listdir(host.backup)) == files


def test_a_container_that_cannot_start_or_is_gone_does_not_hold_up_the_way_back(host):
    before = host.fake.picture()
    assert host.run("-y", *SIZES["recreate"], kill=2).rc == -signal.SIGKILL
    titles = [step["title"] for step in host.journal()["plan"]["steps"]]
    assert host.run("-y", "rollback").rc == 0
    assert titles.index("stop web") < titles.index("stop db, plain")  # which web is linked to
    last = titles.index("stop db, plain") + 1
    assert host.run("-y", *SIZES["recreate"], kill=last, side="after").rc == -signal.SIGKILL
    found = host.fake.db("containers")
    assert not any(one["running"] for one in found.values()) and {
        one["policy"] for one in found.values()
    } == {"no"}
    host.fake.save(broken=[found["web"]["id"]])
    host.fake.put("containers", {name: one for name, one in found.items() if name != "db"})
    result = host.run("-y", "--json", "rollback")
    assert result.rc == 3 and host.journal() is None, result
    assert [
        (one["id"], one["text"].split(":")[0], one["remedy"]) for one in result.json["findings"]
    ] == [
        ("not-done", "start " + name, DOCKER + " start " + found[name]["id"])
        for name in ("db", "web")
    ]
    after = host.fake.picture()["containers"]
    assert (
        set(after) == {"web", "old", "plain"}
        and after["plain"]["running"]
        and {name: one["policy"] for name, one in after.items()}
        == {name: before["containers"][name]["policy"] for name in after}
    )


@pytest.mark.parametrize("kind", sorted(set(SIZES) - {"grow"}))
def test_what_ran_and_does_not_start_again_is_no_success(host, kind):
    """The change stays, and the exit code says that not all is well."""
    name = "plain"
    plain = host.fake.db("containers")[name]
    host.fake.save(broken=[plain["id"], name])
    script = host.run("-n", *SIZES[kind])
    assert script.rc == 0 and ("start %s' >&2; bad=1; }" % name).encode() in script.out
    result = host.run("-y", "--json", *SIZES[kind])
    finding = [one for one in result.json["findings"] if one["id"] == "not-done"]
    assert (
        result.rc == 3
        and result.json["changed"]
        and not result.json["errors"]
        and len(finding) == 1
        and "start plain" in finding[0]["text"]
    ), result
    assert finding[0]["remedy"] in (DOCKER + " start plain", DOCKER + " start " + plain["id"])
    assert {row["target"]: row["status"] for row in result.json["results"]}.get(
        "plain", "failed"
    ) == "failed"
    assert (
        host.journal() is None
        and host.fake.picture()["pool"] == expected(kind, host.fake.picture())["pool"]
    )


def test_a_pool_with_more_metadata_than_dm_thin_uses_is_grown_and_made_anew(host):
    """As the field notes have it: dm.loopmetadatasize=20G."""
    path = host.fake.root + "/devicemapper/devicemapper/metadata"
    os.truncate(path, 20 << 30)
    options = fake_host.read(host.fake.config)
    options["storage-opts"][1] = "dm.loopmetadatasize=20480M"
    fake_host.write(host.fake.config, options)
    pool = host.fake.load()["pool"]
    host.fake.save(pool=dict(pool, metadata=33292800 * 512, loop=[pool["loop"][0], 20 << 30]))
    result = host.run("-y", "pool", "grow", "--data", "+64M", "--overcommit")
    assert (
        result.rc == 0
        and host.fake.load()["pool"]["data"] == 128 << 20
        and os.path.getsize(path) == 20 << 30
    ), result
    result = host.run("-y", "--json", "pool", "grow", "--metadata", "25G", "--overcommit")
    assert result.rc == 5 and "15.88" in result.json["errors"][0]["msg"], result
    result = host.run("-y", *SIZES["recreate"])
    assert (
        result.rc == 0
        and os.path.getsize(path) == 20 << 30
        and "dm.loopmetadatasize=20G" in fake_host.read(host.fake.config)["storage-opts"]
    ), result


def test_the_next_command_has_the_state_folder_that_was_given(host):
    where = host.box.at("else where, 50% full")
    own = "--state '%s' " % where
    assert host.run("-y", "--state", where, *SIZES["overlay2"], kill=30).rc == -signal.SIGKILL
    told = host.run("--json", "--state", where, "discard", "x").json
    assert (
        told["errors"][0]["hint"].startswith("python3 dockfix.py ")
        and told["errors"][0]["hint"].count(own + "r") == 2
    ), told
    assert told["findings"][0]["remedy"].endswith(own + "resume")
    result = host.run("--state", where, "resume")
    name = next(one for one in os.listdir(where) if one.endswith(".json"))[: -len(".json")]
    assert (
        result.rc == 0
        and ("rollback %s%s goes back; discard %s%s deletes it" % (own, name, own, name)).encode()
        in result.out
    ), result
    result = host.run("-y", "--state", where, "discard", name)
    assert result.rc == 0 and b"is deleted" in result.out and b"goes back" not in result.out, result


@pytest.mark.parametrize(
    "what,kill", [("containers", 12), ("image", 12), ("image", 34), ("tag", 34)]
)
def test_what_others_make_while_a_recreate_saves_is_not_lost(host, what, kill):
    """It would be in the old tree only, and nobody would say so."""
    new, what = ("img:1" if what == "tag" else "late:1"), what.replace("tag", "image")
    assert host.run("-y", *SIZES["recreate"], kill=kill).rc == -signal.SIGKILL
    assert kill < 20 or "verify" in host.journal()["plan"]["steps"][kill - 1]["title"]
    found = host.fake.db(what)
    if what == "containers":
        found["late"] = dict(found["plain"], id="f" * 64)
    else:
        found[new] = "sha256:" + "3" * 64
    host.fake.put(what, found)
    result = host.run("-y", "--json", "resume")
    assert (
        result.rc == 7
        and "nobody made %ss meanwhile" % what.rstrip("s") in result.json["errors"][0]["msg"]
    ), result
    assert (
        "looked: %s;" % ("f" * 64 if what == "containers" else new + " sha256:" + "3" * 64)
        in result.json["errors"][0]["msg"]
    ), result
    result = host.run("-y", "rollback")
    assert result.rc == 0 and host.fake.db(what) == {
        name: one for name, one in found.items() if not name.startswith("dockfix/backup")
    }, result


def test_a_container_whose_name_is_how_an_id_begins_is_made(host):
    """As 'db' is: docker takes a name that it does not know for the beginning of an id."""
    found = host.fake.db("containers")
    found["eb"] = dict(
        found["web"], id="9" * 64, links=["/db:/eb/db"]
    )  # made after db, whose new id begins so
    host.fake.put("containers", found)
    host.fake.save(ids_begin="eb")
    result = host.run("-y", "--json", *SIZES["overlay2"])
    assert (
        result.rc == 0
        and set(host.fake.db("containers")) == set(found)
        and host.fake.db("containers")["db"]["id"].startswith("eb")
    ), result


def test_a_state_folder_in_memory_is_none_for_a_storage_change(host, dockfix):
    def patch(module):
        real = module.mounts_of
        module.mounts_of = lambda pid="self": [one._replace(fstype="tmpfs") for one in real(pid)]

    before = host.fake.picture()
    real, host.fake.patch = host.fake.patch, lambda module: (real(module), patch(module))
    result = host.run("-y", "--json", *SIZES["offline"])
    assert (
        result.rc == 5
        and "lies in memory" in result.json["errors"][0]["msg"]
        and "--state DIR" in result.json["errors"][0]["hint"]
    ), result
    assert host.fake.picture() == before


def without_socket(argv):
    return argv[:1] + argv[3:] if argv[1:3] == ("-H", fake_host.ENDPOINT) else argv


# What a power cut takes back of these is made so again by settle_daemon or by itself, or dockfix
# brings it to the disk (the target of a step).
LASTING = {
    "systemctl",
    "service",
    "dmsetup",
    "losetup",
    "sha256sum",
    "docker start",
    "docker stop",
    "docker pause",
    "docker unpause",
    "docker update",
    "docker network",
    "docker save",
    "docker export",
    "docker inspect",
    "docker volume",
    "docker image",
    "echo",
}


@pytest.mark.parametrize("kind", sorted(SIZES))
def test_what_a_step_has_written_is_on_the_disk_before_the_journal_says_so(host, dockfix, kind):
    assert host.run("-y", *SIZES[kind], kill=2).rc == -signal.SIGKILL
    steps = [dockfix.step_from(one) for one in host.journal()["plan"]["steps"]]
    mine = [one for step in steps for one in (step, *step.undo) if one.argv]
    deeds = [one.argv for one in mine if not one.task]  # do_task brings all to the disk
    assert len(deeds) > 5
    odd = {
        " ".join(argv[:2])
        for argv in (without_socket(argv) for argv in deeds)
        if not dockfix.SYNCED.intersection(argv[:4])
        and os.path.basename(argv[0]) not in LASTING
        and " ".join(argv[:2]) not in LASTING
    }
    assert odd == set()


def test_one_start_attempt_then_the_daemons_words_and_back(host):
    before = host.fake.picture()
    host.fake.save(fail_start=1)
    result = host.run("-y", "--json", *SIZES["recreate"])
    assert (
        result.rc == 1
        and "start docker" in result.json["errors"][0]["msg"]
        and "undone" in result.json["errors"][0]["msg"]
    ), result
    assert b"the daemon's own words" in result.err and same(
        host.fake.picture(), before, "recreate", True
    )


def test_an_undo_that_cannot_start_what_it_stopped_says_so(host):
    """Exit 7, and not 'all of it is undone': docker is down. Then the way back is open once it
    starts again."""
    before = host.fake.picture()
    host.fake.save(fail_start=99)
    result = host.run("-y", "--json", *SIZES["offline"])
    assert result.rc == 7 and not host.fake.load()["daemon"], result
    error = result.json["errors"][0]
    assert "start docker" in error["msg"] and "rollback" in error["hint"], result
    again = host.run("-y", "--json", "rollback")
    assert again.rc == 7, again
    host.fake.save(fail_start=0)
    assert host.run("-y", "rollback").rc == 0
    assert same(host.fake.picture(), before, "offline", True)


@pytest.mark.parametrize("word", ["resume", "rollback"])
def test_with_the_daemon_down_the_settings_must_name_the_root_of_the_change(host, word):
    """Somebody gave the service another root meanwhile: what the steps would stop and start is not
    what was begun."""
    assert host.run("-y", *SIZES["recreate"], kill=60).rc == -signal.SIGKILL
    assert not host.fake.load()["daemon"]
    options = fake_host.read(host.fake.config)
    fake_host.write(host.fake.config, dict(options, **{"data-root": "/srv/other"}))
    before = host.fake.picture()
    for mode in ("-n", "-y"):
        result = host.run(mode, "--json", word)
        assert result.rc == 7 and "/srv/other" in result.json["errors"][0]["msg"], result
    assert host.fake.picture() == before
    fake_host.write(host.fake.config, options)
    assert host.run("-y", word).rc == 0


@pytest.mark.parametrize("env", [{"DOCKER_HOST": "tcp://h:2375"}, {"DOCKER_HOST": "unix:///x"}])
def test_resumed_only_where_docker_means_the_service(host, env):
    """What is asked of the client alone: the daemon is down, as it may be half-way."""
    assert host.run("-y", *SIZES["offline"], kill=5).rc == -signal.SIGKILL
    host.fake.no_contexts = True
    before = host.fake.picture()
    result = host.run("-y", "--json", "resume", env=env)
    assert result.rc == 7 and env["DOCKER_HOST"] in result.json["errors"][0]["msg"], result
    assert host.fake.picture() == before
    assert host.run("-y", "resume", env={"DOCKER_HOST": fake_host.ENDPOINT}).rc == 0


@pytest.mark.parametrize(
    "kind,words,text,code",
    [
        ("grow", ["--data", "1GB"], "not a size", 2),
        ("grow", [], "how large", 2),
        ("grow", ["--data", "32M"], "never shrinks", 5),
        ("grow", ["--metadata", "16G"], "15.88", 5),
        ("grow", ["--data", "900T"], "disk under", 5),
        ("recreate", ["--data", "32M"], "--backup", 2),
        ("recreate", ["--driver", "zfs", "--backup", "B"], "overlay2", 2),
        ("recreate", ["--driver", "overlay2", "--data", "1G", "--backup", "B"], "without sizes", 2),
        ("recreate", ["--backup", "ROOT/b"], "below Docker's own root", 5),
        ("shrink", [], "grow or recreate", 2),
        ("grow", ["--data", "1G", "--backup", "B"], "--backup goes with pool recreate", 2),
        ("recreate", ["--offline", "--backup", "B"], "--offline goes with pool grow", 2),
        ("recreate", ["--base-size", "x", "--backup", "B"], "not a size", 2),
    ],
)
def test_refused_before_anything_is_touched(host, kind, words, text, code):
    before = host.box.picture()
    result = host.run(
        "-y", "--json", "pool", kind, *[word.replace("ROOT", host.fake.root) for word in words]
    )
    assert (
        result.rc == code
        and text in result.json["errors"][0]["msg"] + result.json["errors"][0]["hint"]
    ), result
    assert {k: v for k, v in host.box.picture().items() if "/state" not in k} == before


@pytest.mark.parametrize(
    "state,text,code", [({"swarm": "active"}, "swarm", 5), ({"live": True}, "live-restore", 5)]
)
def test_a_daemon_that_cannot_be_stopped_well_is_refused(host, state, text, code):
    host.fake.save(**state)
    result = host.run("-y", "--json", *SIZES["recreate"])
    assert result.rc == code and text in result.json["errors"][0]["msg"], result
    assert host.fake.load()["daemon"]


def test_a_container_that_would_vanish_is_refused_and_can_be_let_go(host):
    found = host.fake.db("containers")
    found["plain"]["rm"] = True
    host.fake.put("containers", found)
    for kind in ("recreate", "offline"):
        result = host.run("-y", "--json", *SIZES[kind])
        assert (
            result.rc == 5 and "--lose-autoremove plain" in result.json["errors"][0]["hint"]
        ), result
    result = host.run("-y", *SIZES["recreate"] + ["--lose-autoremove", "plain"])
    assert result.rc == 0 and sorted(host.fake.db("containers")) == ["db", "old", "web"], result


@pytest.mark.parametrize(
    "pool, prefix",
    [
        ("docker-254:0-33567-pool", "/dev/mapper/docker-254:0-"),
        ("docker-254:0-*-pool", "/dev/mapper/docker-254:0-"),
        ("docker-{pool-disk}-33567-pool", "/dev/mapper/docker-{pool-disk}-"),
        ("docker-thinpool", ""),
        ("vg-thin-pool", ""),
        ("", ""),
    ],
)
def test_how_the_devices_of_a_pool_are_called(dockfix, pool, prefix):
    assert dockfix.device_prefix_of(pool) == prefix


@pytest.mark.parametrize("kind", ["offline", "recreate"])
def test_the_devices_of_its_pool_are_in_the_proof_that_nothing_is_mounted(host, kind):
    """A mount of one, at any place, keeps the pool alive: its name is a pattern in grep's words,
    with the disk's number of now."""
    name = host.fake.load()["pool"]["name"]
    device = "-".join(name.split("-")[:2]) + "-"
    script = host.run("-n", *SIZES[kind]).out.decode()
    proofs = [line for line in script.split("\n") if "mountinfo" in line and "unmounted" in line]
    found = {word for line in proofs for word in re.findall("/(docker-[^ ']*-)'", line)}
    assert found == {device}


@pytest.mark.parametrize(
    "state,text", [("Fail", "Fail"), ("ro", "ro"), ("needs_check", "needs_check")]
)
def test_a_pool_that_is_ill_is_not_grown_nor_made_anew(host, dockfix, state, text):
    real = host.fake.do_dmsetup

    def ill(argv, stdin):
        rc, out = real(argv, stdin)
        if argv[0] == "status":
            out = (
                "0 1 thin-pool Fail\n"
                if state == "Fail"
                else (
                    out.replace(" rw ", " ro ")
                    if state == "ro"
                    else out.replace(" - 1024", " needs_check 1024")
                )
            )
        return rc, out

    host.fake.do_dmsetup = ill
    for kind in SIZES:
        result = host.run("-y", "--json", *SIZES[kind])
        assert (
            result.rc == 5
            and text in result.json["errors"][0]["msg"]
            and "thin_check" in result.json["errors"][0]["hint"]
        ), result


def test_another_driver_and_a_pool_on_a_device_are_told_apart(host):
    data = host.fake.root + "/devicemapper/devicemapper/data"
    os.rename(data, data + ".x")
    os.symlink("/dev/null", data)
    result = host.run("-y", "--json", *SIZES["grow"])
    assert result.rc == 5 and "link" in result.json["errors"][0]["msg"]
    os.unlink(data)
    result = host.run("-y", "--json", *SIZES["grow"])
    assert result.rc == 5 and "lvextend" in result.json["errors"][0]["hint"]
    os.rename(data + ".x", data)
    assert host.run("-y", *SIZES["overlay2"]).rc == 0
    result = host.run("-y", "--json", *SIZES["grow"])
    assert result.rc == 6 and "overlay2" in result.json["errors"][0]["msg"]


def test_two_places_for_one_option_are_a_refusal_that_names_both(host):
    os.makedirs(host.box.at("etc/systemd/system"))
    host.box.file(
        "etc/systemd/system/docker.service",
        b"[Service]\nExecStart=/usr/bin/dockerd --storage-opt dm.loopdatasize=64M\n",
    )
    result = host.run("-y", "--json", *SIZES["grow"])
    msg = result.json["errors"][0]["msg"]
    assert result.rc == 5 and "docker.service" in msg and "daemon.json" in msg, result


TABLE = "0 8388608 thin-pool 7:1 7:0 128 32768 1 skip_block_zeroing \n"


@pytest.mark.parametrize(
    "status,facts",
    [
        (
            (
                "0 8388608 thin-pool 4 4161/262144 1640/65536 - rw discard_passdown"
                " queue_if_no_space - 1024 \n"
            ),
            ("rw", False, 1640 * 65536, 4 << 30, 4161 * 4096, 1 << 30),
        ),
        (
            "0 8388608 thin-pool 4 23/262144 1000/65536 - rw discard_passdown\n",
            ("rw", False, 1000 * 65536, 4 << 30, 23 * 4096, 1 << 30),
        ),
        (
            (
                "p: 0 8388608 thin-pool 4 23/262144 65536/65536 - out_of_data_space"
                " discard_passdown error_if_no_space needs_check \n"
            ),
            ("out_of_data_space", True, 4 << 30, 4 << 30, 23 * 4096, 1 << 30),
        ),
        ("0 8388608 thin-pool Fail\n", ("Fail", False, None, None, None, None)),
        ("0 8388608 thin-pool Error\n", ("Fail", False, None, None, None, None)),
    ],
)
def test_the_kernels_words_about_a_pool(dockfix, status, facts):
    pool = dockfix.parse_thin_pool(TABLE, status)
    assert (pool.sectors, pool.metadata_dev, pool.data_dev, pool.block) == (
        8388608,
        "7:1",
        "7:0",
        65536,
    )
    assert (
        pool.state,
        pool.needs_check,
        pool.data_used,
        pool.data_total,
        pool.metadata_used,
        pool.metadata_total,
    ) == facts
    assert pool.longer(16) == TABLE.strip().replace("8388608", "16")


@pytest.mark.parametrize(
    "table,status",
    [
        ("", ""),
        (TABLE, ""),
        (TABLE, "0 8388608 thin 1 2"),
        ("0 1 linear 7:0 0", "0 1 linear"),
        (TABLE.replace("thin-pool", "thin"), "0 1 thin-pool Fail"),
    ],
)
def test_what_is_no_pool_is_not_understood(dockfix, table, status):
    with pytest.raises(dockfix.EnvironmentFault):
        dockfix.parse_thin_pool(table, status)


@pytest.mark.parametrize(
    "text,name,key,value,after",
    [
        (
            "/usr/bin/dockerd --storage-opt dm.loopdatasize=4G -H fd://",
            "storage-opt",
            "dm.loopdatasize",
            "8G",
            "/usr/bin/dockerd --storage-opt dm.loopdatasize=8G -H fd://",
        ),
        (
            "d --storage-opt=dm.loopdatasize=4G",
            "storage-opt",
            "dm.loopdatasize",
            "8G",
            "d --storage-opt=dm.loopdatasize=8G",
        ),
        (
            'd --storage-opt "dm.basesize=4G" x',
            "storage-opt",
            "dm.basesize",
            "8G",
            'd --storage-opt "dm.basesize=8G" x',
        ),
        (
            "d --storage-opt dm.fs=xfs -H fd:// $OPTS",
            "storage-opt",
            "dm.basesize",
            "8G",
            "d --storage-opt dm.fs=xfs --storage-opt dm.basesize=8G -H fd:// $OPTS",
        ),
        ("d --storage-opt dm.fs=xfs -H fd://", "storage-opt", "dm.fs", None, "d -H fd://"),
        ("d -s devicemapper -H x", "storage-driver", "", "overlay2", "d -s overlay2 -H x"),
        (
            "d --storage-driver=devicemapper",
            "storage-driver",
            "",
            "overlay2",
            "d --storage-driver=overlay2",
        ),
    ],
)
def test_a_flag_is_set_where_it_stands_and_nothing_else_moves(
    dockfix, text, name, key, value, after
):
    assert dockfix.edit_flags(text, dockfix.OptionChange(name, key, value)) == after


def test_daemon_json_keeps_its_other_keys_and_their_order(dockfix):
    def edit(text, *change):
        return dockfix.edit_daemon_json(text, dockfix.OptionChange(*change))

    text = json.dumps({"b": 1, "storage-opts": ["dm.fs=xfs", "dm.basesize=1G"], "a": {"c": None}})
    edited = json.loads(edit(text, "storage-opt", "dm.basesize", "2G"))
    assert edited == {
        "b": 1,
        "storage-opts": ["dm.fs=xfs", "dm.basesize=2G"],
        "a": {"c": None},
    }
    assert list(edited) == ["b", "storage-opts", "a"]
    gone = edit(text, "storage-opt", "dm.fs", None)
    gone = edit(gone, "storage-opt", "dm.basesize", None)
    assert json.loads(gone) == {"b": 1, "a": {"c": None}}
    assert json.loads(edit("", "storage-driver", "", "overlay2")) == {"storage-driver": "overlay2"}
    assert json.loads(edit('{"graph": "/a"}', "data-root", "", "/b")) == {"graph": "/b"}


@pytest.mark.parametrize(
    "size,word",
    [(1 << 30, "1G"), (3 << 29, "1536M"), (5, "5"), (1 << 40, "1T"), (2048, "2K"), (0, "0")],
)
def test_sizes_as_docker_takes_them(dockfix, size, word):
    assert dockfix.format_option_size(size) == word


def test_a_plan_in_the_names_of_after_a_reboot(dockfix, monkeypatch):
    """The two loop devices have changed places, a disk has another number; what is written to a
    file stays as it is, and so do braces that are no device of the plan."""
    folder = "/var/lib/docker/devicemapper"
    data, metadata = folder + "/devicemapper/data", folder + "/devicemapper/metadata"
    table = "0 8 thin-pool 7:10 7:1 128 0"
    pool = dockfix.LoopPool(
        "docker-7:1-5-pool",
        dockfix.parse_thin_pool(table, "0 8 thin-pool 4 1/2 1/2 - rw "),
        {"data": data, "metadata": metadata},
        {"data": "/dev/loop1", "metadata": "/dev/loop10"},
        {"data": 1, "metadata": 1},
        0,
    )
    numbers = {"disk": "7:1"}
    monkeypatch.setattr(dockfix, "device_number", lambda path: "7:" + path[len("/dev/loop") :])
    monkeypatch.setattr(dockfix, "disk_number", lambda folder: numbers["disk"])

    def ask(host, argv):
        text = b"/dev/loop%s: [1]: (x)\n" % (b"10" if argv[-1] == data else b"1")
        return dockfix.Answer(0, text, b"", 0, 0, 0, False)

    monkeypatch.setattr(dockfix, "query_host", ask)
    named = dockfix.planned_pool(pool)
    words = (
        ("losetup", "-c", named.loops["data"]),
        ("dmsetup", "reload", named.name, "--table", named.thin.table),
        ("cat", "/sys/block/%s/size" % os.path.basename(named.loops["metadata"])),
        ("find", "/dev/mapper", "-name", named.name[: -len("pool")] + "*"),
        ("echo", "7:1", "loop1", "{{.Id}}", "{}", "{other}"),
    )
    before = (
        ("losetup", "-c", "/dev/loop1"),
        ("dmsetup", "reload", "docker-7:1-5-pool", "--table", table),
        ("cat", "/sys/block/loop10/size"),
        ("find", "/dev/mapper", "-name", "docker-7:1-5-*"),
        words[-1],
    )
    after = (
        ("losetup", "-c", "/dev/loop10"),
        ("dmsetup", "reload", "docker-7:9-5-pool", "--table", "0 8 thin-pool 7:1 7:10 128 0"),
        ("cat", "/sys/block/loop1/size"),
        ("find", "/dev/mapper", "-name", "docker-7:9-5-*"),
        words[-1],
    )
    steps = [
        dockfix.Step(
            str(number), "", one, (("has", *one),), (dockfix.Step("", "", one),), skip_if=(one,)
        )
        for number, one in enumerate(words)
    ]
    steps.append(dockfix.Step("options", "options", path="/etc/x", data="{data-loop} 7:1"))
    plan = dockfix.make_plan("n", "pool grow", "g", steps, devices=dockfix.pool_devices(pool))

    def shown(plan):
        bound = dockfix.bind_steps(plan)
        assert bound[-1] == steps[-1]
        for step in bound[:-1]:
            assert step.undo[0].argv == step.check[0][1:] == step.skip_if[0] == step.argv
        return tuple(step.argv for step in bound[:-1])

    assert shown(plan) == before
    numbers["disk"] = "7:9"
    found = dockfix.rebind_devices(None, plan)
    assert shown(found) == after and found.steps == plan.steps
    assert dockfix.rebind_devices(None, found) == found  # and at the next time nothing
    numbers["disk"] = ""  # what is not there has the name of before
    assert dockfix.rebind_devices(None, found) == found
