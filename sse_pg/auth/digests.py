"""The names in the notifications on ``sse_pg_control``: digests with a key, because every login may LISTEN."""

from __future__ import annotations

import hashlib

#: Maximum number of cached digests; then the cache begins anew.
MAX_CACHED_DIGESTS = 100_000


class Digests:
    """Computes what sse_pg.digest() computes in the database. The key is a column that only servers read."""

    def __init__(self) -> None:
        self._key = ""
        self._cached: dict[str, str] = {}

    def use(self, key: str) -> bool:
        """Use a key from here on; return whether it is another one."""
        if key == self._key:
            return False
        self._key = key
        self._cached.clear()
        return True

    def of(self, name: str | None) -> str:
        """Return the digest of a name. None, which is no name, has none."""
        if name is None:
            return ""
        digest = self._cached.get(name)
        if digest is None:
            digest = hashlib.sha256((self._key + name).encode(errors="surrogatepass")).hexdigest()[:16]
            if len(self._cached) >= MAX_CACHED_DIGESTS:
                self._cached.clear()
            self._cached[name] = digest
        return digest
