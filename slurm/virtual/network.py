"""A network of its own for each virtual node, all on one switch, as root; a cable can be pulled.

The switch lives in a network namespace too, so that no firewall of this machine sees what the nodes say to each
other; this machine has a cable to it. Addresses are of the range for benchmarks, which no real network uses.
"""

import subprocess
from dataclasses import dataclass

LARGEST_NUMBER = 255
HOST = 254  # the last byte of this machine's address


class NetworkError(RuntimeError):
    """No such network can be made here."""


@dataclass(frozen=True)
class Network:
    """Network `number` of this machine."""

    number: int

    @property
    def switch(self) -> str:
        return f"minicluster{self.number}"

    @property
    def host_address(self) -> str:
        return f"198.18.{self.number}.{HOST}"

    def namespace(self, node: str) -> str:
        return f"{self.switch}-{node}"

    @staticmethod
    def address(number: int, index: int) -> str:
        return f"198.18.{number}.{index + 1}"

    @classmethod
    def make(cls, nodes: list[str]) -> "Network":
        """The first network that is free. NetworkError where the kernel or the user's rights do not allow one."""
        for number in range(LARGEST_NUMBER + 1):
            network = cls(number)
            try:
                _ip("netns", "add", network.switch)
            except NetworkError as error:
                if "File exists" in str(error):
                    continue
                raise
            try:
                network._connect(nodes)
            except NetworkError:
                network.remove(nodes)
                raise
            return network
        raise NetworkError(f"all {LARGEST_NUMBER + 1} networks are taken")

    def _connect(self, nodes: list[str]) -> None:
        on_switch = ("-n", self.switch)
        _ip(*on_switch, "link", "add", "switch", "type", "bridge")
        _ip(*on_switch, "link", "set", "switch", "up")
        _ip("link", "add", self.switch, "type", "veth", "peer", "name", "host", "netns", self.switch)
        _ip("address", "add", f"{self.host_address}/24", "dev", self.switch)
        _ip("link", "set", self.switch, "up")
        _ip(*on_switch, "link", "set", "host", "master", "switch", "up")
        for index, node in enumerate(nodes):
            own = self.namespace(node)
            _ip("netns", "add", own)
            _ip(*on_switch, "link", "add", node, "type", "veth", "peer", "name", "eth0", "netns", own)
            _ip(*on_switch, "link", "set", node, "master", "switch", "up")
            _ip("-n", own, "address", "add", f"{self.address(self.number, index)}/24", "dev", "eth0")
            _ip("-n", own, "link", "set", "eth0", "up")
            _ip("-n", own, "link", "set", "lo", "up")

    def cut(self, node: str) -> None:
        _ip("-n", self.switch, "link", "set", node, "down")

    def mend(self, node: str) -> None:
        _ip("-n", self.switch, "link", "set", node, "up")

    def remove(self, nodes: list[str]) -> None:
        for name in (*map(self.namespace, nodes), self.switch):  # the cables go with their ends
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


def _ip(*words: str) -> None:
    try:
        answer = subprocess.run(["ip", *words], capture_output=True, text=True)
    except FileNotFoundError:
        raise NetworkError("there is no `ip` here (package iproute2)") from None
    if answer.returncode != 0:
        raise NetworkError(f"ip {' '.join(words)}: {answer.stderr.strip()}")
