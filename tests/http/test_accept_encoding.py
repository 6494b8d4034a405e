"""What the request header Accept-Encoding allows."""

from __future__ import annotations

import pytest

from sse_pg.http.accept_encoding import accepts_gzip


@pytest.mark.parametrize(
    "headers",
    [["gzip"], ["gzip, deflate, br, zstd"], ["deflate", "br;q=1.0, GZIP;q=0.5"], ["x-gzip"], ["gzip ; q=0.001"]],
)
def test_accepted(headers: list[str]) -> None:
    assert accepts_gzip(headers)


@pytest.mark.parametrize(
    "headers", [[], [""], ["identity"], ["*"], ["deflate, br"], ["gzip;q=0"], ["gzip;q=0.000, br"], ["gzip;q=x"]]
)
def test_not_accepted(headers: list[str]) -> None:
    assert not accepts_gzip(headers)
