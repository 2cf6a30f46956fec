"""What a run is like: how many members and clients, for how long, and which faults how often."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class Fault(StrEnum):
    KILL = "kill -9"
    KILL_AT_LINE = "kill -9 at a line"
    STOP = "stop"
    KILL_AT_DISK = "kill -9 at the disk"
    POWER_LOSS = "power loss"
    POWER_LOSS_AT_LINE = "power loss at a line"
    POWER_LOSS_AT_DISK = "power loss at the disk"
    POWER_LOSS_OF_SOME = "power loss of some"
    POWER_LOSS_OF_ALL = "power loss of all"
    PAUSE = "pause"
    SPLIT = "split"
    CUT_PAIR = "cut between two"
    CUT_ONE_WAY = "one-way cut"
    ISOLATE_LEADER = "isolate the leader"
    SHORT_REIGN = "short reign"
    KILL_VOTER = "kill a voter"
    BAD_LINKS = "bad links"
    SLOW_DISK = "slow disk"
    FULL_DISK = "full disk"
    FAILING_DISK = "failing disk"
    JUMP = "clock jump"
    BURST = "burst of writes"
    TRANSFER = "transfer"
    CHANGE_AT_ONCE = "change by a new leader"
    ADD = "add a learner"
    PROMOTE = "promote"
    REMOVE = "remove"


@dataclass(frozen=True, slots=True)
class Profile:
    """`faults`: how often each, relative to the others. `fault_interval_s`: mean time between the beginnings of two."""

    name: str
    sizes: tuple[int, ...] = (3, 3, 5, 5, 7)
    duration_s: float = 30.0
    clients: int = 4
    lease_holders: int = 2
    watchers: int = 4
    keys: int = 3
    fault_interval_s: float = 0.9
    faults: Mapping[Fault, int] = field(default_factory=dict)


_CRASHES = {
    Fault.KILL: 3, Fault.KILL_AT_LINE: 5, Fault.STOP: 1, Fault.POWER_LOSS: 4, Fault.POWER_LOSS_AT_LINE: 4,
    Fault.KILL_AT_DISK: 4, Fault.POWER_LOSS_AT_DISK: 4,
    Fault.POWER_LOSS_OF_SOME: 2, Fault.POWER_LOSS_OF_ALL: 2, Fault.PAUSE: 3,
}  # fmt: skip
_NETWORK = {
    Fault.SPLIT: 3, Fault.CUT_PAIR: 2, Fault.CUT_ONE_WAY: 3, Fault.ISOLATE_LEADER: 3, Fault.BAD_LINKS: 5,
}  # fmt: skip
_DISKS = {Fault.SLOW_DISK: 2, Fault.FULL_DISK: 2, Fault.FAILING_DISK: 2}
_MEMBERSHIP = {Fault.ADD: 4, Fault.PROMOTE: 4, Fault.REMOVE: 3, Fault.TRANSFER: 2}
_CLOCKS = {Fault.JUMP: 3}
_LOAD = {Fault.BURST: 5}

PROFILES = {
    profile.name: profile
    for profile in (
        Profile("default", faults={**_CRASHES, **_NETWORK, **_DISKS, **_MEMBERSHIP, **_CLOCKS, **_LOAD}),
        Profile("calm", fault_interval_s=1e9),
        Profile("crashes", faults={**_CRASHES, **_DISKS, **_LOAD}),
        Profile("network", faults={**_NETWORK, **_LOAD, Fault.PAUSE: 3, Fault.KILL: 1, Fault.TRANSFER: 1}),
        Profile(
            "elections",
            sizes=(5,),
            clients=3,
            lease_holders=0,
            fault_interval_s=0.25,
            faults={
                Fault.ISOLATE_LEADER: 8,
                Fault.SPLIT: 3,
                Fault.KILL: 3,
                Fault.PAUSE: 2,
                Fault.BURST: 8,
                Fault.SLOW_DISK: 3,
                Fault.BAD_LINKS: 2,
                Fault.TRANSFER: 2,
            },
        ),
        Profile(
            "reigns",
            sizes=(3, 5, 5),
            clients=3,
            lease_holders=0,
            fault_interval_s=0.3,
            faults={
                Fault.SHORT_REIGN: 20,
                Fault.KILL_VOTER: 15,
                Fault.BURST: 10,
                Fault.SLOW_DISK: 6,
                Fault.BAD_LINKS: 6,
                Fault.CUT_ONE_WAY: 2,
                Fault.TRANSFER: 1,
            },
        ),
        Profile(
            "membership",
            sizes=(2, 3, 4),
            fault_interval_s=0.4,
            faults={
                **_MEMBERSHIP,
                Fault.CHANGE_AT_ONCE: 6,
                Fault.BAD_LINKS: 3,
                Fault.KILL: 2,
                Fault.POWER_LOSS: 1,
                Fault.SPLIT: 3,
                Fault.ISOLATE_LEADER: 4,
                Fault.BURST: 3,
                Fault.PAUSE: 2,
            },
        ),
        Profile("clocks", faults={Fault.JUMP: 8, Fault.PAUSE: 8, Fault.KILL: 1, Fault.ISOLATE_LEADER: 2}),
    )
}
DEFAULT_PROFILE = "default"
