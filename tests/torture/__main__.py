"""``python -m torture --seconds 1800``, in the folder ``tests``: runs and prints the report; exit code 1 on a fault."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import random
import sys

from torture.failover import FailoverPlan, fail_over
from torture.run import Plan, torture


def main() -> None:
    """Read the arguments and run."""
    parser = argparse.ArgumentParser(prog="torture")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    for name in ("seconds", "pause", "fault_pause", "erase_pause", "catch_up"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=float, default=getattr(Plan(0), name))
    for name in ("writers", "readers", "servers", "workers", "keep_events", "standbys"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=getattr(Plan(0), name))
    parser.add_argument("--postgres-bin", default=None)
    parser.add_argument("--pooler", choices=("off", "listen", "poll"), default=Plan(0).pooler)
    parser.add_argument("--failover", choices=("synchronous", "asynchronous"), default=None)
    options = vars(parser.parse_args())
    replication = options.pop("failover")
    if replication is not None:
        if options["standbys"] > 1:
            parser.error("with --failover there is one standby: --standbys 0 or 1")
        taken = {field.name for field in dataclasses.fields(FailoverPlan)} & options.keys()
        told = FailoverPlan(synchronous=replication == "synchronous", **{name: options[name] for name in taken})
        sys.stdout.write(f"{told}\n")
        found = asyncio.run(fail_over(told))
        for name, value in dataclasses.asdict(found).items():
            sys.stdout.write(f"{name}: {value}\n")
        sys.exit(1 if found.faults else 0)
    plan = Plan(**options)
    sys.stdout.write(f"{plan}\n")
    sys.stdout.flush()
    report = asyncio.run(torture(plan))
    sys.stdout.write(f"faults: {report.faults}\n")
    for name, value in dataclasses.asdict(report).items():
        sys.stdout.write(f"{name}: {len(value) if name == 'deleted' else value}\n")
    sys.exit(1 if report.faults else 0)


main()
