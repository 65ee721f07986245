"""backup and restore: the table from inspect to `docker create`, hostile values, order, what is
left out, and folders that are no backup.

The objects below have the fields that Docker 20.10 gives (a container without any option), and 1.12
and 29 where those differ."""

import copy
import json
import os
import re
import subprocess
import tarfile

import fake_engine
import make_archive
import pytest

HOST = {
    "Binds": None,
    "ContainerIDFile": "",
    "LogConfig": {"Type": "json-file", "Config": {}},
    "NetworkMode": "default",
    "PortBindings": {},
    "RestartPolicy": {"Name": "no", "MaximumRetryCount": 0},
    "AutoRemove": False,
    "VolumeDriver": "",
    "VolumesFrom": None,
    "CapAdd": None,
    "CapDrop": None,
    "CgroupnsMode": "host",
    "Dns": [],
    "DnsOptions": [],
    "DnsSearch": [],
    "ExtraHosts": None,
    "GroupAdd": None,
    "IpcMode": "private",
    "Cgroup": "",
    "Links": None,
    "OomScoreAdj": 0,
    "PidMode": "",
    "Privileged": False,
    "PublishAllPorts": False,
    "ReadonlyRootfs": False,
    "SecurityOpt": None,
    "UTSMode": "",
    "UsernsMode": "",
    "ShmSize": 67108864,
    "Runtime": "runc",
    "ConsoleSize": [0, 0],
    "Isolation": "",
    "CpuShares": 0,
    "Memory": 0,
    "NanoCpus": 0,
    "CgroupParent": "",
    "BlkioWeight": 0,
    "BlkioWeightDevice": [],
    "BlkioDeviceReadBps": None,
    "BlkioDeviceWriteBps": None,
    "BlkioDeviceReadIOps": None,
    "BlkioDeviceWriteIOps": None,
    "CpuPeriod": 0,
    "CpuQuota": 0,
    "CpuRealtimePeriod": 0,
    "CpuRealtimeRuntime": 0,
    "CpusetCpus": "",
    "CpusetMems": "",
    "Devices": [],
    "DeviceCgroupRules": None,
    "DeviceRequests": None,
    "KernelMemory": 0,
    "KernelMemoryTCP": 0,
    "MemoryReservation": 0,
    "MemorySwap": 0,
    "MemorySwappiness": None,
    "OomKillDisable": False,
    "PidsLimit": None,
    "Ulimits": None,
    "CpuCount": 0,
    "CpuPercent": 0,
    "IOMaximumIOps": 0,
    "IOMaximumBandwidth": 0,
    "MaskedPaths": ["/proc/asound"],
    "ReadonlyPaths": ["/proc/bus"],
}
CONFIG = {
    "Hostname": "aaaaaaaaaaaa",
    "Domainname": "",
    "User": "",
    "AttachStdin": False,
    "AttachStdout": True,
    "AttachStderr": True,
    "Tty": False,
    "OpenStdin": False,
    "StdinOnce": False,
    "Env": None,
    "Cmd": ["/bin/sleep", "1"],
    "Image": "img",
    "Volumes": None,
    "WorkingDir": "",
    "Entrypoint": None,
    "OnBuild": None,
    "Labels": {},
}
IMAGE = {
    "Cmd": ["/bin/sleep", "1"],
    "Env": ["PATH=/bin"],
    "Labels": {"made": "here"},
    "ExposedPorts": {"80/tcp": {}},
    "Entrypoint": None,
}
PLAIN = [
    "--name=web",
    "--hostname=aaaaaaaaaaaa",
    "--cgroupns=host",
    "--ipc=private",
    "--log-driver=json-file",
    "--runtime=runc",
]
END = {
    "IPAMConfig": None,
    "Links": None,
    "Aliases": None,
    "NetworkID": "",
    "MacAddress": "",
    "DriverOpts": None,
}


def container(name="web", letter="a", host=(), config=(), networks=None, mounts=(), state=()):
    return {
        "Id": letter * 64,
        "Name": "/" + name,
        "Image": "sha256:" + "1" * 64,
        "HostConfig": dict(copy.deepcopy(HOST), **dict(host)),
        "Config": dict(copy.deepcopy(CONFIG), **dict(config)),
        "Mounts": list(mounts),
        "State": dict(
            {"Running": True, "Paused": False, "StartedAt": "2024-01-01T00:00:00Z"}, **dict(state)
        ),
        "NetworkSettings": {"Networks": {"bridge": dict(END)} if networks is None else networks},
    }


def words_for(dockfix, doc, image=IMAGE, others=()):
    """Words beyond those of a container without options, those missing of these, and the recipe."""
    recipe = dockfix.create_recipe(doc, image, [doc, *list(others)])
    return (
        [word for word in recipe.options if word not in PLAIN],
        [word for word in PLAIN if word not in recipe.options],
        recipe,
    )


CASES = [  # HostConfig
    (
        {"Memory": 67108864, "MemorySwap": -1, "MemorySwappiness": 0},
        ["--memory=67108864", "--memory-swap=-1", "--memory-swappiness=0"],
    ),
    ({"MemorySwappiness": -1, "PidsLimit": -1, "ShmSize": 1 << 26}, []),
    (
        {"NanoCpus": 1500000000, "PidsLimit": 7, "ShmSize": 4096},
        ["--cpus=1.500000000", "--pids-limit=7", "--shm-size=4096"],
    ),
    ({"RestartPolicy": {"Name": "on-failure", "MaximumRetryCount": 3}}, ["--restart=on-failure:3"]),
    (
        {"RestartPolicy": {"Name": "unless-stopped", "MaximumRetryCount": 0}},
        ["--restart=unless-stopped"],
    ),
    (
        {"CapAdd": ["SYS_ADMIN"], "CapDrop": ["ALL"], "GroupAdd": ["7"]},
        ["--cap-add=SYS_ADMIN", "--cap-drop=ALL", "--group-add=7"],
    ),
    (
        {
            "Privileged": True,
            "ReadonlyRootfs": True,
            "Init": True,
            "AutoRemove": True,
            "OomKillDisable": True,
            "MaskedPaths": None,
        },
        ["--rm", "--privileged", "--read-only", "--oom-kill-disable", "--init=true"],
    ),
    # the daemon may have "init": true
    ({"Init": False}, ["--init=false"]),
    ({"Init": None}, []),
    ({"MaskedPaths": []}, ["--security-opt=systempaths=unconfined"]),
    ({"MaskedPaths": [], "Privileged": True}, ["--privileged"]),
    (
        {
            "Devices": [
                {"PathOnHost": "/dev/a", "PathInContainer": "/dev/b", "CgroupPermissions": "r"}
            ],
            "DeviceCgroupRules": ["c 1:3 r"],
        },
        ["--device=/dev/a:/dev/b:r", "--device-cgroup-rule=c 1:3 r"],
    ),
    ({"Ulimits": [{"Name": "core", "Hard": -1, "Soft": 0}]}, ["--ulimit=core=0:-1"]),
    ({"Tmpfs": {"/run": "rw,size=1m", "/t": ""}}, ["--tmpfs=/run:rw,size=1m", "--tmpfs=/t"]),
    (
        {"Sysctls": {"net.a": "1"}, "StorageOpt": {"size": "9G"}, "Annotations": {"a.b": "c"}},
        ["--sysctl=net.a=1", "--storage-opt=size=9G", "--annotation=a.b=c"],
    ),
    (
        {
            "BlkioDeviceReadBps": [{"Path": "/dev/s", "Rate": 5}],
            "BlkioWeightDevice": [{"Path": "/dev/s", "Weight": 6}],
        },
        ["--device-read-bps=/dev/s:5", "--blkio-weight-device=/dev/s:6"],
    ),
    (
        {
            "Dns": ["1.1.1.1"],
            "DnsOptions": ["ndots:1"],
            "DnsSearch": ["x.y"],
            "ExtraHosts": ["h:1.2.3.4"],
        },
        ["--dns=1.1.1.1", "--dns-opt=ndots:1", "--dns-search=x.y", "--add-host=h:1.2.3.4"],
    ),
    (
        {"LogConfig": {"Type": "syslog", "Config": {"tag": "a=b"}}},
        ["--log-driver=syslog", "--log-opt=tag=a=b"],
    ),
    (
        {
            "PortBindings": {
                "80/tcp": [{"HostIp": "", "HostPort": "8080"}, {"HostIp": "::1", "HostPort": "81"}],
                "53/udp": [{"HostIp": "127.0.0.1", "HostPort": ""}],
                "9/sctp": None,
            }
        },
        [
            "--publish=127.0.0.1::53/udp",
            "--publish=8080:80/tcp",
            "--publish=[::1]:81:80/tcp",
            "--publish=:9/sctp",
        ],
    ),
    (
        {"UsernsMode": "host", "UTSMode": "host", "PidMode": "host", "OomScoreAdj": -5},
        ["--userns=host", "--uts=host", "--pid=host", "--oom-score-adj=-5"],
    ),
    (
        {"Links": ["/db:/web/d"], "CgroupParent": "/x", "CpusetCpus": "0-1", "CpuShares": 2},
        ["--link=db:d", "--cgroup-parent=/x", "--cpuset-cpus=0-1", "--cpu-shares=2"],
    ),
    (
        {
            "DeviceRequests": [
                {
                    "Driver": "",
                    "Count": -1,
                    "DeviceIDs": None,
                    "Capabilities": [["gpu"]],
                    "Options": {},
                }
            ]
        },
        ["--gpus=count=all"],
    ),
    (
        {
            "DeviceRequests": [
                {
                    "Driver": "nvidia",
                    "Count": 0,
                    "DeviceIDs": ["0", "1"],
                    "Capabilities": [["compute", "gpu"]],
                    "Options": {"a": "b"},
                }
            ]
        },
        ['--gpus=driver=nvidia,"device=0,1",capabilities=compute,options=a=b'],
    ),
    ({"DeviceRequests": [{"Driver": "cdi", "DeviceIDs": ["v.com/c=0"]}]}, ["--device=v.com/c=0"]),
    (
        {
            "Mounts": [
                {
                    "Type": "bind",
                    "Source": "/a,b",
                    "Target": "/c",
                    "ReadOnly": True,
                    "BindOptions": {"Propagation": "rslave", "NonRecursive": True},
                }
            ]
        },
        [
            '--mount=type=bind,"source=/a,b",target=/c,readonly=true,bind-propagation=rslave,bind-nonrecursive=true'
        ],
    ),
    (
        {
            "Mounts": [
                {
                    "Type": "volume",
                    "Source": "v",
                    "Target": "/c",
                    "VolumeOptions": {
                        "NoCopy": True,
                        "Labels": {"l": "1"},
                        "DriverConfig": {"Name": "local", "Options": {"o": "x"}},
                    },
                },
                {"Type": "tmpfs", "Target": "/t", "TmpfsOptions": {"SizeBytes": 9, "Mode": 0o1700}},
            ]
        },
        [
            "--mount=type=volume,source=v,target=/c,volume-nocopy=true,volume-driver=local,volume-label=l=1,volume-opt=o=x",
            "--mount=type=tmpfs,target=/t,tmpfs-size=9,tmpfs-mode=1700",
        ],
    ),
]


@pytest.mark.parametrize("host,words", CASES)
def test_each_setting_of_the_host_side_becomes_its_flag(dockfix, host, words):
    more, missing, recipe = words_for(dockfix, container(host=host))
    assert sorted(more) == sorted(words)
    assert (
        set(missing) <= {"--log-driver=json-file", "--hostname=aaaaaaaaaaaa"}
        and recipe.lost == []
        and recipe.bound == []
        and recipe.command == []
    )


@pytest.mark.parametrize(
    "config,words,command",
    [
        (
            {"User": "1:2", "WorkingDir": "/w", "StopSignal": "9", "StopTimeout": 0},
            ["--user=1:2", "--workdir=/w", "--stop-signal=9", "--stop-timeout=0"],
            [],
        ),
        (
            {"Env": ["PATH=/bin", "A=1", "E="], "Labels": {"made": "here", "x": "y"}},
            ["--env=A=1", "--env=E=", "--label=x=y"],
            [],
        ),
        (
            {"Labels": {"made": "there"}, "ExposedPorts": {"80/tcp": {}, "9/udp": {}}},
            ["--label=made=there", "--expose=9/udp"],
            [],
        ),
        ({"Tty": True, "OpenStdin": True, "StdinOnce": True}, ["--tty", "--interactive"], []),
        ({"OpenStdin": True}, ["--interactive", "--attach=stdout"], []),
        (
            {"Domainname": "d.e", "MacAddress": "02:42:00:00:00:01"},
            ["--domainname=d.e", "--mac-address=02:42:00:00:00:01"],
            [],
        ),
        ({"Cmd": ["-x", "a b"]}, [], ["-x", "a b"]),
        ({"Entrypoint": ["/e"], "Cmd": None}, ["--entrypoint=/e"], []),
        ({"Cmd": None}, ["--entrypoint="], []),
        (
            {"Healthcheck": {"Test": ["CMD-SHELL", "a 'b'"], "Interval": 90 * 10**9, "Retries": 3}},
            ["--health-cmd=a 'b'", "--health-interval=90000000000ns", "--health-retries=3"],
            [],
        ),
        ({"Healthcheck": {"Test": ["NONE"]}}, ["--no-healthcheck"], []),
    ],
)
def test_each_setting_of_the_containers_side(dockfix, config, words, command):
    more, missing, recipe = words_for(dockfix, container(config=config))
    assert (
        sorted(more) == sorted(words)
        and missing == []
        and recipe.command == command
        and recipe.bound == []
        and recipe.lost == []
    )


def test_an_entrypoint_that_the_image_has_can_be_cleared(dockfix):
    image = dict(IMAGE, Entrypoint=["/docker-entrypoint.sh"], Cmd=["run"])
    assert words_for(dockfix, container(config={"Entrypoint": None, "Cmd": ["/bin/sh"]}), image)[
        0
    ] == ["--entrypoint="]
    more, _, recipe = words_for(
        dockfix,
        container(config={"Entrypoint": ["/docker-entrypoint.sh"], "Cmd": ["other"]}),
        image,
    )
    assert more == [] and recipe.command == ["other"]


def test_what_only_an_image_can_carry_is_bound(dockfix):
    doc = container(
        config={
            "Entrypoint": ["/e", "-f"],
            "Cmd": ["x"],
            "Env": ["UNSET"],
            "Shell": ["/bin/ash"],
            "Healthcheck": {"Test": ["CMD", "/h", "a b"]},
        }
    )
    more, _, recipe = words_for(dockfix, doc)
    assert (
        len(recipe.bound) == 4
        and recipe.command == ["-f", "x"]
        and "--entrypoint=/e" in more
        and "--health-cmd=/h 'a b'" in more
    )
    assert not any(
        "UNSET" in word for word in recipe.options
    ), "docker would take the operator's own variable"
    more, _, recipe = words_for(
        dockfix, doc, doc["Config"]
    )  # an image made of the container has all of it
    assert more == [] and recipe.bound == [] and recipe.command == []


def test_a_health_check_without_a_line_is_no_fault_of_the_container(dockfix):
    """docker takes one; only an image made of the container carries it."""
    more, _, recipe = words_for(dockfix, container(config={"Healthcheck": {"Test": ["CMD-SHELL"]}}))
    assert more == [] and recipe.bound == ["a health check without a line"]


def test_an_exported_container_keeps_an_entrypoint_of_several_words(dockfix):
    """docker create takes one word; docker import has been told all of them."""
    doc = container(config={"Entrypoint": ["/e", 'a "b"'], "Cmd": ["-x"]})
    plain = container("plain", "b", config={"Entrypoint": ["/e"], "Cmd": ["-x"]})
    kept = dockfix.Backup(
        "/kept",
        dockfix.Stock([doc, plain], [], [], []),
        {doc["Id"]: "export", plain["Id"]: "export"},
        {},
        [],
        [],
        "2024-01-01T00:00:00Z",
    )
    host = dockfix.make_host()
    host.known.create_knows_pull = True
    imports = dockfix.restore_steps(host, kept, dockfix.Stock([], [], [], []))
    assert [step.argv[1:-1] for step in imports] == [
        ("import", '--change=ENTRYPOINT ["/e", "a \\"b\\""]', "-"),
        ("import", "-"),
    ]
    ref, config = dockfix.image_for_container(kept, doc)
    recipe = dockfix.create_recipe(doc, config, [doc])
    assert ref == imports[0].argv[-1] and recipe.bound == [] and recipe.command == ["-x"]
    assert not any(word.startswith("--entrypoint") for word in recipe.options)


def test_what_has_no_flag_is_named(dockfix):
    doc = container(
        host={
            "KernelMemoryTCP": 5,
            "Cgroup": "x",
            "FieldOfDocker40": {"a": 1},
            "Mounts": [
                {
                    "Type": "bind",
                    "Source": "/s",
                    "Target": "/t",
                    "BindOptions": {"CreateMountpoint": True},
                }
            ],
        },
        config={"New": True},
    )
    lost = words_for(dockfix, doc)[2].lost
    assert sorted(lost) == [
        'Cgroup ("x")',
        "CreateMountpoint of the mount at /t",
        'FieldOfDocker40 ({"a": 1})',
        "KernelMemoryTCP (5)",
        "New (true)",
    ]
    assert "U+FFFD" in words_for(dockfix, container(config={"Env": ["A=\ufffd"]}))[2].lost[0]


HOSTILE = [
    "a\nb",
    "$(touch x)",
    "`id`",
    "';rm -rf /;'",
    '"',
    "--privileged",
    "-v/:/h",
    "\\",
    "%s",
    " ",
    "\t\x1b[31m",
    "\u00e9\u4e2d",
    'a,b"c',
]


@pytest.mark.parametrize("value", HOSTILE)
def test_hostile_values_travel_as_one_word_and_survive_a_shell(dockfix, value):
    doc = container(
        config={
            "Env": ["A=" + value],
            "Labels": {value: value},
            "User": value,
            "Cmd": [value, value],
            "Healthcheck": {"Test": ["CMD-SHELL", value]},
        },
        host={
            "Mounts": [{"Type": "bind", "Source": "/x" + value, "Target": "/t"}],
            "LogConfig": {"Type": "json-file", "Config": {"tag": value}},
        },
    )
    recipe = dockfix.create_recipe(doc, IMAGE, [doc])
    for word in (
        "--env=A=" + value,
        "--label=%s=%s" % (value, value),
        "--user=" + value,
        "--health-cmd=" + value,
        "--log-opt=tag=" + value,
    ):
        assert word in recipe.options
    assert recipe.command == [value, value] and all(
        word.startswith("--") for word in recipe.options
    )
    script = "printf '%s\\0' " + dockfix.quote_line(recipe.options + recipe.command)
    shown = subprocess.run(["sh", "-c", script], stdout=subprocess.PIPE, check=True).stdout
    assert shown.decode("utf-8").split("\0")[:-1] == recipe.options + recipe.command


def test_a_seccomp_profile_goes_by_standard_input(dockfix):
    """inspect shows the profile's text, docker create wants a file."""
    more, _, recipe = words_for(
        dockfix,
        container(host={"SecurityOpt": ["no-new-privileges", 'seccomp={"a":\n1}', "apparmor=x"]}),
    )
    assert (
        more
        == [
            "--security-opt=no-new-privileges",
            "--security-opt=seccomp=/dev/stdin",
            "--security-opt=apparmor=x",
        ]
        and recipe.stdin == '{"a":\n1}'
    )
    assert (
        words_for(dockfix, container(host={"SecurityOpt": ["seccomp=unconfined"]}))[2].stdin == ""
    )


def test_other_containers_are_meant_by_name_for_their_ids_change(dockfix):
    other = container("db", "d")
    doc = container(
        host={
            "NetworkMode": "container:" + "d" * 64,
            "IpcMode": "container:" + "d" * 64,
            "PidMode": "container:elsewhere",
            "VolumesFrom": ["d" * 64 + ":ro", "db"],
        },
        networks={},
    )
    more, missing, _ = words_for(dockfix, doc, others=[other])
    assert {
        "--network=container:db",
        "--ipc=container:db",
        "--pid=container:elsewhere",
        "--volumes-from=db:ro",
        "--volumes-from=db",
    } == set(more)
    assert (
        "--hostname=aaaaaaaaaaaa" in missing
    ), "docker refuses a host name of its own beside another's network"


def test_networks_addresses_and_aliases(dockfix):
    ends = {
        "front": dict(
            END,
            NetworkID="f" * 64,
            Aliases=["w", "a" * 12],
            IPAMConfig={"IPv4Address": "10.0.0.5", "IPv6Address": "fd::5"},
            Links=["db:d"],
            MacAddress="92:00:00:00:00:01",
        ),
        "back": dict(
            END,
            NetworkID="b" * 64,
            Aliases=["w2"],
            IPAMConfig={"IPv4Address": "10.1.0.5"},
            DriverOpts={"k": "v"},
            GwPriority=3,
        ),
    }
    more, _, recipe = words_for(dockfix, container(host={"NetworkMode": "f" * 64}, networks=ends))
    assert set(more) == {
        "--network=front",
        "--network-alias=w",
        "--ip=10.0.0.5",
        "--ip6=fd::5",
        "--link=db:d",
        "--mac-address=92:00:00:00:00:01",
    }
    assert recipe.networks == [
        [
            "network",
            "connect",
            "--alias=w2",
            "--ip=10.1.0.5",
            "--driver-opt=k=v",
            "--gw-priority=3",
            "back",
            "web",
        ]
    ]
    more, _, recipe = words_for(
        dockfix, container(host={"NetworkMode": "gone"}, networks={"back": ends["back"]})
    )
    assert [words[1] for words in recipe.networks] == ["connect", "disconnect"]
    more, _, recipe = words_for(
        dockfix, container(host={"NetworkMode": "back"}, networks={"back": ends["back"]})
    )
    assert "--network=name=back,driver-opt=k=v,gw-priority=3" in more and recipe.networks == []


def test_volumes_keep_their_names_and_none_is_mounted_twice(dockfix):
    source = container(
        "src",
        "s",
        mounts=[{"Type": "volume", "Name": "inherited", "Destination": "/in", "RW": True}],
    )
    mounts = [
        {"Type": "volume", "Name": "named", "Destination": "/n", "RW": False},
        {"Type": "bind", "Source": "/h", "Destination": "/b", "RW": True},
        {"Type": "volume", "Name": "9" * 64, "Destination": "/anon", "RW": True},
        {"Type": "volume", "Name": "inherited", "Destination": "/in", "RW": True},
        {"Type": "volume", "Name": "8" * 64, "Destination": "/asked", "RW": True},
    ]
    doc = container(
        host={
            "Binds": ["named:/n:ro", "/h:/b:z,rslave"],
            "VolumesFrom": ["src"],
            "Mounts": [{"Type": "volume", "Target": "/asked"}],
        },
        mounts=mounts,
    )
    more, _, _ = words_for(dockfix, doc, others=[source])
    assert set(more) == {
        "--volume=named:/n:ro",
        "--volume=/h:/b:z,rslave",
        "--volume=%s:/anon" % ("9" * 64),
        "--volumes-from=src",
        "--mount=type=volume,source=%s,target=/asked" % ("8" * 64),
    }


def test_docker_1_12_shows_fewer_fields(dockfix):
    old = container(
        mounts=[
            {
                "Name": "v" * 64,
                "Source": "/var/lib/docker/volumes/v/_data",
                "Destination": "/d",
                "Driver": "local",
                "Mode": "",
                "RW": True,
            },
            {"Source": "/h", "Destination": "/b", "Mode": "", "RW": False},
        ]
    )
    for key in (
        "CgroupnsMode",
        "Runtime",
        "Mounts",
        "DeviceRequests",
        "NanoCpus",
        "MaskedPaths",
        "Init",
        "DeviceCgroupRules",
    ):
        old["HostConfig"].pop(key, None)
    old["HostConfig"].update(
        Binds=["/h:/b:ro"], MemorySwappiness=-1, OomKillDisable=False, PidsLimit=0, IpcMode=""
    )
    more, missing, recipe = words_for(dockfix, old)
    assert (
        more == ["--volume=/h:/b:ro", "--volume=%s:/d" % ("v" * 64)]
        and missing == ["--cgroupns=host", "--ipc=private", "--runtime=runc"]
        and recipe.lost == []
    )


def test_a_container_that_lost_nothing_is_the_same(dockfix):
    old = container(config={"Env": ["PATH=/bin", "A=1"]}, host={"Memory": 5})
    new = container(
        letter="b",
        config={"Env": ["A=1", "PATH=/bin"], "Image": "other", "Hostname": "aaaaaaaaaaaa"},
        host={"Memory": 5, "Runtime": "runc"},
    )
    assert dockfix.find_lost_settings(old, [old], new, [new]) == []
    new["HostConfig"]["Memory"], new["Config"]["Env"] = 6, ["PATH=/bin"]
    assert sorted(dockfix.find_lost_settings(old, [old], new, [new])) == ["--env=A=1", "--memory=5"]


def test_order_of_dependency(dockfix):
    docs = [
        container(
            "web",
            "1",
            host={"Links": ["/app:/web/app"]},
            state={"StartedAt": "2024-01-01T00:00:01Z"},
        ),
        container(
            "app",
            "2",
            host={"NetworkMode": "container:" + "3" * 64},
            state={"StartedAt": "2024-01-01T00:00:02Z"},
        ),
        container("pod", "3", state={"StartedAt": "2024-01-01T00:00:03Z"}),
        container(
            "data",
            "4",
            host={"VolumesFrom": ["web:ro"]},
            state={"StartedAt": "2024-01-01T00:00:00Z"},
        ),
        container(
            "c-web",
            "5",
            config={
                "Labels": {
                    "com.docker.compose.project": "p",
                    "com.docker.compose.service": "web",
                    "com.docker.compose.depends_on": "db:service_started:false",
                }
            },
            state={"StartedAt": "2023-01-01T00:00:00Z"},
        ),
        container(
            "c-db",
            "6",
            config={
                "Labels": {"com.docker.compose.project": "p", "com.docker.compose.service": "db"}
            },
            state={"StartedAt": "2024-01-01T00:00:09Z"},
        ),
    ]
    names = [one.name for one in dockfix.sort_by_needs(dockfix.parse_containers(docs))]
    for first, then in (("pod", "app"), ("app", "web"), ("web", "data"), ("c-db", "c-web")):
        assert names.index(first) < names.index(then), names
    circle = [
        container("a1", "1", host={"Links": ["/b1:/a1/b"]}),
        container("b1", "2", host={"Links": ["/a1:/b1/a"]}),
    ]
    assert len(dockfix.sort_by_needs(dockfix.parse_containers(circle))) == 2


def test_a_networks_own_command(dockfix):
    doc = {
        "Name": "front",
        "Id": "f" * 64,
        "Scope": "local",
        "Driver": "bridge",
        "EnableIPv6": True,
        "Internal": True,
        "Attachable": False,
        "Ingress": False,
        "IPAM": {
            "Driver": "default",
            "Options": None,
            "Config": [
                {
                    "Subnet": "10.0.0.0/24",
                    "Gateway": "10.0.0.1/24",
                    "IPRange": "10.0.0.128/25",
                    "AuxiliaryAddresses": {"r": "10.0.0.2"},
                }
            ],
        },
        "ConfigFrom": {"Network": ""},
        "ConfigOnly": False,
        "Options": {"com.docker.network.bridge.name": "br9"},
        "Labels": {"a": "b\nc"},
    }
    assert dockfix.network_recipe(doc) == [
        "network",
        "create",
        "--driver=bridge",
        "--internal",
        "--ipv6",
        "--opt=com.docker.network.bridge.name=br9",
        "--label=a=b\nc",
        "--subnet=10.0.0.0/24",
        "--gateway=10.0.0.1",
        "--ip-range=10.0.0.128/25",
        "--aux-address=r=10.0.0.2",
        "front",
    ]
    assert dockfix.network_recipe({"Name": "n", "Driver": "macvlan"}) == [
        "network",
        "create",
        "--driver=macvlan",
        "n",
    ]  # 1.9
    assert dockfix.volume_recipe(
        {"Name": "v", "Driver": "local", "Labels": {"a": "b"}, "Options": {"type": "nfs"}}
    ) == ["volume", "create", "--driver=local", "--label=a=b", "--opt=type=nfs", "--name=v"]


@pytest.mark.parametrize(
    "diff,own",
    [
        ("", False),
        ("C /var\nC /var/lib\nA /var/lib/data\nA /x\n", False),
        ("C /var\nA /var/other\n", True),
        ("D /etc/group\n", True),
        ("A /var/lib/data/inside\n", True),
    ],
)
def test_mount_points_are_no_files_of_the_containers_own(dockfix, diff, own):
    doc = container(mounts=[{"Destination": "/var/lib/data"}, {"Destination": "/x/"}])
    assert dockfix.own_changes(doc, diff) is own


def test_what_a_backup_leaves_out_is_said(dockfix):
    stock = dockfix.Stock(
        [
            container(
                mounts=[
                    {"Type": "bind", "Source": "/srv", "Destination": "/s"},
                    {"Type": "volume", "Name": "v", "Source": "/x", "Destination": "/v"},
                ]
            )
        ],
        [{"Id": "sha256:1", "RepoTags": ["a:1"], "RepoDigests": ["a@sha256:2"]}],
        [
            {"Name": "over", "Driver": "overlay", "Scope": "swarm"},
            {"Name": "host", "Driver": "host", "Scope": "local"},
            {"Name": "bridge", "Driver": "bridge", "Scope": "local"},
        ],
        [
            {"Name": "v", "Driver": "local"},
            {"Name": "nfs", "Driver": "local", "Options": {"device": ":/e"}},
            {"Name": "p", "Driver": "plugin"},
        ],
    )
    said = "\n".join(dockfix.left_out(stock, {"v": dockfix.VolumeFile("volume-1.tar", "x", "/d")}))
    for word in (
        "network over (driver overlay, scope swarm)",
        "volume nfs (driver local, on :/e)",
        "volume p (driver plugin)",
        "the host's /srv, mounted into web",
        "a@sha256:2",
        "what web writes to volume v meanwhile",
        "logs",
    ):
        assert word in said
    assert "network host" not in said and "network bridge" not in said


def test_images_are_saved_by_all_their_tags(dockfix):
    assert dockfix.image_refs(
        [
            {"Id": "sha256:1", "RepoTags": ["a:1", "b:2"]},
            {"Id": "sha256:3", "RepoTags": []},
            {"Id": "sha256:4", "RepoTags": None},
        ]
    ) == ["a:1", "b:2", "sha256:3", "sha256:4"]


def test_containers_are_stopped_side_by_side_those_first_that_need_others(dockfix):
    """Two webs need the cache and the database; what is paused serves nobody and goes first."""
    host = dockfix.make_host()
    containers = dockfix.sort_by_needs(
        dockfix.parse_containers(
            [
                container("web", "a", host={"Links": ["/cache:/web/c"]}),
                container("web2", "d", host={"Links": ["/db:/web2/d"]}),
                container("cache", "e", host={"Links": ["/db:/cache/d"]}),
                container("db", "b"),
                container("alone", "f"),
                container("still", "9", state={"Paused": True}),
                container("off", "c", state={"Running": False}),
            ]
        )
    )
    steps = dockfix.stop_container_steps(host, containers)

    def ids(letters):
        return {letter * 64 for letter in letters}

    assert [(step.argv[1:], set(step.each)) for step in steps] == [
        (("unpause",), ids("9")),
        (("stop",), ids("9")),
        (("stop",), ids("a")),
        (("stop",), ids("de")),
        (("stop",), ids("bf")),
    ]
    begin = dockfix.start_levels(host, containers)
    assert [(step.argv[1:], set(step.each)) for step in begin] == [
        (("start",), ids("bf9")),
        (("start",), ids("de")),
    ]
    later = dockfix.stop_container_steps(host, containers, by_name=True)
    assert [set(step.each) for step in later[2:]] == [{"web"}, {"web2", "cache"}, {"db", "alone"}]
    assert all(step.optional for step in later) and not any(step.optional for step in steps)


@pytest.mark.parametrize(
    "version, held", [("20.10.24", "ad"), ("1.12.6", "ad"), ("1.11.2", "ad"), ("1.10.3", "")]
)
def test_restart_policies_are_held_where_docker_can_change_them(dockfix, version, held):
    """Each comes back as it was; what docker failed to remove has none to hold."""
    host = dockfix.make_host()
    host.known.engine_info = dockfix.EngineInfo(version=version)

    def restart(name, times=0):
        return {"RestartPolicy": {"Name": name, "MaximumRetryCount": times}}

    docs = [
        container("web", "a", host=restart("always")),
        container("plain", "b", host=restart("no")),
        container("dead", "c", host=restart("always"), state={"Dead": True}),
        container("off", "d", host=restart("on-failure", 3), state={"Running": False}),
        container("empty", "e", host={"RestartPolicy": {}}),
        container("nameless", "f", host={"RestartPolicy": {"MaximumRetryCount": 0}}),
    ]
    containers = dockfix.parse_containers(docs)
    steps = dockfix.hold_policies(host, containers)
    ids = [letter * 64 for letter in held]
    assert [step.argv[1:] for step in steps] == [("update", "--restart=no", *ids)] * bool(held)
    back = [("--restart=always", "a" * 64), ("--restart=on-failure:3", "d" * 64)]
    assert [one.argv[2:] for step in steps for one in step.undo] == back[: len(held)]
    assert [one.argv[2:] for one in dockfix.policy_steps(host, containers)] == back[: len(held)]


def test_what_ran_is_started_in_order_and_paused_again(dockfix):
    host = dockfix.make_host()
    containers = dockfix.sort_by_needs(
        dockfix.parse_containers(
            [
                container("web", "a", host={"Links": ["/db:/web/d"]}),
                container("db", "b", state={"Paused": True}),
                container("off", "c", state={"Running": False}),
            ]
        )
    )
    assert [step.argv[1:] for step in dockfix.start_again_steps(host, containers)] == [
        ("start", "db"),
        ("pause", "db"),
        ("start", "web"),
    ]


def test_a_volume_is_not_taken_for_the_network_of_its_name(dockfix):
    """compose and hands alike give both one name; a volume that is taken to be there already would
    come back empty."""
    host = dockfix.make_host()
    network = {"Name": "web", "Driver": "bridge", "Scope": "local", "Id": "n"}
    stock = dockfix.Stock(
        [],
        [{"Id": "sha256:1", "RepoTags": ["a:1"]}],
        [network],
        [{"Name": "web", "Driver": "local"}],
    )
    kept = dockfix.Backup(
        "/kept",
        stock,
        {},
        {"web": dockfix.VolumeFile("volume-1.tar", "h", "/dockfix-1/data")},
        [],
        [],
        "2024-01-01T00:00:00Z",
    )
    host.known.create_knows_pull = True  # what the client knows
    titles = [
        [step.title for step in dockfix.restore_steps(host, kept, dockfix.Stock([], [], *have))]
        for have in (([network], []), ([], stock.volumes))
    ]
    assert titles == [
        [
            "volume web",
            "no container has the new volumes",
            "image for the helper",
            "container dockfix.helper-20240101T000000",
            "content of volume web",
            "remove container dockfix.helper-20240101T000000",
            "remove image dockfix/backup:helper-20240101T000000",
        ],
        ["network web"],
    ]


# ---------------------------------------------------------------------- folders


@pytest.fixture
def folder(box, dockfix):
    """A complete, small backup."""
    os.mkdir(box.at("kept"), 0o700)
    stock = dockfix.Stock(
        [container()],
        [{"Id": "sha256:" + "1" * 64, "RepoTags": ["img:latest"], "Config": IMAGE}],
        [],
        [{"Name": "v", "Driver": "local"}],
    )
    kept = dockfix.Backup(
        box.at("kept"),
        stock,
        {"a" * 64: ""},
        {"v": dockfix.VolumeFile("volume-1.tar", "h", "/dockfix-1/data")},
        ["images.tar"],
        ["the containers' logs"],
        "2024-01-01T00:00:00Z",
    )
    for name, docs in zip(dockfix.STOCK_FILES, stock):
        box.file("kept/" + name, json.dumps(docs).encode())
    images = make_archive.Classic()
    images.add(["img:latest"], [make_archive.layer("img")])
    box.file("kept/images.tar", make_archive.tar(images.all_members()))
    box.file("kept/volume-1.tar", make_archive.volume([("data/f", b"x" * 100000)]))
    for name in kept.files():
        with open(box.at("kept", name), "rb") as data:
            box.file(
                "kept/%s.sha256" % name,
                subprocess.run(
                    ["sha256sum"], stdin=data, stdout=subprocess.PIPE, check=True
                ).stdout,
            )
    seal(dockfix, kept)
    return box.at("kept")


def seal(dockfix, kept):
    host = dockfix.make_host()
    step = dockfix.seal_step(host, kept, lossy=True)
    dockfix.TASKS[step.task](host, json.loads(step.data), lambda done: None)


def test_a_whole_backup_verifies(box, folder):
    result = box.run("backup", "--verify", folder, "--json")
    assert (
        result.rc == 0
        and set(result.statuses().values()) == {"unchanged"}
        and len(result.statuses()) == 6
    )


@pytest.mark.parametrize(
    "name", ["images.tar", "volume-1.tar", "containers.json", "images.tar.sha256"]
)
def test_one_flipped_byte_is_found(box, folder, name):
    with open(os.path.join(folder, name), "r+b") as f:
        first = f.read(1)
        f.seek(0)
        f.write(b" " if first != b" " else b"x")
    result = box.run("backup", "--verify", folder, "--json")
    if name == "containers.json":  # it names the others: a backup that is not understood
        assert result.rc == 5
        return
    failed = [target for target, status in result.statuses().items() if status == "failed"]
    assert result.rc == 1 and failed == [name.replace(".sha256", "")]
    for command in ("images", "network", "volume"):
        box.rule(command, out=b"")
    result = box.run("restore", "-y", folder)
    assert result.rc == 5 and not any(
        call.command in ("load", "create", "cp", "volume create") for call in box.calls()
    ), result
    assert not any(call.words[:2] == ["volume", "create"] for call in box.calls())


def write_text(path, text):
    with open(path, "w") as f:
        f.write(text)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda at: os.unlink(at("manifest.json")),
        lambda at: os.unlink(at("images.tar")),
        lambda at: os.unlink(at("networks.json")),
        lambda at: write_text(at("manifest.json"), ""),
        lambda at: write_text(at("containers.json"), "[1]"),
        lambda at: write_text(at("manifest.json"), "[]"),
        lambda at: write_text(
            at("manifest.json"), json.dumps({"schema": "dockfix-backup/9", "dockfix": "9.9"})
        ),
        lambda at: write_text(
            at("manifest.json"),
            json.dumps(
                {
                    "schema": "dockfix-backup/2",
                    "own": {},
                    "volumes": {"v": ["../../etc/shadow", "h", "/d"]},
                    "loads": [],
                    "left_out": [],
                    "made": "",
                }
            ),
        ),
        lambda at: write_text(at("manifest.json"), "[" * 100000),
    ],
)
@pytest.mark.parametrize("words", [("restore", "-y"), ("backup", "--verify")])
def test_what_is_no_whole_backup_is_refused(box, folder, spoil, words):
    spoil(lambda name: os.path.join(folder, name))
    result = box.run(*((*words, folder, "--json")))
    assert result.rc == 5 and folder in result.json["errors"][0]["msg"] and not box.calls()


def test_a_backup_of_another_format_names_both(box, folder):
    with open(os.path.join(folder, "manifest.json"), "w") as f:
        json.dump({"schema": "dockfix-backup/1", "dockfix": "0.1.0"}, f)
    assert (
        "is a dockfix-backup/1, this dockfix reads dockfix-backup/2"
        in box.run("restore", "-y", folder, "--json").json["errors"][0]["msg"]
    )


# ---------------------------------------------------------------------- whole commands


@pytest.fixture
def stock(box):
    """The fake docker with one container, one image, no network of its own, one volume."""
    box.container(
        "web",
        inspect={
            "Config": dict(CONFIG),
            "HostConfig": dict(HOST),
            "NetworkSettings": {"Networks": {"bridge": END}},
            "State": {"Running": True, "Pid": 0},
        },
    )
    image = {"Id": "sha256:" + "1" * 64, "RepoTags": ["img:latest"], "Config": IMAGE, "Size": 5000}
    box.rule("inspect", has="image", out=json.dumps([image]).encode())
    for command, has, out in (
        ("images", "-q", image["Id"].encode()),
        ("images", "", b""),
        ("network", "", b""),
        ("volume", "inspect", json.dumps([{"Name": "v", "Driver": "local"}]).encode()),
        ("volume", "ls", b"v\n"),
        ("system", "", b"Images\t5kB\nContainers\t1kB\nLocal Volumes\t2kB\n"),
        ("diff", "", b"A /own\n"),
    ):
        box.rule(command, has=has, out=out)
    return box


def test_a_dry_backup_names_each_step_and_does_none(stock, tmp_path):
    result = stock.quick("backup", "-n", str(tmp_path / "kept"))
    text = result.out.decode()
    assert result.rc == 0 and not (tmp_path / "kept").exists() and not os.path.exists(stock.state)
    made = (
        re.search('"made": "([^"]+)"', text).group(1).translate({ord(c): None for c in "-:Z"})
    )  # a name of its own for each backup: what is there was made for it
    tag, helper = (
        "dockfix/backup:web-%s-%s" % (stock.id("web")[:12], made),
        "dockfix.helper-" + made,
    )
    for words in (
        "docker commit %s %s" % (stock.id("web"), tag),
        '"refs": ["img:latest"]',
        "backup --step save-images",
        "--volume=v:/dockfix-1/data:nocopy",
        "docker cp %s:/dockfix-1/data -" % helper,
        "docker rmi " + tag,
        "docker rm -f -v " + helper,
        "manifest.json",
    ):
        assert words in text, text
    assert text.rindex("manifest.json") > text.rindex("sha256sum") and {
        call.command for call in stock.calls() if call.words != ["create", "--help"]
    } <= {"ps", "inspect", "images", "network", "volume", "system", "info", "diff"}


@pytest.mark.parametrize("used,tight", [("107.0GB", True), ("97.0GB", True), ("90.0GB", False)])
def test_a_pool_below_its_minimum_is_seen_beforehand(stock, tmp_path, used, tight):
    stock.world["info_json"] = json.dumps(
        {
            "Driver": "devicemapper",
            "DockerRootDir": "/var/lib/docker",
            "SecurityOptions": [],
            "DriverStatus": [
                ["Pool Name", "p"],
                ["Data Space Used", used],
                ["Data Space Total", "107.4GB"],
                ["Thin Pool Minimum Free Space", "10.74GB"],
            ],
        }
    )
    text = stock.quick("backup", "-n", str(tmp_path / "kept")).out.decode()
    unasked = "if ! { lacks %s " % stock.id(
        "web"
    )  # only where docker save has not written its image
    assert (
        "docker export " + stock.id("web") in text
        and (unasked in text) is not tight
        and ("docker commit" in text) is not tight
        and ("docker create" in text) is not tight
    )


def test_too_little_space_is_said_with_both_figures(stock, tmp_path):
    stock.world["rules"] = [
        dict(rule, out=b"Images\t900TB\n") if rule["on"] == "system" else rule
        for rule in stock.world["rules"]
    ]
    result = stock.quick("backup", str(tmp_path / "kept"), "--json")
    assert (
        result.rc == 5
        and "818.5 TiB" in result.json["errors"][0]["msg"]
        and not (tmp_path / "kept").exists()
    )


@pytest.mark.parametrize(
    "options, code", [("rw,fmask=0022,dmask=0022,codepage=437", 5), ("rw,fmask=0177,dmask=0077", 0)]
)
def test_a_usb_stick_with_vfat_must_be_for_root_alone(stock, tmp_path, options, code):
    stick = [("8:1", "/", str(tmp_path), "vfat", "/dev/sdb1", tuple(options.split(",")))]
    result = stock.quick(
        "backup",
        "-n",
        "--json",
        str(tmp_path / "kept"),
        prelude=lambda module: setattr(
            module, "mounts_of", lambda pid="self": [module.Mount(*one) for one in stick]
        ),
    )
    assert result.rc == code and not (tmp_path / "kept").exists()
    assert (
        code == 0
        or "umount %s, then mount it with -o fmask=0177,dmask=0077" % tmp_path
        in result.json["errors"][0]["hint"]
    )


def test_a_file_that_may_not_be_closed_to_others_is_told(dockfix, tmp_path, monkeypatch):
    def refuse(*words):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(dockfix.os, "fchmod", refuse)
    with pytest.raises(
        dockfix.EnvironmentFault, match="some cannot be opened: Operation not permitted"
    ):
        dockfix.open_flow(dockfix.Flow(target=str(tmp_path / "some")))
    assert not list(tmp_path.iterdir())


def test_only_root_and_only_one_folder(stock, tmp_path):
    result = stock.quick(
        "backup",
        str(tmp_path / "kept"),
        prelude=lambda module: setattr(module.os, "geteuid", lambda: 1000),
    )
    assert result.rc == 6 and b"only root" in result.err
    assert (
        stock.quick("backup").rc == 2
        and stock.quick("backup", "a", "b").rc == 2
        and stock.quick("restore").rc == 2
    )


def test_a_restore_asks_first(stock, folder):
    stock.world["containers"][:] = []
    stock.world["rules"] = [rule for rule in stock.world["rules"] if rule["on"] != "volume"] + [
        {"on": "volume", "out": b""}
    ]
    result = stock.run("restore", folder, "--json")
    assert (
        result.rc == 5
        and "confirmed" in result.json["errors"][0]["msg"]
        and not any(call.command in ("load", "create", "cp") for call in stock.calls())
    )


def test_the_script_of_a_restore_hands_hostile_settings_on(dockfix, box, folder):
    """The words that docker gets from sh are those that the recipe has, and the profile comes by
    standard input."""
    doc = container(
        config={
            "Env": ["PATH=/bin"] + ["V%d=%s" % pair for pair in enumerate(HOSTILE)],
            "Cmd": HOSTILE,
        },
        host={"SecurityOpt": ['seccomp={"a":\n1}']},
    )
    box.file("kept/containers.json", json.dumps([doc]).encode())
    for command in ("images", "network", "volume"):
        box.rule(command, out=b"")
    fake_engine.install(box, "28")
    result = box.run("restore", "-n", folder)
    assert result.rc == 0, result
    assert os.listdir(box.at("engine", "containers")) == []
    done = subprocess.run(
        ["sh"], input=result.out, env=box.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    recipe = dockfix.create_recipe(doc, IMAGE, [doc])
    assert done.returncode == 0, done
    made = made_container(box, "web")
    assert made["argv"] == ["create", "--pull=never", *recipe.options, "img", *recipe.command]
    assert made["stdin"] == '{"a":\n1}' and os.listdir(box.at("engine", "containers")) == ["web"]
    assert os.listdir(box.at("engine", "volumes", "v")) == ["f"]


def made_container(box, name):
    with open(box.at("engine", "containers", name, "json")) as f:
        return json.load(f)


# ---------------------------------------------------------------------- volumes come back, or it is
# said


VOLUME = [
    make_archive.special("data/d", tarfile.DIRTYPE, mode=0o2750, uid=5, gid=6),
    ("data/d/f", b"hello"),
    make_archive.special("data/h", tarfile.LNKTYPE, "data/d/f"),
    make_archive.special("data/s", tarfile.SYMTYPE, "/nowhere"),
    ("data/" + "long" * 60, b"x" * 700),
]


def put_volume(box, members, root=None):
    """The backup's container has the volume v, whose content is this."""
    mount = {"Type": "volume", "Name": "v", "Destination": "/v", "RW": True}
    doc = container(host={"Binds": ["v:/v"]}, mounts=[mount])
    os.makedirs(box.at("engine", "docs"), exist_ok=True)
    box.file("engine/docs/web", json.dumps(doc).encode())
    put_sum(box, "containers.json", json.dumps([doc]).encode())
    data = make_archive.volume(members, root)
    put_sum(box, "volume-1.tar", data)


def put_sum(box, name, data):
    box.file("kept/" + name, data)
    box.file("kept/%s.sha256" % name, (make_archive.sha(data) + "  -\n").encode())


def volume_now(box, name="v"):
    """{path: kind, mode, owner, content} of a volume of the played engine."""
    found = {}
    for folder, folders, files in os.walk(box.at("engine", "volumes", name)):
        for one in ["", *folders, *files]:
            path = os.path.join(folder, one)
            info = os.lstat(path)
            content = os.readlink(path) if os.path.islink(path) else ""
            if os.path.isfile(path) and not os.path.islink(path):
                with open(path, "rb") as f:
                    content = f.read()
            key = os.path.relpath(path, box.at("engine", "volumes", name))
            found[key] = (oct(info.st_mode), info.st_uid, info.st_gid, content)
    return found


@pytest.mark.parametrize("make", ["1.12", "28"])
def test_a_volume_is_filled_on_an_engine_that_does_not_see_mounts_and_on_one_that_does(
    box, folder, make
):
    """Before 1.13 docker cp puts what is for the folder above a mount into the container's own
    layer."""
    fake_engine.install(box, make)
    root = make_archive.special("data", tarfile.DIRTYPE, mode=0o750, uid=77, gid=88)
    put_volume(box, VOLUME, root)
    result = box.run("restore", "-y", "--json", folder)
    assert result.rc == 0, result
    found = volume_now(box)
    assert found["."][:3] == ("0o40750", 77, 88) and found["d"][:3] == ("0o42750", 5, 6)
    assert found["d/f"] == found["h"] == ("0o100644", 0, 0, b"hello")
    assert found["s"][3] == "/nowhere" and found["long" * 60][3] == b"x" * 700 and len(found) == 6
    assert os.path.samefile(
        box.at("engine", "volumes", "v", "h"), box.at("engine", "volumes", "v", "d", "f")
    )
    assert os.listdir(box.at("engine", "containers")) == ["web"]
    assert os.listdir(box.at("engine", "images")) == ["img:latest"]


def test_a_bit_that_an_old_engine_cannot_set_is_said(box, folder):
    root = make_archive.special("data", tarfile.DIRTYPE, mode=0o2750, uid=77, gid=88)
    put_volume(box, VOLUME, root)
    fake_engine.install(box, "1.12")
    result = box.run("restore", "-y", folder)
    assert result.rc == 0 and b"cannot set the mode 2750 of ." in result.err, result
    assert volume_now(box)["."][0] == "0o40750"


@pytest.mark.parametrize(
    "wrong, words",
    [
        (": > $AT/d/f", b"d/f differs"),
        ("rm $AT/s", b"s is missing"),
        ("touch $AT/more", b"more was not in the backup"),
        ("rm -r $AT/d $AT/h $AT/s $AT/long*", b"and 2 more is missing"),
    ],
)
def test_what_does_not_read_back_as_it_was_is_never_called_filled(box, folder, wrong, words):
    put_volume(box, VOLUME)
    fake_engine.install(box, "28")
    with open(box.at("bin", "docker")) as f:
        box.program("docker-inner", f.read().split("\n", 1)[1])
    box.program(
        "docker",
        'docker-inner "$@"; rc=$?; AT=%s\ncase "$*" in \'cp - \'*/data) %s;; esac; exit $rc\n'
        % (box.at("engine", "volumes", "v"), wrong),
    )
    result = box.run("restore", "-y", "--json", folder)
    assert result.rc == 1 and words in result.err and b"all of it is undone" in result.out, result
    assert os.listdir(box.at("engine", "volumes")) == []
    assert os.listdir(box.at("engine", "containers")) == []


def test_a_second_restore_fills_what_an_earlier_one_has_left_empty(box, folder):
    put_volume(box, VOLUME)
    fake_engine.install(box, "1.12")
    assert box.run("restore", "-y", folder).rc == 0
    whole, at = volume_now(box), box.at("engine", "volumes", "v")
    subprocess.run(["sh", "-c", "rm -r %s/*" % at], check=True)
    result = box.run("restore", "-y", folder)
    assert result.rc == 0 and b"docker restart web" in result.err, result
    assert volume_now(box) == whole
    # what somebody has put there is never written, nor is a volume touched that has all
    for keep in ("rm -r %s/*; echo mine > %s/own" % (at, at), "rm -r %s/*; mkdir %s/d" % (at, at)):
        subprocess.run(["sh", "-c", keep], check=True)
        before = volume_now(box)
        assert box.run("restore", "-y", folder).rc == 0 and volume_now(box) == before


def test_an_empty_volume_that_this_backup_has_nothing_for_stays_empty(box, folder):
    put_volume(box, [])
    fake_engine.install(box, "28")
    for _ in range(2):
        result = box.run("restore", "-y", folder)
        assert result.rc == 0 and list(volume_now(box)) == ["."], result


@pytest.mark.parametrize("name", ["/etc/x", "data/../../x", ".."])
def test_a_tar_that_leads_out_of_its_volume_is_not_unpacked(box, folder, name):
    put_volume(box, [(name, b"x")])
    fake_engine.install(box, "28")
    result = box.run("restore", "-y", "--json", folder)
    assert result.rc == 1 and b"leads out of the volume" in result.out, result
    assert os.listdir(box.at("engine", "volumes")) == []


# ---------------------------------------------------------------------- nothing is pulled


@pytest.mark.parametrize("make", ["1.12", "28"])
@pytest.mark.parametrize("script", [False, True])
def test_an_image_that_is_not_there_is_never_pulled(box, folder, make, script):
    """The archive is whole, but docker has not brought the image: docker create would ask a
    registry."""
    fake_engine.install(box, make)
    with open(box.at("bin", "docker")) as f:
        box.program("docker-inner", f.read().split("\n", 1)[1])
    box.program("docker", '[ "$1" != load ] || exec cat\nexec docker-inner "$@"\n')
    if script:
        dry = box.run("restore", "-n", folder)
        done = subprocess.run(["sh"], input=dry.out, env=box.env, stdout=subprocess.DEVNULL)
        assert dry.rc == 0 and done.returncode == 3
    else:
        result = box.run("restore", "-y", "--json", folder)
        assert result.rc == 3, result
        assert result.statuses() == {"restore": "changed", "web": "failed"}
    assert not os.path.exists(box.at("engine", "pulled"))
    assert os.listdir(box.at("engine", "containers")) == []
    assert "f" in volume_now(box), "the rest is there"


# ---------------------------------------------------------------------- what docker save has not
# written


def images_tar(*tags):
    made = make_archive.Classic()
    for tag in tags:
        made.add([tag], [make_archive.layer(tag)])
    return made


def put_images(box, members):
    put_sum(box, "images.tar", make_archive.tar(members))


def test_an_older_backup_whose_images_lack_a_layer_is_not_called_whole(box, folder):
    made = images_tar("img:latest")
    put_images(box, [one for one in made.all_members() if one[0] != made.entries[0]["Layers"][0]])
    result = box.run("backup", "--verify", "--json", folder)
    rows = {row["target"]: row for row in result.json["results"]}
    assert result.rc == 3 and rows["img:latest"]["status"] == rows["web"]["status"] == "failed"
    assert "layer " in rows["web"]["msg"] and rows["images.tar"]["status"] == "unchanged"
    fake_engine.install(box, "28")
    result = box.run("restore", "-y", "--json", folder)
    assert result.rc == 3, result
    statuses = {"restore": "changed", "img:latest": "failed", "web": "failed"}
    assert result.statuses() == statuses
    assert b"not in the backup: web: its image: layer" in result.err
    assert os.listdir(box.at("engine", "containers")) == []


def put_first(box, command, **rule):
    box.world["rules"].insert(0, dict(rule, on=command))


def saved(box, *archives):
    """`docker save` answers with these, one after the other."""
    for number, members in enumerate(archives, 1):
        put_first(box, "save", nth=number, out=make_archive.tar(members))


@pytest.fixture
def plain(stock):
    """A container without files of its own, no volume."""
    stock.world["rules"] = [
        rule for rule in stock.world["rules"] if rule["on"] not in ("diff", "volume", "system")
    ]
    stock.rule("diff", out=b"")
    stock.rule("volume", out=b"")
    stock.rule("export", out=b"exported")
    stock.rule("system", out=b"Images\t1kB\n")
    image = "sha256:" + "1" * 64
    doc = json.loads(stock.world["containers"][0]["json"])
    stock.world["containers"][0]["json"] = json.dumps(dict(doc, Image=image))
    return stock


def kept_manifest(at):
    with open(os.path.join(str(at), "manifest.json")) as f:
        return json.load(f)


def test_a_whole_archive_makes_a_complete_backup(plain, tmp_path):
    saved(plain, images_tar("img:latest").all_members())
    result = plain.run("backup", "--json", str(tmp_path / "kept"))
    made = kept_manifest(tmp_path / "kept")
    assert result.rc == 0 and result.statuses() == {"backup": "changed"}, result
    assert made["lacks"] == [] and made["loads"] == ["images.tar"] and not plain.calls("export")
    assert not (tmp_path / "kept" / "lacking.json").exists()
    assert plain.run("backup", "--verify", str(tmp_path / "kept")).rc == 0


def test_a_layer_that_docker_save_has_not_written_makes_an_export(plain, tmp_path):
    """Exit 0, and no layer (moby#49784): the container is kept by its whole tree, the image is
    named."""
    made = images_tar("img:latest")
    lacking = [one for one in made.all_members() if one[0] != made.entries[0]["Layers"][0]]
    saved(plain, lacking)
    at = str(tmp_path / "kept")
    result = plain.run("backup", "--json", at)
    ident = plain.id("web")
    assert result.rc == 3, result
    rows = {row["target"]: row for row in result.json["results"]}
    assert rows["img:latest"]["status"] == "failed" and "layer" in rows["img:latest"]["msg"]
    assert rows["backup"]["msg"].startswith("not complete")
    assert kept_manifest(at)["own"] == {ident: "export"} and kept_manifest(at)["loads"] == []
    assert sorted(name for name in os.listdir(at) if name.endswith(".tar")) == [
        "export-%s.tar" % ident
    ]
    verified = plain.run("backup", "--verify", "--json", at)
    assert verified.rc == 3 and verified.statuses()["img:latest"] == "failed"


def test_the_images_that_are_whole_stay_in_the_archive(plain, tmp_path):
    other = {"Id": "sha256:" + "2" * 64, "RepoTags": ["good:1"], "Config": {}, "Size": 1}
    image = {"Id": "sha256:" + "1" * 64, "RepoTags": ["img:latest"], "Config": IMAGE, "Size": 1}
    put_first(plain, "inspect", has="image", out=json.dumps([image, other]).encode())
    both = images_tar("img:latest", "good:1")
    lacking = [one for one in both.all_members() if one[0] != both.entries[0]["Layers"][0]]
    saved(plain, lacking, images_tar("good:1").all_members())
    at = str(tmp_path / "kept")
    result = plain.run("backup", "--json", at)
    assert result.rc == 3 and kept_manifest(at)["loads"] == ["images.tar"], result
    assert [call.words for call in plain.calls("save")] == [
        ["save", "img:latest", "good:1"],
        ["save", "good:1"],
    ]
    assert result.statuses() == {"backup": "changed", "img:latest": "failed"}


def test_the_script_of_a_backup_judges_the_same(plain, tmp_path):
    made = images_tar("img:latest")
    lacking = [one for one in made.all_members() if one[0] != made.entries[0]["Layers"][0]]
    saved(plain, lacking)
    at = str(tmp_path / "kept")
    dry = plain.run("backup", "-n", at)
    assert dry.rc == 0 and not os.path.exists(at) and not plain.calls("save")
    done = subprocess.run(["sh"], input=dry.out, env=plain.env, stdout=subprocess.DEVNULL)
    assert done.returncode == 3 and kept_manifest(at)["own"] == {plain.id("web"): "export"}
    assert plain.run("backup", "--verify", at).rc == 3


def test_a_container_that_neither_commit_nor_export_keeps_is_failed_and_the_rest_stays(
    plain, tmp_path
):
    plain.world["rules"] = [
        rule for rule in plain.world["rules"] if rule["on"] not in ("diff", "export")
    ]
    plain.rule("diff", out=b"A /own\n")
    plain.rule("export", rc=1, err=b"Error response from daemon: layer gone\n")
    plain.rule("commit", rc=1, err=b"Error response from daemon: max depth exceeded\n")
    put_first(plain, "inspect", has="dockfix/backup", rc=1, err=b"Error: No such image\n")
    plain.rule("version", out=b"20.10\n")
    saved(plain, images_tar("img:latest").all_members())
    at = str(tmp_path / "kept")
    result = plain.run("backup", "--json", at)
    assert result.rc == 3 and result.statuses() == {"backup": "changed", "web": "failed"}, result
    assert b"max depth exceeded" in result.err and b"layer gone" in result.err
    assert kept_manifest(at)["loads"] == ["images.tar"]
    assert kept_manifest(at)["own"] == {plain.id("web"): "lost"}


def test_a_volume_that_cannot_be_read_is_failed_and_the_rest_stays(plain, tmp_path):
    plain.world["rules"] = [rule for rule in plain.world["rules"] if rule["on"] != "volume"]
    volumes = [{"Name": name, "Driver": "local"} for name in ("bad", "good")]
    plain.rule("volume", has="inspect", out=json.dumps(volumes).encode())
    plain.rule("volume", has="ls", out=b"bad\ngood\n")
    plain.rule(
        "cp", has="/dockfix-1/", rc=1, err=b"Error response from daemon: input/output error\n"
    )
    plain.rule("cp", has="/dockfix-2/", out=make_archive.volume([("data/f", b"x")]))
    saved(plain, images_tar("img:latest").all_members())
    at = str(tmp_path / "kept")
    plain.rule("version", out=b"20.10\n")

    # the container that carries the volumes is there and gone as asked
    def everything_exists(module):
        module.exists_test = lambda *words: ("ok", "true")

    result = plain.run("backup", "--json", at, prelude=everything_exists)
    assert result.rc == 3, result
    assert result.statuses() == {"backup": "changed", "volume bad": "failed"}
    assert b"input/output error" in result.err
    assert list(kept_manifest(at)["volumes"]) == ["good"]
    assert sorted(name for name in os.listdir(at) if name.startswith("volume-")) == [
        "volume-2.tar",
        "volume-2.tar.sha256",
    ]
    verified = plain.run("backup", "--verify", "--json", at)
    assert verified.rc == 3 and verified.statuses()["volume bad"] == "failed"


def test_a_save_that_fails_finds_the_image_that_is_the_reason(plain, tmp_path):
    other = {"Id": "sha256:" + "2" * 64, "RepoTags": ["good:1"], "Config": {}, "Size": 1}
    image = {"Id": "sha256:" + "1" * 64, "RepoTags": ["img:latest"], "Config": IMAGE, "Size": 1}
    put_first(plain, "inspect", has="image", out=json.dumps([image, other]).encode())
    put_first(plain, "save", has="good:1", out=make_archive.tar(images_tar("good:1").all_members()))
    put_first(plain, "save", has="img:latest", rc=1, err=b"content digest: not found\n")
    at = str(tmp_path / "kept")
    result = plain.run("backup", "--json", at)
    assert result.rc == 3, result
    assert result.statuses() == {"backup": "changed", "img:latest": "failed"}
    assert kept_manifest(at)["own"] == {plain.id("web"): "export"}
    put_first(plain, "save", rc=1, err=b"no space left on device\n")
    plain.world["rules"] = [rule for rule in plain.world["rules"] if rule.get("has") != "good:1"]
    result = plain.run("backup", "--json", at + "2")
    assert result.rc == 3 and kept_manifest(at + "2")["loads"] == [], result


# ---------------------------------------------------------------------- one odd container, and
# links


def test_links_with_and_without_an_alias(dockfix):
    ends = {"n1": dict(END, Links=["db", "x:y"]), "n2": dict(END, Links=["db"])}
    doc = container(host={"NetworkMode": "n1"}, networks=ends)
    more, _, recipe = words_for(dockfix, doc)
    assert {"--link=db:db", "--link=x:y"} <= set(more)
    assert recipe.networks == [["network", "connect", "--link=db:db", "n2", "web"]]
    doc = container(host={"Links": ["/db:/web/d", "/db:/web/db"]})
    assert words_for(dockfix, doc)[0] == ["--link=db:d", "--link=db:db"]
    web, database = dockfix.parse_containers([container(networks=ends), container("db", "b")])
    assert dockfix.find_needs(web, [database]) == ["b" * 64]


ODD = [
    lambda doc: doc["NetworkSettings"].update(Networks={"n": {"Links": [7]}}),
    lambda doc: doc.update(HostConfig=None),
    lambda doc: doc["HostConfig"].update(Ulimits=[{"Name": 1}]),
    lambda doc: doc.update(Mounts=[{"Type": "bind"}]),
    lambda doc: doc.pop("Name"),
    lambda doc: doc.update(State="up"),
    lambda doc: doc.update(Image=None),
]


@pytest.mark.parametrize("spoil", ODD)
def test_one_odd_container_does_not_end_the_backup_of_the_others(plain, tmp_path, spoil):
    plain.container("odd", inspect={})
    doc = json.loads(plain.world["containers"][0]["json"])
    doc.update(Id=plain.id("odd"), Name="/odd")
    spoil(doc)
    plain.world["containers"][1]["json"] = json.dumps(doc)
    saved(plain, images_tar("img:latest").all_members())
    at = str(tmp_path / "kept")
    result = plain.run("backup", "--json", at)
    assert result.rc == 3 and result.statuses() == {"backup": "changed", "odd": "failed"}, result
    assert list(kept_manifest(at)["own"]) == [plain.id("web")]
    dry = plain.run("backup", "-n", at + "2")
    assert dry.rc == 3 and b"# not in the backup: odd: " in dry.out


def test_a_container_that_docker_cannot_show_does_not_end_it_either(plain, tmp_path):
    """`docker inspect` of one whose layer is lost fails, and with it that of all."""
    plain.container("odd", inspect={})
    said = b"Error response from daemon: RWLayer of container is unexpectedly nil\n"
    put_first(plain, "inspect", has=plain.id("odd"), rc=1, out=b"[]\n", err=said)
    saved(plain, images_tar("img:latest").all_members())
    result = plain.run("backup", "--json", str(tmp_path / "kept"))
    rows = {row["target"]: row for row in result.json["results"]}
    assert result.rc == 3 and "RWLayer" in rows["odd"]["msg"], result
    assert list(kept_manifest(tmp_path / "kept")["own"]) == [plain.id("web")]


def test_a_project_without_services_makes_no_order(dockfix):
    labels = {"Labels": {"com.docker.compose.project": "p"}}
    pair = [container("web", "a", config=labels), container("db", "b", config=labels)]
    web, database = dockfix.parse_containers(pair)
    assert dockfix.find_needs(web, [web, database]) == []
