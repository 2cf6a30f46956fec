"""A node's settings are refused with the flag that is wrong and the way out."""

from pathlib import Path

import pytest
from quorate_core.errors import SettingsError
from quorate_core.settings import HostPort
from quorate_node.settings import MEMBERS_MAX, Members, NodeSettings

GOOD = {
    "--name": "node-1", "--data-dir": "/nowhere", "--http": "127.0.0.1:8501", "--peer": "127.0.0.1:7501",
    "--members": "node-1=127.0.0.1:7501,node-2=127.0.0.1:7502", "--cluster-id": "c-1",
    "--cluster-secret-file": "/nowhere/secret",
}  # fmt: skip


def parsed(**changes: str | None) -> NodeSettings:
    """GOOD with `changes` (flags with underscores); None leaves a flag out."""
    flags = {**GOOD, **{"--" + name.replace("_", "-"): value for name, value in changes.items()}}
    arguments = [part for flag, value in flags.items() if value is not None for part in (flag, value)]
    return NodeSettings.from_command_line("node", arguments)


def test_a_command_line_gives_typed_settings() -> None:
    settings = parsed(apps="registry, config-center", token_file="t", http_advertise="node-1.internal:80")
    assert settings.members == {"node-1": HostPort("127.0.0.1", 7501), "node-2": HostPort("127.0.0.1", 7502)}
    assert settings.apps == ("registry", "config-center")
    assert settings.token_file == Path("t")
    assert settings.advertised_http(HostPort("127.0.0.1", 8501)) == HostPort("node-1.internal", 80)
    assert parsed().apps is None
    states = [parsed(cluster_state=each).cluster_state for each in (None, "join", "existing")]
    assert states == ["new", "join", "existing"]
    assert parsed().advertised_http(HostPort("127.0.0.1", 8777)) == HostPort("127.0.0.1", 8777)


def test_settings_come_from_the_environment_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUORATE_NODE_MEMBERS", "node-1=[::1]:7501")
    monkeypatch.setenv("QUORATE_NODE_APPS", "registry")
    settings = parsed(members=None)
    assert settings.members == {"node-1": HostPort("::1", 7501)}
    assert settings.apps == ("registry",)


def test_a_member_can_be_named_by_its_address_so_that_a_place_may_take_a_new_member() -> None:
    members = "node-1=127.0.0.1:7501,node-2b=127.0.0.1:7502"
    settings = parsed(name=None, peer_advertise="127.0.0.1:7502", peer="0.0.0.0:7501", members=members)
    assert settings.name == "node-2b"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"members": None}, "--members: missing for a member of the store; or give --store etcd://host:port"),
        ({"members": None, "peer": None, "data_dir": None}, "--data-dir, --peer, --members: missing"),
        ({"cluster_secret_file": None}, "--cluster-secret-file: missing"),
        ({"store_token_file": "t"}, "--store-token-file: of no use without --store"),
        ({"store": "etcd://a:1"}, "--data-dir, --peer, --members: of no use with --store"),
        ({"members": "node-1"}, "'node-1' is no member; write name=host:port"),
        ({"members": "node-1=127.0.0.1"}, "is no address; write host:port"),
        ({"members": "node-1=a:1,node-1=a:2"}, "node-1 is given twice"),
        ({"members": "node-1=a:1,node-2=a:1"}, "two members have the same address"),
        ({"members": ",".join(f"n{i}=a:{i + 1}" for i in range(MEMBERS_MAX + 1))}, f"at most {MEMBERS_MAX}"),
        ({"name": "node-9"}, "--name node-9 is not among --members node-1=127.0.0.1:7501"),
        ({"name": None}, "--name is missing; or give --peer-advertise"),
        ({"name": None, "peer_advertise": "a:1"}, "no member has the address --peer-advertise a:1"),
        ({"cluster_id": "two words"}, "--cluster-id takes letters"),
        ({"cluster_id": ""}, "--cluster-id takes letters"),
        ({"cluster_id": None}, "--cluster-id takes letters"),
        ({"cluster_id_file": "/nowhere/id"}, "--cluster-id and --cluster-id-file are both given"),
        ({"cluster_id": None, "cluster_id_file": "/nowhere/id"}, "--cluster-id-file /nowhere/id: No such file"),
        ({"peer_advertise": "127.0.0.1:9"}, "--peer-advertise 127.0.0.1:9 is not what --members says of node-1"),
        ({"peer": "127.0.0.1:0"}, "need fixed peer ports"),
        ({"cluster_state": "old"}, "--cluster-state"),
        ({"http": "0.0.0.0:8501"}, "give --token-file FILE, or bind 127.0.0.1"),
        ({"http": "node-1:8501"}, "give --token-file FILE, or bind 127.0.0.1"),
        ({"http": "0.0.0.0:8501", "token_file": "t"}, "give --http-advertise host:port"),
        ({"http": "[::]:8501", "token_file": "t"}, "give --http-advertise host:port"),
        ({"http": "8501"}, "--http (or QUORATE_NODE_HTTP): '8501' is no address"),
    ],
)
def test_settings_that_cannot_be_are_refused_with_the_way_out(changes: dict[str, str | None], said: str) -> None:
    with pytest.raises(SettingsError) as refused:
        parsed(**changes)
    assert said in refused.value.detail
    assert "--  " not in refused.value.detail
    assert not refused.value.detail.startswith("-- ")


TIER: dict[str, str | None] = {
    "data_dir": None, "peer": None, "members": None, "cluster_id": None, "cluster_secret_file": None,
    "store": "etcd://10.0.0.2:2379,10.0.0.1:2379",
}  # fmt: skip


def test_a_node_on_an_external_store_needs_nothing_that_a_member_needs() -> None:
    settings = parsed(**TIER)
    assert settings.store is not None
    assert settings.store.urls == ("http://10.0.0.2:2379", "http://10.0.0.1:2379")
    assert (settings.peer, settings.members, settings.cluster_secret_file) == (None, {}, None)


def test_nodes_on_one_store_take_it_for_one_cluster_in_whatever_order_they_name_its_endpoints() -> None:
    turned = {**TIER, "store": "etcd://10.0.0.1:2379,10.0.0.2:2379"}
    assert parsed(**TIER).cluster_id == parsed(**turned).cluster_id == "10.0.0.1:2379,10.0.0.2:2379"
    assert parsed(**{**TIER, "cluster_id": "shop"}).cluster_id == "shop"


def test_a_store_is_named_by_the_environment_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUORATE_NODE_STORE", "etcds://[::1]:2379")
    settings = parsed(**{**TIER, "store": None, "store_ca_file": "ca.pem"})
    assert settings.store is not None
    assert (settings.store.urls, str(settings.store)) == (("https://[::1]:2379",), "etcds://[::1]:2379")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"store": "10.0.0.1:2379"}, "write etcd://host:port,host:port, or etcds://"),
        ({"store": "http://10.0.0.1:2379"}, "write etcd://host:port"),
        ({"store": "etcd://"}, "is no address; write host:port"),
        ({"store": "etcd://a:1,"}, "'' is no address"),
        ({"store": "etcd://a:0"}, "'a:0' is no address of a store"),
        ({"store": "etcd://a:1/v3"}, "is no address; write host:port"),
        ({"store": "etcd://user:secret@a:1"}, "it takes no credential; give --store-token-file"),
        ({"store": "etcd://a:1,b:1,a:1"}, "an endpoint is given twice"),
        ({"store": "etcd://" + ",".join(f"a:{port}" for port in range(1, 34))}, "33 endpoints; at most 32"),
        ({"store_ca_file": "ca.pem"}, "--store-ca-file: of no use with etcd://10.0.0.2:2379,10.0.0.1:2379"),
        ({"name": None}, "--name takes lower-case letters"),
        ({"name": "Two Words"}, "--name takes lower-case letters"),
        ({"begun_file": "b", "cluster_state": "join"}, "--cluster-state, --begun-file: of no use with --store"),
        ({"peer_advertise": "a:1"}, "--peer-advertise: of no use with --store"),
        ({"http": "0.0.0.0:8501"}, "give --token-file FILE, or bind 127.0.0.1"),
        ({"cluster_id": "two words"}, "--cluster-id takes letters"),
    ],
)
def test_what_does_not_go_with_an_external_store_is_refused_with_the_way_out(
    changes: dict[str, str | None], said: str
) -> None:
    with pytest.raises(SettingsError) as refused:
        parsed(**{**TIER, **changes})
    assert said in refused.value.detail
    assert "secret@" not in refused.value.detail


def test_bound_beyond_loopback_with_token_and_advertised_address_is_accepted() -> None:
    settings = parsed(http="0.0.0.0:8501", http_advertise="10.0.0.7:8501", token_file="t")
    assert str(settings.http) == "0.0.0.0:8501"


def test_a_single_member_may_take_any_free_peer_port() -> None:
    settings = parsed(peer="127.0.0.1:0", members="node-1=127.0.0.1:0")
    assert settings.peer.port == 0


def test_members_print_as_they_are_written() -> None:
    text = "node-1=127.0.0.1:7501,node-2=[::1]:7502"
    assert str(Members.parse(text)) == text


def test_the_cluster_id_may_come_from_a_file_and_is_held_to_the_same_rule(tmp_path: Path) -> None:
    file = tmp_path / "cluster.id"
    file.write_text("c-77\n")
    assert parsed(cluster_id=None, cluster_id_file=str(file)).cluster_id == "c-77"
    file.write_text("two words\n")
    with pytest.raises(SettingsError, match="--cluster-id takes letters"):
        parsed(cluster_id=None, cluster_id_file=str(file))
