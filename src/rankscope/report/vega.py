"""The script that draws the page's plots: Vega, Vega-Lite, Vega-Embed and Vega's interpreter."""

from __future__ import annotations

import contextlib
import functools

import vl_convert

from rankscope.data.user_cache import user_cache
from rankscope.report.static import VEGALITE_VERSION
from rankscope.store import read_checked, write_checked


@functools.cache
def vega_bundle() -> str:
    """All of it as one script, from the package that also draws the SVGs.

    Making it takes a second or two and gives the same each time, so it is kept in the user's cache.
    """
    path = user_cache() / "plots" / f"vega-lite-{VEGALITE_VERSION}-vl-convert-{vl_convert.__version__}.json"
    # Without a cache that can be read and written the page is the same, only later.
    with contextlib.suppress(OSError):
        if isinstance(kept := read_checked(path), str):
            return kept
    script = vl_convert.javascript_bundle(vl_version=VEGALITE_VERSION)
    script = script.replace("</script", "<\\/script").replace("<!--", "<\\!--")
    with contextlib.suppress(OSError):
        write_checked(path, script)
    return script
