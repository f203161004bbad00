"""Network namespaces whose links have a set bandwidth and delay, for benches on one machine. Linux and root are needed.

The links end at TAP devices. A process of this file carries their packets: a packet leaves when the sender's link is free, takes its
size divided by the bandwidth, and arrives after the delay. Nothing is lost. Whole TCP segments of 64 KiB pass at once.
"""
import collections, fcntl, os, select, signal, struct, subprocess, time

TUNSETIFF, TUNSETOFFLOAD, TUNSETVNETHDRSZ = 0x400454CA, 0x400454D0, 0x400454D8
TAP, NO_PACKET_INFO, VNET_HEADER, CHECKSUM_AND_TSO4 = 0x2, 0x1000, 0x4000, 0x3
HEADER = 10


def sh(*command, check=True):
    return subprocess.run([str(part) for part in command], check=check, capture_output=True, text=True)


class Network:
    """Nodes 0 to `nodes` - 1, each in a namespace of its own. `megabits` is the bandwidth of a link, `delay_ms` the delay of one way."""

    def __init__(self, nodes, megabits, delay_ms, name="llbench"):
        self.spaces, self.addresses, self.processes, self.carrier = [f"{name}{node}" for node in range(nodes)], [], [], 0
        self.rate, self.delay = megabits * 1e6 / 8, delay_ms / 1e3

    def __enter__(self):
        taps = {}
        for node, space in enumerate(self.spaces):
            sh("ip", "netns", "del", space, check=False)
            sh("ip", "netns", "add", space)
            tap = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
            fcntl.ioctl(tap, TUNSETIFF, struct.pack("16sH22x", space.encode(), TAP | NO_PACKET_INFO | VNET_HEADER))
            fcntl.ioctl(tap, TUNSETVNETHDRSZ, struct.pack("i", HEADER))
            fcntl.ioctl(tap, TUNSETOFFLOAD, CHECKSUM_AND_TSO4)
            address, self.addresses = f"10.78.0.{node + 1}", self.addresses + [f"10.78.0.{node + 1}"]
            taps[bytes([2, 0, 0, 0, 0, node])] = tap
            sh("ip", "link", "set", space, "netns", space)
            for command in (f"link set {space} address 02:00:00:00:00:{node:02x} txqueuelen 10000", f"addr add {address}/24 dev {space}",
                            f"link set {space} up", "link set lo up"):
                sh("ip", "-n", space, *command.split())
        self.carrier = os.fork()
        if self.carrier == 0:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            carry(taps, self.rate, self.delay)
        for tap in taps.values():
            os.close(tap)
        return self

    def start(self, node, *command, group=None, **options):
        """Starts a process on a node, in a control group if one is given. It is killed when the network goes."""
        joined = ["sh", "-c", f'echo $$ > {group}/cgroup.procs && exec "$@"', "sh"] if group else []
        process = subprocess.Popen([*joined, "ip", "netns", "exec", self.spaces[node], *map(str, command)], text=True, **options)
        self.processes.append(process)
        return process

    def __exit__(self, *_):
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait()
        os.kill(self.carrier, signal.SIGKILL)
        os.waitpid(self.carrier, 0)
        for space in self.spaces:
            sh("ip", "netns", "del", space, check=False)


def carry(taps, rate, delay):
    """Carries packets from TAP to TAP, without end."""
    free, waiting = dict.fromkeys(taps.values(), 0.0), {tap: collections.deque() for tap in taps.values()}
    while True:
        due = min((queue[0][0] for queue in waiting.values() if queue), default=None)
        ready, _, _ = select.select(list(taps.values()), [], [], None if due is None else max(0.0, due - time.monotonic()))
        for tap in ready:
            for _ in range(16):
                try:
                    packet = os.read(tap, 70_000)
                except BlockingIOError:
                    break
                free[tap] = max(time.monotonic(), free[tap]) + (len(packet) - HEADER) / rate
                waiting[tap].append((free[tap] + delay, packet))
        now = time.monotonic()
        for tap, queue in waiting.items():
            while queue and queue[0][0] <= now:
                packet = queue.popleft()[1]
                to = taps.get(packet[HEADER:HEADER + 6])
                for other in [to] if to is not None else [it for it in taps.values() if it != tap]:
                    try:
                        os.write(other, packet)
                    except BlockingIOError:
                        pass  # TCP sends it again.
