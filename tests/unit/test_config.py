"""The configuration: what is in it, and a clear error for everything that is not understood."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentwatch import config, config_tables
from agentwatch.errors import ConfigError

PATH = Path("/etc/agentwatch/test.toml")
ROOT = 'cgroup_root = "/sys/fs/cgroup"\n'


def parse(text: str) -> config.Config:
    return config.parse(ROOT + text, PATH)


def test_the_documented_file_is_understood() -> None:
    read = config.parse(
        """
        log_dir = "/var/log/aw"
        state_dir = "/var/lib/aw/"
        run_dir = "/run/aw"
        pin_dir = "/sys/fs/bpf/aw"
        cgroup_root = "/sys/fs/cgroup"
        watch = "/agents.slice/"
        ring_bytes = 1048576
        reader_group = "auditors"
        canary_seconds = 0

        [tls]
        first_use = "hold"
        scan = ["/usr/lib/", "/opt/./app/../venv"]

        [[agent]]
        name = "agent-backfill"
        cgroup = "agents.slice/agent-backfill*"
        [[agent]]
        name = "other.1"
        cgroup = "/agents.slice/other"
        """,
        PATH,
    )
    assert read == config.Config(
        log_dir=Path("/var/log/aw"),
        state_dir=Path("/var/lib/aw"),
        run_dir=Path("/run/aw"),
        pin_dir=Path("/sys/fs/bpf/aw"),
        cgroup_root=Path("/sys/fs/cgroup"),
        watch="agents.slice",
        ring_bytes=1048576,
        reader_group="auditors",
        canary_seconds=0,
        tls=config_tables.TlsConfig(first_use="hold", scan=(Path("/usr/lib"), Path("/opt/venv"))),
        agents=(
            config.AgentConfig("agent-backfill", "agents.slice/agent-backfill*"),
            config.AgentConfig("other.1", "agents.slice/other"),
        ),
        path=PATH,
    )
    assert read.watch_path == Path("/sys/fs/cgroup/agents.slice")


@pytest.mark.parametrize("text", ["", "[tls]", '[tls]\nfirst_use = "declare"', '[tls]\nscan = ["/usr", "/opt"]'])
def test_without_a_word_on_tls_libraries_are_looked_for_where_they_are_installed(text: str) -> None:
    assert parse(text).tls == config_tables.TlsConfig(first_use="declare", scan=(Path("/usr"), Path("/opt")))


def test_each_key_of_tls_can_stand_alone() -> None:
    assert parse('[tls]\nfirst_use = "hold"').tls == config_tables.TlsConfig("hold")
    assert parse('[tls]\nscan = ["/srv"]').tls == config_tables.TlsConfig("declare", (Path("/srv"),))
    assert parse("[tls]\nscan = []").tls == config_tables.TlsConfig("declare", ())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("log_dir = ", "not valid TOML"),
        ("tls = true", "written as [tls]"),
        ('[[tls]]\nfirst_use = "hold"', "written as [tls]"),
        ('[tls]\nfirst = "hold"', "unknown key 'first'; known are: first_use, scan"),
        ('[tls.scan]\nfolders = "/usr"', "scan must be a list of absolute paths"),
        ('[tls]\nfirst_use = "stop"', "first_use must be one of declare, hold, not 'stop'"),
        ("[tls]\nfirst_use = true", "first_use must be one of"),
        ('[tls]\nfirst_use = ["hold"]', "first_use must be one of"),
        ('[tls]\nscan = "/usr"', "scan must be a list of absolute paths, not '/usr'"),
        ('[tls]\nscan = ["usr"]', "scan must be a list of absolute paths"),
        ('[tls]\nscan = ["/usr", ""]', "scan must be a list of absolute paths"),
        ('[tls]\nscan = ["/usr", 7]', "scan must be a list of absolute paths"),
        ('[tls]\nscan = ["/usr\\u0000"]', "scan must be a list of absolute paths"),
        ("tls_scan = []", "[collector] and [[agent]]"),
        ('logdir = "/x"', "unknown key 'logdir'"),
        ('log_dir = "relative"', "absolute path"),
        ("log_dir = 7", "must be a text"),
        ('log_dir = ""', "not empty"),
        ('log_dir = "/a\\u0000b"', "must be a text"),
        ('watch = "../x"', "below cgroup_root"),
        ('watch = "/"', "below cgroup_root"),
        ("ring_bytes = 1000000", "power of two"),
        ("ring_bytes = 4096", "power of two"),
        ("ring_bytes = true", "power of two"),
        ("canary_seconds = -1", "from 0"),
        ("canary_seconds = 86401", "to 86400"),
        ("canary_seconds = true", "from 0"),
        ('[[agent]]\nname = "agentwatch-canary"\ncgroup = "agents.slice/x"', "the recorder's own"),
        ('agent = "x"', "[[agent]] tables"),
        ("[agent]\nname = 'x'", "[[agent]] tables"),
        ("[[agent]]\nname = 'x'", "cgroup must be a glob"),
        ("[[agent]]\ncgroup = 'x'", "name must be"),
        ("[[agent]]\nname = 'a b'\ncgroup = 'x'", "name must be"),
        ("[[agent]]\nname = 'a'\ncgroup = 'x'\nuser = 'u'", "unknown key 'user'"),
        ("[[agent]]\nname = 'a'\ncgroup = 'x'\n[[agent]]\nname = 'a'\ncgroup = 'y'", "used twice"),
        ("a = " + "[" * 2000 + "]" * 2000, "nested too deeply"),
    ],
)
def test_what_is_not_understood_is_named(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text)
    assert said in str(caught.value)
    assert str(PATH) in str(caught.value)


def test_a_named_file_that_is_missing_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        config.load(tmp_path / "none.toml")
    monkeypatch.setenv("AGENTWATCH_CONFIG", str(tmp_path / "none.toml"))
    with pytest.raises(ConfigError, match="cannot read"):
        config.load()


def test_a_file_that_is_not_utf8_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "latin.toml"
    path.write_bytes(b'watch = "\xe9"')
    with pytest.raises(ConfigError, match="UTF-8"):
        config.load(path)


def test_the_cgroup2_mount_is_found_also_on_a_hybrid_mount(tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text("cgroup /sys/fs/cgroup/cpu cgroup rw 0 0\ncgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n")
    assert config.find_cgroup2_mount(mounts) == Path("/sys/fs/cgroup/unified")
    mounts.write_text("tmpfs /tmp tmpfs rw 0 0\n")
    with pytest.raises(ConfigError, match="cgroup2"):
        config.find_cgroup2_mount(mounts)


@given(st.text())
def test_any_text_is_a_configuration_or_a_config_error(text: str) -> None:
    try:
        config.parse(ROOT + text, PATH)
    except ConfigError as e:
        said = str(e)
    else:
        said = str(PATH)
    assert str(PATH) in said
