"""Hidden: files and folders that systems and programs keep beside people's own."""

# In lower case: of macOS, Windows, Linux, and Synology and QNAP servers.
_SYSTEM_NAMES = frozenset(
    {"__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "lost+found",
     "system volume information", "#recycle", "#snapshot"}
)  # fmt: skip


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is hidden, or a system's own.

    `.` and `..` are not: keys of objects may contain them.
    """
    if name.startswith((".", "@")):
        return name not in (".", "..")
    return name.lower() in _SYSTEM_NAMES
