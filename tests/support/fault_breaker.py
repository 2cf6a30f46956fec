"""Faults on top of faults, as a seed draws them: nodes killed, stopped, cut off and unplugged, one or several."""

from random import Random

from support.fault_cluster import FaultCluster
from support.fault_network import FaultNetwork
from support.node_processes import NodeProcess

MEND_PROBABILITY = 0.4


class Breaker:
    """Draws what happens next. A node that was killed stays away until all is mended."""

    def __init__(self, cluster: FaultCluster, network: FaultNetwork, random: Random) -> None:
        self._cluster = cluster
        self._network = network
        self._random = random
        self._killed: set[str] = set()
        self.done: list[str] = []

    def step(self) -> None:
        node = self._random.choice(self._cluster.nodes)
        fault = self._random.choice((self._kill, self._pause, self._cut_off, self._cut_one, self._unplug))
        if node.name not in self._killed:
            fault(node)
        if self._random.random() < MEND_PROBABILITY:
            self.mend()

    def mend(self) -> None:
        self._network.heal()
        self._cluster.mend()
        self._killed.clear()
        self.done.append("mend")

    def _kill(self, node: NodeProcess) -> None:
        node.kill()
        self._killed.add(node.name)
        self.done.append(f"kill {node.name}")

    def _pause(self, node: NodeProcess) -> None:
        self._cluster.pause(node)
        self.done.append(f"stop {node.name}")

    def _cut_off(self, node: NodeProcess) -> None:
        cut = self._random.choice((self._network.isolate, self._network.mute, self._network.deafen))
        cut(node.name)
        self.done.append(f"{cut.__name__} {node.name}")

    def _cut_one(self, node: NodeProcess) -> None:
        other = self._random.choice(self._cluster.others(node))
        self._network.cut(node.name, other.name)
        self.done.append(f"cut {node.name} {other.name}")

    def _unplug(self, node: NodeProcess) -> None:
        self._network.unplug(node.name)
        self.done.append(f"unplug {node.name}")
