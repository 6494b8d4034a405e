"""Publishing over HTTP: single events at 32 connections against Express; NDJSON and arrays against psql's copy."""

from __future__ import annotations

import http.client
import json
import os
import re
import subprocess
import time

from bench.crowd import Crowd
from bench.stack import Server, Stack, cpu_seconds, program
from bench.table import Result, Rounds

CONNECTIONS = (1, 32, 128)
ROWS = 20000
STREAMS = 10
PAYLOAD = {"message": "Hello from the server!", "priority": "high"}
LUA = """
wrk.method = "POST"
wrk.body = '{"channel":"bench","eventType":"message","payload":{"message":"Hello from the server!","priority":"high"}}'
wrk.headers["Content-Type"] = "application/json"
"""
#: Statements that make the plain table of the rival: no triggers.
PLAIN = "DROP TRIGGER announce ON sse_pg.events; DROP TRIGGER close_window ON sse_pg.events;"


def run(rounds: int = 3, seconds: float = 4.0) -> Result:
    """Measure."""
    result = Result("http", "Publishing over HTTP, real fsync")
    with Stack() as stack:
        stack.copy_database("rival", PLAIN)
        _single(stack, result, rounds, seconds)
        _bulk(stack, result, rounds)
    result.notes.append(
        f"node: Express and pg, an INSERT a request over a pool of 32 connections, then a write to each stream in memory; "
        f"{STREAMS} streams are open at each server while requests come"
    )
    return result


def _single(stack: Stack, result: Result, rounds: int, seconds: float) -> None:
    servers = {"sse-pg": stack.serve(), "node": stack.serve_node("rival")}
    found = Rounds()
    for server in servers.values():
        load(stack, server, 32, 2.0)  # warm
    for round_number in range(rounds):
        for connections in CONNECTIONS:
            for name in sorted(servers, reverse=round_number % 2 == 0):
                with Crowd() as crowd:
                    crowd.open(servers[name], STREAMS)
                    crowd.ask("begin")
                    used = cpu_seconds(servers[name].process.pid)
                    seen = load(stack, servers[name], connections, seconds)
                    used = cpu_seconds(servers[name].process.pid) - used
                    got = crowd.ask("quiet", silence=0.7, seconds=20)
                for key in ("rate", "p50", "p99"):
                    found.add(f"{name} {connections} {key}", seen[key])
                found.add(f"{name} {connections} cpu", used / seen["requests"] * 1e6)
                if got["total"] < STREAMS * seen["requests"]:
                    result.notes.append(f"{name}: {got['total']} of {STREAMS * seen['requests']} events were delivered")
    for connections in CONNECTIONS:
        ours, theirs = f"sse-pg {connections}", f"node {connections}"
        ratio = found.ratio(f"{ours} rate", f"{theirs} rate")
        main = connections == 32
        result.add(
            f"{connections} connections, requests/s",
            f"sse-pg {found.median(f'{ours} rate'):,.0f}, node {found.median(f'{theirs} rate'):,.0f}: {ratio:.2f} times",
            "3 times" if main else "",
            ratio >= 3 if main else None,
        )
        lower = found.median(f"{ours} p50") < found.median(f"{theirs} p50")
        result.add(
            f"{connections} connections, ms",
            f"sse-pg p50 {found.median(f'{ours} p50'):.1f}, p99 {found.median(f'{ours} p99'):.1f}; "
            f"node p50 {found.median(f'{theirs} p50'):.1f}, p99 {found.median(f'{theirs} p99'):.1f}",
            "lower p50" if main else "",
            lower if main else None,
        )
        result.add(
            f"{connections} connections, processor time a request in the server's process, µs",
            f"sse-pg {found.median(f'{ours} cpu'):.0f}, node {found.median(f'{theirs} cpu'):.0f}",
        )
    result.data["single"] = dict(found.values)
    for server in servers.values():
        server.process.stop()


def load(stack: Stack, server: Server, connections: int, seconds: float) -> dict[str, float]:
    """Post single events as fast as they are answered; return the rate and the percentiles in ms."""
    script = stack.directory / "post.lua"
    script.write_text(LUA)
    command = [
        program("wrk", hint="Debian: wrk"), "-t1", f"-c{connections}", f"-d{seconds:g}s", "--latency", "--timeout", "30s",
        "-s", str(script), server.url + server.publish,
    ]  # fmt: skip
    out = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 60, check=True).stdout
    if "Non-2xx" in out or "Socket errors" in out:
        raise RuntimeError(f"{server.name}: {out}")
    requests = re.search(r"(\d+) requests in", out)
    rate = re.search(r"Requests/sec:\s+([\d.]+)", out)
    assert requests and rate, out
    percentiles = {
        f"p{share}": _ms(number, unit) for share, number, unit in re.findall(r"(\d+)%\s+([\d.]+)(us|ms|s)", out)
    }
    return {"requests": int(requests[1]), "rate": float(rate[1]), **percentiles}


def _ms(number: str, unit: str) -> float:
    return float(number) * {"us": 0.001, "ms": 1.0, "s": 1000.0}[unit]


def _bulk(stack: Stack, result: Result, rounds: int) -> None:
    server = stack.serve()
    event = {"channel": "bench", "eventType": "message", "payload": PAYLOAD}
    lines = "\n".join(json.dumps({**event, "payload": {**PAYLOAD, "n": n}}) for n in range(ROWS)).encode()
    array = json.dumps([{**event, "payload": {**PAYLOAD, "n": n}} for n in range(ROWS)]).encode()
    file = stack.directory / "rows.tsv"
    with file.open("w") as rows:
        for n in range(ROWS):
            rows.write(f"bench\tmessage\t{json.dumps({**PAYLOAD, 'n': n})}\n")
    file.chmod(0o644)
    ways = {
        r"\copy": lambda: _copy(stack, str(file)),
        "NDJSON": lambda: _post(server, lines, "application/x-ndjson"),
        "array": lambda: _post(server, array, "application/json"),
    }
    found = Rounds()
    for round_number in range(rounds + 1):
        for name, way in ways.items():
            started = time.monotonic()
            way()
            if round_number:  # the first is to warm up
                found.add(name, ROWS / (time.monotonic() - started))
            time.sleep(0.5)
    for name in ("NDJSON", "array"):
        ratio = found.ratio(name, r"\copy")
        result.add(
            f"{name} of {ROWS:,} events, rows/s",
            f"{found.median(name):,.0f}; \\copy {found.median(chr(92) + 'copy'):,.0f}: {ratio:.2f} of it",
            "half",
            ratio >= 0.5,
        )
    result.data["bulk"] = dict(found.values)
    server.process.stop()


def _copy(stack: Stack, file: str) -> None:
    path, env = stack.pg_program("psql")
    command = [
        path,
        "-qX",
        "-v",
        "ON_ERROR_STOP=1",
        "-c",
        rf"\copy sse_pg.events (channel, event_type, payload) from '{file}'",
    ]
    subprocess.run(command, env={**os.environ, **env}, check=True, capture_output=True)


def _post(server: Server, body: bytes, kind: str) -> None:
    conn = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    conn.request("POST", server.publish, body, {"Content-Type": kind})
    answer = conn.getresponse()
    text = answer.read()
    conn.close()
    if answer.status != 201:
        raise RuntimeError(f"{answer.status}: {text[:500]!r}")
