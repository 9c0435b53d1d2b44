"""The script that draws the page's plots: Vega, Vega-Lite, Vega-Embed and Vega's interpreter."""

from __future__ import annotations

import contextlib
import functools

import vl_convert

from rankscope.data.user_cache import user_cache
from rankscope.report.static import VEGALITE_VERSION
from rankscope.store import read_checked, write_checked

_NO_CACHE = (OSError, RuntimeError)  # the second where a user has no home


@functools.cache
def vega_bundle() -> str:
    """All of it as one script, from the package that also draws the SVGs.

    Making it takes a second or two and gives the same each time, so it is kept in the user's cache, which is trusted as
    the installed package is.
    """
    name = f"vega-lite-{VEGALITE_VERSION}-vl-convert-{vl_convert.__version__}.json"
    return _kept(name).replace("</script", "<\\/script").replace("<!--", "<\\!--")


def _kept(name: str) -> str:
    """The script as its package makes it; without a cache that can be read and written it is the same, only later."""
    with contextlib.suppress(*_NO_CACHE):
        if isinstance(kept := read_checked(user_cache() / "plots" / name), str):
            return kept
    script = vl_convert.javascript_bundle(vl_version=VEGALITE_VERSION)
    with contextlib.suppress(*_NO_CACHE):
        write_checked(user_cache() / "plots" / name, script)
    return script
