"""What a page did that nobody sees."""

from __future__ import annotations

from dataclasses import dataclass, field
from urllib.parse import urlsplit

from playwright.async_api import ConsoleMessage, Page, Request


@dataclass
class Watch:
    """What a page did that nobody sees."""

    errors: list[str] = field(default_factory=list)
    hosts: set[str] = field(default_factory=set)
    expected: tuple[str, ...] = ()
    """Parts of errors that belong to the test: a server that is cut is an error in every console."""

    def attach(self, page: Page) -> None:
        """Watch a page."""

        def said(message: ConsoleMessage) -> None:
            if message.type in ("error", "warning"):
                self.errors.append(message.text)

        def asked(request: Request) -> None:
            self.hosts.add(urlsplit(request.url).netloc)

        page.on("console", said)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("request", asked)

    @property
    def unexpected(self) -> list[str]:
        """Errors that do not belong to the test."""
        return [text for text in self.errors if not any(part in text for part in self.expected)]
