"""The page for a browser (docs/page.md): files that tell nothing of the cluster, so that everybody may have them."""

from __future__ import annotations

from hashlib import sha256
from importlib.resources import files
from typing import NamedTuple

from twisted.web.server import Request

from sipha.admin.access import Role
from sipha.admin.route import Routes

HEADERS = {
    # Nothing but what this node serves is loaded, asked or sent to, and no other page may frame this one.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    # A browser asks each time whether its copy is that of this release.
    "Cache-Control": "no-cache",
}

_HTML, _CSS, _SVG, _JS = "text/html", "text/css", "image/svg+xml", "text/javascript"


class _File(NamedTuple):
    content: bytes
    etag: bytes


class PageRoutes:
    """The page on which a browser shows the cluster."""

    routes = Routes("page")

    def __init__(self) -> None:
        self._files = {
            file.name: _File(content, b'"%s"' % sha256(content).hexdigest()[:32].encode())
            for file in (files("sipha.admin") / "page").iterdir()
            for content in (file.read_bytes(),)
        }

    @routes.get("/", role=Role.NONE, media=_HTML)
    def get_page(self, request: Request) -> None:
        """The page itself."""
        self._send(request, "index.html", _HTML)

    @routes.get("/page/style.css", role=Role.NONE, media=_CSS)
    def get_style(self, request: Request) -> None:
        """How the page looks."""
        self._send(request, "style.css", _CSS)

    @routes.get("/page/icon.svg", role=Role.NONE, media=_SVG)
    def get_icon(self, request: Request) -> None:
        """The page's icon."""
        self._send(request, "icon.svg", _SVG)

    @routes.get("/page/page.js", role=Role.NONE, media=_JS)
    def get_script(self, request: Request) -> None:
        """What the page does: it asks, and hands what it hears to its parts."""
        self._send(request, "page.js", _JS)

    @routes.get("/page/api.js", role=Role.NONE, media=_JS)
    def get_api_script(self, request: Request) -> None:
        """How the page asks its node."""
        self._send(request, "api.js", _JS)

    @routes.get("/page/dom.js", role=Role.NONE, media=_JS)
    def get_dom_script(self, request: Request) -> None:
        """How the page shows texts and times."""
        self._send(request, "dom.js", _JS)

    @routes.get("/page/cluster.js", role=Role.NONE, media=_JS)
    def get_cluster_script(self, request: Request) -> None:
        """The nodes on the page, and what may be done to them."""
        self._send(request, "cluster.js", _JS)

    @routes.get("/page/timeline.js", role=Role.NONE, media=_JS)
    def get_timeline_script(self, request: Request) -> None:
        """What has happened, on the page."""
        self._send(request, "timeline.js", _JS)

    @routes.get("/page/plot.js", role=Role.NONE, media=_JS)
    def get_plot_script(self, request: Request) -> None:
        """The plots on the page."""
        self._send(request, "plot.js", _JS)

    @routes.get("/page/search.js", role=Role.NONE, media=_JS)
    def get_search_script(self, request: Request) -> None:
        """The search for bindings on the page."""
        self._send(request, "search.js", _JS)

    def _send(self, request: Request, name: str, media: str) -> None:
        file = self._files[name]
        for header, value in HEADERS.items():
            request.setHeader(header, value)
        request.setHeader("Content-Type", f"{media}; charset=utf-8")
        request.setETag(file.etag)  # which makes it a 304 if that is what the browser has
        request.write(file.content)
