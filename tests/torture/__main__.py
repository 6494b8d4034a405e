"""``python -m torture --seconds 1800``, in the folder ``tests``: runs and prints the report; exit code 1 on a fault."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import random
import sys

from torture.run import Plan, torture


def main() -> None:
    """Read the arguments and run."""
    parser = argparse.ArgumentParser(prog="torture")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    for name in ("seconds", "pause", "fault_pause", "erase_pause", "catch_up"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=float, default=getattr(Plan(0), name))
    for name in ("writers", "readers", "servers", "workers", "keep_events"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=getattr(Plan(0), name))
    parser.add_argument("--postgres-bin", default=None)
    parser.add_argument("--pooler", choices=("off", "listen", "poll"), default=Plan(0).pooler)
    plan = Plan(**vars(parser.parse_args()))
    sys.stdout.write(f"{plan}\n")
    sys.stdout.flush()
    report = asyncio.run(torture(plan))
    sys.stdout.write(f"faults: {report.faults}\n")
    for name, value in dataclasses.asdict(report).items():
        sys.stdout.write(f"{name}: {len(value) if name == 'deleted' else value}\n")
    sys.exit(1 if report.faults else 0)


main()
