"""Find the input files: turn folders and patterns into lists of files, in the same order on every machine.

A folder is searched with its subfolders, except hidden files and folders (their names begin with a dot) and links to
folders. Files found in a folder or by a pattern are used only if they are of a known kind and were not written by
lastword; the others are counted. A file that several paths lead to is read once.
"""

import os
import re
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, NoReturn

from lastword.cli.documents.written import is_by_lastword, is_job_folder
from lastword.cli.read import (
    RECORDS,
    STDIN,
    Source,
    files_of,
    leads_to_many,
    scheme_of,
    sources,
    split_ending,
    unpacked_name,
)
from lastword.errors import InputError, count, list_some, require_extra

if TYPE_CHECKING:
    from pathspec import GitIgnoreSpec

# The extensions of the files that are read from a folder: by input format, and (`_WHOLE`) with --files.
_KINDS: Mapping[str, tuple[str, ...]] = {
    "txt": ("txt", "md"),
    "jsonl": ("jsonl", "ndjson"),
    "csv": ("csv",),
    "tsv": ("tsv",),
    "parquet": ("parquet",),
}
_WHOLE = ("txt", "md", "html", "htm")
_MAGIC = re.compile(r"[*?\[]")

# What is left out besides files of other kinds: a name for it, and the plural of this name.
_OWN = "file that looks like lastword's own output (name it to read it)"
_LEFT_OUT = {
    "hidden file": "hidden files",
    "hidden folder": "hidden folders",
    "link to a folder": "links to folders",
    "broken link": "broken links",
    "folder of a job's output": "folders of jobs' output",
    "pipe or device": "pipes or devices",
    _OWN: "files that look like lastword's own output (name a file to read it)",
}
_CLOSED = "folder that cannot be read"
_CHANGE = "Change --ignore."
_BY_NAME = "Name the files themselves if they are text."
_AS_PATTERN = (
    "It was taken as a pattern, because of its *, ? or [ and because no file has this name."
)


class Finder:
    """Finds the files that the arguments of a command name.

    Args:
        input_format: the format of every file; if None, each file's extension decides.
        whole: whether each file is one text.
        ignore: patterns of files and folders to leave out, as in a .gitignore file.
        command: a command line that would read the same input from stdin, suggested in errors about files that cannot
            be read; None if there is none.

    Raises:
        ConfigError: the package for `ignore` is not installed.
        InputError: a pattern is not valid.
    """

    def __init__(
        self,
        input_format: str | None,
        *,
        whole: bool,
        ignore: Sequence[str],
        command: str | None = None,
    ) -> None:
        self._format, self._whole, self._command = input_format, whole, command
        self._ignore = _Ignore(ignore)
        if whole:
            self._kinds: tuple[str, ...] = _WHOLE
        elif input_format is not None:
            self._kinds = _KINDS[input_format]
        else:
            self._kinds = tuple(kind for kinds in _KINDS.values() for kind in kinds)
        # What was left out, by kind or extension: in total, and of the folder or pattern searched last.
        self._skipped, self._last = Counter[str](), Counter[str]()
        self._repeated: list[str] = []  # files that were named more than once
        self._empty: list[str] = []  # empty files

    def find(self, given: Sequence[str]) -> list[Source]:
        """Return the files in the order of the arguments, each file once; without arguments, return stdin.

        A file or folder that was found but may not be read is among them; its `problem` says why.

        Raises:
            InputError: there is no input, or an argument leads to no usable file or cannot be read.
            OSError: a file is missing.
        """
        found = [path for each in given for path in self._expand(each)]
        if given and not found:
            raise InputError(
                "FILE", "--ignore leaves out every file", got=self._ignore.listed, remedy=_CHANGE
            )
        paths = self._once(found)
        if len(paths) > 1 and not self._whole:
            self._empty = [path for path in paths if _is_empty(path)]
        named = {*given, STDIN}
        return sources(paths, self._format, whole=self._whole, command=self._command, named=named)

    def notices(self) -> Iterator[str]:
        """Yield one line each about files left out, files named more than once, empty files, and unused patterns."""
        if self._skipped:
            yield f"skipped {_in_words(self._skipped)}"
        if self._repeated:
            files = count(len(self._repeated), "file")
            yield f"{files} named more than once but read once, as {list_some(self._repeated)}"
        if self._empty:
            yield f"{count(len(self._empty), 'empty file')}: {list_some(self._empty)}"
        if unused := self._ignore.unused():
            matches = "matches" if len(unused) == 1 else "match"
            yield (
                f"--ignore: {list_some(unused)} {matches} nothing; a pattern applies to what is in a folder, "
                "not to the folder itself"
            )

    def _expand(self, given: str) -> list[str]:
        """Return the files of one argument: those in a folder, those that match a pattern, or the file itself."""
        if given == STDIN:
            return [given]
        if scheme_of(given) is not None:
            return self._of_url(given)
        if os.path.isdir(given):
            found = self._usable(given, self._walk(given))
            return [os.path.join(given, path) for path in found] or self._nothing_in(given)
        if _is_pattern(given):
            return self._matching(given)
        return [] if self._ignore.matches(given) else [given]

    def _of_url(self, given: str) -> list[str]:
        """Return the files of a URL: those in a folder, those that match a pattern, or the file itself."""
        if not leads_to_many(given):
            return [] if self._ignore.matches(given) else [given]
        entries = []
        for path, inside in files_of(given):
            hidden = any(part.startswith(".") for part in inside.split("/"))
            if not self._ignore.matches(inside):
                entries.append((path, "hidden file" if hidden else "file"))
        ending = split_ending(given)[1]
        found = self._usable("", entries, ending if ending and not _MAGIC.search(ending) else None)
        if not found:
            got = f"only {_in_words(self._last)}" if self._last else None
            raise InputError(given, "has no usable file", got=got, remedy=_BY_NAME)
        return found

    def _once(self, paths: Sequence[str]) -> list[str]:
        """Return the paths; of several to the same regular file or URL, return only one, if possible not a link."""
        kept: dict[tuple[str, int], str] = {}
        repeated = set[tuple[str, int]]()
        for number, path in enumerate(paths):
            regular = path != STDIN and os.path.isfile(path)
            place = (os.path.realpath(path), -1) if regular else (path, number)
            place = (path, -1) if scheme_of(path) is not None else place
            if place not in kept:
                kept[place] = path
                continue
            repeated.add(place)
            if os.path.islink(kept[place]) and not os.path.islink(path):
                kept[place] = path
        self._repeated = [kept[place] for place in repeated]
        return list(kept.values())

    def _nothing_in(self, folder: str) -> NoReturn:
        """Raise InputError for a folder without a usable file; the message says what the folder has instead."""
        skipped, ignored = self._last, self._ignore.count
        remedy = None
        if ignored:
            remedy = _CHANGE
        elif not self._whole and any(skipped[f".{kind}"] for kind in _WHOLE):
            remedy = "Pass --files to read each file as one text."
        elif self._whole and any(skipped[f".{kind}"] for kind in RECORDS):
            remedy = "Leave out --files to read the records of such files."
        elif skipped:
            remedy = _BY_NAME
        raise InputError(
            folder,
            "has no file of a known kind" + (" that --ignore leaves" if ignored else ""),
            got=f"only {_in_words(skipped)}" if skipped else None if ignored else "no file",
            expected=", ".join(f".{kind}" for kind in self._kinds),
            remedy=remedy,
        )

    def _matching(self, pattern: str) -> list[str]:
        """Return the files that a pattern matches. With a pattern such as *.log, .log counts as a known kind too."""
        parts = pattern.split("/")
        first = next(i for i, part in enumerate(parts) if _MAGIC.search(part))
        top, wanted = "/".join(parts[:first]), parts[first:]
        if first and not top:
            top = "/"
        if top and not os.path.isdir(top):
            got = f"no folder {top!r}"
            raise InputError(pattern, "matches no file", got=got, remedy=_AS_PATTERN)
        depth = None if "**" in wanted else len(wanted)
        entries = self._walk(top or ".", depth)
        alike = _lower_ending(pattern).split("/")[first:]
        matching = (
            (path, kind)
            for path, kind in entries
            if _matches(path.split("/"), wanted)
            or _matches(_lower_ending(path).split("/"), alike)
            or (kind == _CLOSED and _leads_to(path.split("/"), wanted))
        )
        ending = split_ending(pattern)[1]
        asked = ending if ending and not _MAGIC.search(ending) else None
        found = self._usable(top, matching, asked)
        if not found:
            only = f"only {_in_words(self._last)}" if self._last else None
            what = f"matches no {'usable ' if only else ''}file"
            ignored = self._ignore.count
            what += " that --ignore leaves" if ignored else ""
            remedy = _CHANGE if ignored else _BY_NAME if only else _AS_PATTERN
            raise InputError(pattern, what, got=only, remedy=remedy)
        return [os.path.join(top, path) for path in found]

    def _usable(
        self, top: str, entries: Iterable[tuple[str, str]], asked: str | None = None
    ) -> list[str]:
        """Return the paths of files of a known kind and of folders that cannot be read; count what is left out.

        Args:
            top: the folder that the paths are relative to.
            entries: paths with their kinds, as from `_walk`.
            asked: an extension that counts as a known kind too.
        """
        self._ignore.count, self._last, usable = 0, Counter[str](), list[str]()
        for path, kind in entries:
            known, ending = (split_ending(each)[1] for each in (unpacked_name(path), path))
            if known == "parquet" != ending:
                known = ending  # compressed Parquet is not read
            if kind == "file" and is_by_lastword(os.path.join(top, path)):
                self._last[_OWN] += 1
            elif kind == _CLOSED or (kind == "file" and (known in self._kinds or ending == asked)):
                usable.append(path)
            elif kind == "file":
                self._last[f".{ending}" if ending else "no extension"] += 1
            else:
                self._last[kind] += 1
        self._skipped += self._last
        return usable

    def _walk(self, top: str, depth: int | None = None) -> Iterator[tuple[str, str]]:
        """Yield the path, relative to `top`, and the kind of every entry, except the folders to search in.

        A folder's own entries come before those of its subfolders. What --ignore matches is left out.

        Args:
            top: the folder to search.
            depth: how many levels to search, 1 for `top` alone; None for all.
        """
        waiting = [""]
        while waiting:
            folder = waiting.pop()
            try:
                with os.scandir(os.path.join(top, folder)) as entries:
                    names = sorted(entry.name for entry in entries)
            except OSError as error:
                if not folder:
                    reason = error.strerror or str(error)
                    raise InputError(top, f"cannot be read ({reason})") from error
                yield folder, _CLOSED
                continue
            folders = []
            for name in names:
                path = f"{folder}/{name}" if folder else name
                kind = _kind(os.path.join(top, path))
                if self._ignore.matches(
                    f"{path}/" if kind in ("folder", "hidden folder") else path
                ):
                    continue
                if kind == "folder":
                    folders.append(path)
                else:
                    yield path, kind
            if depth is None or folder.count("/") + bool(folder) + 1 < depth:
                waiting += reversed(folders)


def names_many(given: str) -> bool:
    """Return whether an argument may lead to several files: a folder or a pattern."""
    if scheme_of(given) is not None:
        return leads_to_many(given)
    return os.path.isdir(given) or _is_pattern(given)


def _is_pattern(given: str) -> bool:
    return _MAGIC.search(given) is not None and not os.path.lexists(given)


def _is_empty(path: str) -> bool:
    return path != STDIN and os.path.isfile(path) and os.path.getsize(path) == 0


def _kind(path: str) -> str:
    folder = os.path.isdir(path)
    if os.path.basename(path).startswith("."):
        return "hidden folder" if folder else "hidden file"
    try:
        link = stat.S_ISLNK(os.lstat(path).st_mode)
    except OSError:
        return "file"  # its folder can be listed but not entered: opening the file tells why
    if folder and not link:
        return "folder of a job's output" if is_job_folder(path) else "folder"
    if folder:
        return "link to a folder"
    if os.path.isfile(path):
        return "file"
    return "broken link" if link else "pipe or device"


def _in_words(skipped: Mapping[str, int]) -> str:
    """Return in words what was left out: files of other kinds with their extensions, then the rest by name."""
    endings = skipped.keys() - _LEFT_OUT.keys()
    number = sum(skipped[ending] for ending in endings)
    kinds = "another kind" if number == 1 else "other kinds"
    parts = [f"{count(number, 'file')} of {kinds} ({list_some(endings)})"] if number else []
    parts += [
        count(skipped[name], name, plural) for name, plural in _LEFT_OUT.items() if name in skipped
    ]
    return ", ".join(parts)


def _matches(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Return whether a path matches a pattern, both split at "/"; ** matches any number of folders."""
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return any(_matches(parts[i:], pattern[1:] or ["*"]) for i in range(len(parts)))
    return bool(parts) and fnmatchcase(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])


def _leads_to(folder: Sequence[str], pattern: Sequence[str]) -> bool:
    """Return whether something in a folder could match a pattern."""
    if not folder or not pattern or pattern[0] == "**":
        return bool(pattern)
    return fnmatchcase(folder[0], pattern[0]) and _leads_to(folder[1:], pattern[1:])


def _lower_ending(path: str) -> str:
    """Return a path or pattern with its extension in lower case: .TXT is the same kind of file as .txt."""
    root, dot, ending = path.rpartition(".")
    return path if "/" in ending.removesuffix("/") else f"{root}{dot}{ending.lower()}"


class _Ignore:
    """Decides what to leave out, by the rules of .gitignore, and notes which patterns have matched something.

    Extensions match in upper and lower case alike, because a file's kind does not depend on the case either.
    """

    def __init__(self, patterns: Sequence[str]) -> None:
        self._all = [_spec(patterns), _spec([_lower_ending(each) for each in patterns])]
        self._unused = {}
        for each in patterns:
            plain = each.removeprefix("!")
            self._unused[each] = [_spec([plain]), _spec([_lower_ending(plain)])]
        self.count = 0  # how many paths were left out; the caller resets this count
        self.listed = list_some(repr(pattern) for pattern in patterns)

    def matches(self, path: str) -> bool:
        """Return whether to leave out a path; the path of a folder ends with "/"."""
        if not self.listed:
            return False
        for pattern, specs in list(self._unused.items()):
            if _match(specs, path):
                del self._unused[pattern]
        found = _match(self._all, path)
        self.count += found
        return found

    def unused(self) -> list[str]:
        """Return the patterns that no path has matched so far."""
        return [repr(pattern) for pattern in self._unused]


def _match(specs: "Iterable[GitIgnoreSpec | None]", path: str) -> bool:
    """Return whether a path matches the first spec or, with its extension in lower case, the second spec."""
    ways = zip(specs, (path, _lower_ending(path)), strict=True)
    return any(spec is not None and spec.match_file(way) for spec, way in ways)


def _spec(patterns: Sequence[str]) -> "GitIgnoreSpec | None":
    if not patterns:
        return None
    with require_extra("pathspec", "documents", "--ignore"):
        from pathspec import GitIgnoreSpec
    try:
        return GitIgnoreSpec.from_lines(patterns)
    except (ValueError, re.error) as error:
        got = list_some(repr(pattern) for pattern in patterns)
        raise InputError("--ignore", "not a pattern as in .gitignore", got=got) from error
