"""Starts one program in several processes of this machine and waits for all of them.

python launch/local_multiprocess.py --processes 2 -- python -m c2ser_jax.train --config configs/x.py
"""

import argparse
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence

GRACE_SECONDS = 30.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command in every process; returns 0, or the code of the first that failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--port", type=int, help="of the coordinator; a free one by default")
    parser.add_argument("--cpu-devices", type=int, help="virtual CPU devices of each process")
    parser.add_argument("--gpus", type=int, help="GPUs of each process, numbered in order")
    parser.add_argument("command", nargs="+", help="after --: the program and its arguments")
    args = parser.parse_args(arguments)
    if args.processes < 1:
        parser.error(f"--processes is {args.processes}: give at least 1")
    port = args.port or free_port()
    children = []
    for index in range(args.processes):
        environment = {
            **os.environ,
            "C2SER_COORDINATOR": f"127.0.0.1:{port}",
            "C2SER_PROCESSES": str(args.processes),
            "C2SER_PROCESS_ID": str(index),
        }
        if args.cpu_devices:
            environment["JAX_NUM_CPU_DEVICES"] = str(args.cpu_devices)
        if args.gpus:
            first = index * args.gpus
            numbers = range(first, first + args.gpus)
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, numbers))
        # Their own session: a Ctrl-C reaches them once, through here.
        children.append(subprocess.Popen(args.command, env=environment, start_new_session=True))
    return wait(children)


def wait(children: list[subprocess.Popen]) -> int:
    """Passes signals on until all have ended; when one fails, the others are ended, too."""

    def forward(number: int, frame: object) -> None:
        end(children, signal.Signals(number))

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, forward)
    failed = 0
    deadline = float("inf")
    while any(child.poll() is None for child in children):
        codes = [child.poll() for child in children]
        if not failed and (bad := [(i, code) for i, code in enumerate(codes) if code]):
            index, failed = bad[0]
            print(f"process {index} ended with {failed}: the others are ended", file=sys.stderr)
            end(children, signal.SIGTERM)
            deadline = time.monotonic() + GRACE_SECONDS
        if time.monotonic() > deadline:
            end(children, signal.SIGKILL)
        time.sleep(0.05)
    codes = [child.returncode for child in children]
    failed = failed or next((code for code in codes if code), 0)
    return failed if failed >= 0 else 128 - failed


def end(children: list[subprocess.Popen], number: signal.Signals) -> None:
    """Sends a signal to every child that still runs."""
    for child in children:
        if child.poll() is None:
            child.send_signal(number)


def free_port() -> int:
    """Returns a port nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


if __name__ == "__main__":
    sys.exit(main())
