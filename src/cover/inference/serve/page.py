"""What does a person get to see? One page without a library, which asks the same route as every other client."""

import base64
import hashlib
import re
from importlib.resources import files
from typing import Any

# Annotations of routes are read by FastAPI, which is imported in the function that needs it: so they are not postponed in this module.


def add_page(app: Any) -> None:
    """The page at `/`."""
    from fastapi.responses import HTMLResponse

    text = (files(__package__) / "page.html").read_text(encoding="utf-8")
    headers = {"content-security-policy": _policy(text), "x-content-type-options": "nosniff", "referrer-policy": "no-referrer"}

    @app.get("/", include_in_schema=False)
    async def page() -> HTMLResponse:
        return HTMLResponse(text, headers=headers)


def _policy(text: str) -> str:
    """The page's own style and script, pictures from memory, and this server: nothing else is loaded or called."""
    style, script = (_digest(re.search(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)) for tag in ("style", "script"))
    return (
        f"default-src 'none'; style-src {style}; script-src {script}; connect-src 'self'; img-src blob: data:; media-src blob:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _digest(found: re.Match[str] | None) -> str:
    assert found, "the page has one style and one script"
    return f"'sha256-{base64.b64encode(hashlib.sha256(found[1].encode()).digest()).decode()}'"
