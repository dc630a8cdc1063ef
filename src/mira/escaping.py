"""Names as text of one line. Light to import: the command line uses it before anything else is loaded.

A name on a disk, in an archive or in a column may hold a newline, an escape sequence of terminals, marks that turn the
direction of writing, or bytes that are no UTF-8 (which Python keeps as lone surrogates). Such characters are escaped
visibly, as in `caf\\udce9.png`; then any file, terminal and page takes the name.
"""

import re

_ODD = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def escaped(name: str) -> str:
    """A name with everything escaped that is no visible character."""
    return _ODD.sub(lambda match: match[0].encode("unicode_escape").decode(), name)
