"""Folders and globs become files: sorted, hidden ones and links to folders left out, other kinds counted."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lastword.cli.documents.paths import Finder
from lastword.errors import InputError

FILES = {
    "docs/b.md": "b",
    "docs/a.txt": "a",
    "docs/page.HTML": "<p>page",
    "docs/data.csv": "text\nrow",
    "docs/x.pdf": "%PDF",
    "docs/README": "no ending",
    "docs/.hidden.md": "no",
    "docs/.git/config.md": "no",
    "docs/Über uns/läs mich.md": "ä",
    "docs/drafts/old.bak.md": "old",
    "docs/drafts/deep/new.md": "new",
    "docs/literal[1].md": "1",
    "docs/literal1.md": "2",
    "docs/x.zip": "PK",
    "other/page.html": "<p>x",
    "empty/.keep": "",
}
ALL_TEXT = (
    "docs/a.txt docs/b.md docs/literal1.md docs/literal[1].md docs/drafts/old.bak.md docs/drafts/deep/new.md"
    " docs/Über_uns/läs_mich.md"
)


@pytest.fixture
def mess(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, text in FILES.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(text, encoding="utf-8")
    os.mkfifo("docs/pipe.md")
    os.symlink("gone.md", "docs/dangling.md")
    os.symlink("..", "docs/up")
    os.symlink("up", "docs/drafts/loop")
    os.symlink("../other/page.html", "docs/linked.html")


# whole, input format, ignored, arguments; the files, or a part of the names of what was skipped
SKIPPED = "broken link, link to a folder, no extension, not a regular file"
FOUND = {
    "a folder": (False, None, [], ["docs"], "docs/a.txt docs/b.md docs/data.csv" + ALL_TEXT[20:]),
    "a folder of files": (True, None, [], ["docs/"], ("docs/a.txt docs/b.md docs/linked.html docs/literal1.md"
        " docs/literal[1].md docs/page.HTML docs/drafts/old.bak.md docs/drafts/deep/new.md"
        " docs/Über_uns/läs_mich.md")),
    "one format": (False, "csv", [], ["docs"], "docs/data.csv"),
    "text only": (False, "txt", [], ["docs"], ALL_TEXT),
    "ignored folder": (True, None, ["drafts/", "*.html", "*.HTML"], ["docs"], ("docs/a.txt docs/b.md"
        " docs/literal1.md docs/literal[1].md docs/Über_uns/läs_mich.md")),
    "ignored but one": (True, None, ["*", "!b.md"], ["docs"], "docs/b.md"),
    "ignored at the top": (False, "txt", ["/*.md", "/a.txt", "drafts"], ["docs"], "docs/Über_uns/läs_mich.md"),
    "ignored in capitals": (True, None, ["*.MD", "*.html", "!B.md", "!b.MD"], ["docs"], "docs/a.txt docs/b.md"),
    "a pattern in capitals": (False, None, [], ["docs/*.TXT", "docs/b.M?"], "docs/a.txt docs/b.md"),
    "a pattern of names in capitals": (True, None, [], ["docs/*.html"], "docs/linked.html docs/page.HTML"),
    "ignored by name": (False, None, ["*.bak.md"], ["docs/b.md", "docs/drafts/old.bak.md"], "docs/b.md"),
    "order of the arguments": (False, None, [], ["docs/b.md", "docs/a.txt", "docs/b.md"],
        "docs/b.md docs/a.txt"),
    "given again": (False, None, [], ["docs/drafts/old.bak.md", "docs/drafts", "./docs/dr*/*.md", "docs/drafts/../b.md",
        "docs/*b.md"], "docs/drafts/old.bak.md docs/drafts/deep/new.md docs/drafts/../b.md"),
    "a link to a file": (True, None, [], ["other", "docs/linked.html", "docs/b.md"], "other/page.html docs/b.md"),
    "glob": (False, None, [], ["docs/*.md"], "docs/b.md docs/literal1.md docs/literal[1].md"),
    "deep glob": (False, None, [], ["docs/**/*.md"], ("docs/b.md docs/literal1.md docs/literal[1].md"
        " docs/drafts/old.bak.md docs/drafts/deep/new.md docs/Über_uns/läs_mich.md")),
    "glob of folders": (False, None, [], ["*/dr?fts/*/[a-z]*.md"], "docs/drafts/deep/new.md"),
    "all below": (False, None, ["docs/[!d]*"], ["**"], "docs/data.csv docs/drafts/old.bak.md docs/drafts/deep/new.md"),
    "a name that looks like a glob": (False, None, [], ["docs/literal[1].md"], "docs/literal[1].md"),
    "a kind asked for": (True, None, [], ["docs/REA*", "docs/*.csv"], None),
    "asked for by its ending": (False, None, [], ["docs/*.bak", "docs/drafts/*.rst"],
        "docs/notes.bak docs/drafts/deep.rst"),
    "named": (True, None, [], ["docs/README", "docs/b.md"], "docs/README docs/b.md"),
    "hidden but named": (False, None, [], ["docs/.git", "docs/.hidden.md"], "docs/.git/config.md docs/.hidden.md"),
}  # fmt: skip


@pytest.mark.parametrize("name", FOUND)
def test_files_found(mess, name):
    whole, form, ignore, given, expected = FOUND[name]
    if name == "asked for by its ending":
        Path("docs/notes.bak").write_text("x")
        Path("docs/drafts/deep.rst").write_text("x")
    finder = Finder(form, whole=whole, ignore=ignore)
    if expected is None:
        with pytest.raises(
            InputError, match=r"docs/REA\*: matches no usable file; got only 1 file of another kind"
        ):
            finder.find(given)
        return
    found = finder.find(given)
    assert [source.path.replace(" ", "_") for source in found] == expected.split()
    formats = {source.format for source in found}
    assert formats <= ({"whole", "html"} if whole else {"txt", "csv"})


def test_absolute_patterns_and_names_that_are_not_utf8(mess, tmp_path):
    os.mkdir(b"docs/raw")
    Path(os.fsdecode(b"docs/raw/\xff.md")).write_text("x")
    finder = Finder(None, whole=True, ignore=[])
    for given, folder in (f"{tmp_path}/docs/raw/*", os.fsencode(tmp_path)), ("docs/raw", b"."):
        (found,) = finder.find([given])
        assert os.path.join(folder, os.fsencode(found.path)) == folder + b"/docs/raw/\xff.md"


PATTERN = "It was taken as a pattern, because of its *, ? or [ and because no file has this name."
REFUSED = {
    "no files in it": (["void"], {}, "void: has no file of a known kind; got no file, expected .txt"),
    "only hidden": (["empty"], {}, "empty: has no file of a known kind; got only 1 hidden file, expected .txt"),
    "only html": (["other"], {}, ("got only 1 file of another kind (.html), expected .txt, .md, .jsonl, .ndjson, .csv,"
        " .tsv, .parquet. Pass --files")),
    "only other kinds": (["docs"], {"ignore": ["*", "!*.pdf"], "whole": True}, ("docs: has no file of a known kind that"
        " --ignore leaves; got only 1 file of another kind (.pdf), expected .txt, .md, .html, .htm. Change --ignore.")),
    "only records": (["table"], {"whole": True}, "(.csv), expected .txt, .md, .html, .htm. Leave out --files to read"),
    "all in it ignored": (["docs/b.md", "other"], {"ignore": ["*.html"]}, ("other: has no file of a known kind that"
        " --ignore leaves; expected .txt, .md, .jsonl, .ndjson, .csv, .tsv, .parquet. Change --ignore.")),
    "no match": (["docs/*.doc"], {}, f"docs/*.doc: matches no file. {PATTERN}"),
    "no folder": (["nope/*.txt"], {}, f"nope/*.txt: matches no file; got no folder 'nope'. {PATTERN}"),
    "a question": (["what?"], {}, f"what?: matches no file. {PATTERN}"),
    "no usable match": (["docs/x.*"], {}, ("docs/x.*: matches no usable file; got only 2 files of"
        " other kinds (.pdf, .zip). Name the files themselves if they are text.")),
    "no hidden match": (["docs/.h*"], {}, "docs/.h*: matches no usable file; got only 1 hidden file."),
    "all matches ignored": (["docs/b*"], {"ignore": ["b.md"]}, "docs/b*: matches no file that --ignore leaves. Change"),
    "all ignored": (["docs/b.md"], {"ignore": ["*.md"]}, "FILE: --ignore leaves out every file; got '*.md'. Change"),
    "not a pattern": (["docs"], {"ignore": ["a", "!"]}, "--ignore: not a pattern as in .gitignore; got '!', 'a'."),
    "a page as lines": (["other/page.html"], {}, "unsupported input format .html. Pass --files"),
    "a document": (["docs/x.pdf"], {"whole": True}, "docs/x.pdf: unsupported input format .pdf."),
    "records as one text": (["docs/b.md", "docs/data.csv"], {"whole": True}, ("docs/data.csv: holds records, not one"
        " text; got --files. Leave out --files to read its records. To read it as it is, pipe it in: lastword embed")),
    "a pattern of records": (["docs/*.csv"], {"whole": True}, "docs/data.csv: holds records, not one text"),
    "json lines as one text": (["table/x.NDJSON"], {"whole": True}, "table/x.NDJSON: holds records, not one text"),
    "json as one text": (["x.json"], {"whole": True}, "x.json: holds records, not one text; got --files. To read it"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused(mess, name):
    given, options, message = REFUSED[name]
    os.mkdir("void")
    os.mkdir("table")
    for file in ("x.json", "table/x.NDJSON", "table/data.csv"):
        Path(file).write_text("")
    if name == "only records":
        os.remove("table/x.NDJSON")
    with pytest.raises(InputError) as caught:
        defaults = {"whole": False, "ignore": [], "command": "lastword embed -"}
        Finder(None, **{**defaults, **options}).find(given)
    assert message in str(caught.value)


def test_what_is_left_out_is_counted_once_on_stderr(mess, cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = cli("embed", "docs", "--files")
    assert result.err.splitlines()[0] == (
        "lastword: skipped 4 files of other kinds (.csv, .pdf, .zip, no extension), 1 hidden file, 1 hidden folder, "
        "1 link to a folder, 2 broken links, 1 pipe or device"
    )
    paths = [json.loads(line)["path"] for line in result.out.splitlines()]
    assert [path.replace(" ", "_") for path in paths] == FOUND["a folder of files"][4].split()
    assert cli("embed", "docs", "--files", "--quiet").err == ""
    one = cli("embed", "other", "docs/x.*", "docs/b.md", "--files", "--ignore", "*.zip")
    assert "matches no usable file that --ignore leaves; got only 1 file of another kind" in one.err


USES = {
    "one": (["b.md"], ["docs"], None),
    "of a folder": (
        ["drafts/", "**/deep/"],
        ["docs"],
        "'**/deep/' matches nothing",
    ),  # drafts is not looked into
    "the folder itself": (
        ["docs"],
        ["docs"],
        "'docs' matches nothing; a pattern applies to what is in a folder, not to",
    ),
    "two": (["*.rst", "b.md", "x#", "#x"], ["docs"], "'#x', '*.rst', 'x#' match nothing;"),
    "taken back": (["*.md", "!b.md", "!*.rst"], ["docs"], "'!*.rst' matches nothing"),
    "hidden": ([".git/", ".hidden.md"], ["docs"], None),
    "a file that is named": (["b.md"], ["docs/b.md", "other/page.html"], None),
    "none": ([], ["docs"], None),
}


@pytest.mark.parametrize("name", USES)
def test_a_pattern_that_matches_nothing_is_told(mess, name):
    ignore, given, message = USES[name]
    finder = Finder(None, whole=True, ignore=ignore)
    finder.find(given)
    told = [notice for notice in finder.notices() if notice.startswith("--ignore")]
    assert len(told) == (message is not None)
    assert message is None or f"--ignore: {message}" in told[0]


def test_files_given_again_are_told(mess, cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = cli("embed", "docs/b.md", "docs/*.md", "--files")
    assert result.err.splitlines()[1] == (
        "lastword: 1 file named more than once but read once, as docs/b.md"
    )
    assert [json.loads(line)["path"] for line in result.out.splitlines()].count("docs/b.md") == 1
    finder = Finder(None, whole=True, ignore=[])
    finder.find(["docs/b.md", "docs/a.txt", f"{tmp_path}/docs/b.md", "docs/drafts/../a.txt"])
    (told,) = finder.notices()
    assert told == "2 files named more than once but read once, as docs/a.txt, docs/b.md"


AGAIN = {
    "the file last": (["link.md", "docs/a.txt", "docs/b.md"], ["docs/b.md", "docs/a.txt"]),
    "the file first": (["docs/b.md", "link.md"], ["docs/b.md"]),
    "links only": (["second.md", "link.md"], ["second.md"]),
    "thrice": (["link.md", "docs/b.md", "second.md", "docs/../docs/b.md"], ["docs/b.md"]),
}


@pytest.mark.parametrize("name", AGAIN)
def test_a_file_is_kept_rather_than_a_link_to_it(mess, name):
    given, kept = AGAIN[name]
    for link in ("link.md", "second.md"):
        os.symlink("docs/b.md", link)
    finder = Finder(None, whole=False, ignore=[])
    assert [source.path for source in finder.find(given)] == kept
    (told,) = finder.notices()
    assert told == f"1 file named more than once but read once, as {kept[0]}"


def test_empty_files_among_others_are_told(cli):
    cli("--version")  # enters the folder
    os.mkdir("docs")
    for name, text in {"docs/a.txt": "x\n", "docs/b.txt": "", "docs/c.csv": ""}.items():
        Path(name).write_text(text)
    told = "lastword: 1 empty file: docs/b.txt\n"
    assert told in cli("embed", "docs/*.txt").err
    assert "empty" not in cli("embed", "docs/a.txt").err
    assert "empty" not in cli("embed", "docs", "--files").err, "a blank text, which is counted"
    assert told in cli("search", "q", "docs/a.txt", "docs/b.txt").err


CONTENTS = {
    "byte order mark": (b"\xef\xbb\xbf# T\r\n\r\nx\r\n", "# T\r\n\r\nx\r\n"),
    "empty": (b"", ""),
    "blank": (b" \n\n", " \n\n"),
    "nul": (b"a\0b", "a\0b"),
    "latin-1": (b"ok\nna\xefve", "a.md:2: is not UTF-8; got byte 0xef"),
    "UTF-16": (
        "ab\ncd".encode("utf-16"),
        "iconv -f UTF-16 -t utf-8 a.md > a.utf8.md to convert it.",
    ),
    "UTF-16 without mark": (
        "ab\ncd".encode("utf-16-le"),
        "iconv -f UTF-16LE -t utf-8 a.md > a.utf8.md to convert it.",
    ),
    "UTF-32": (
        "ab\ncd".encode("utf-32"),
        "iconv -f UTF-32 -t utf-8 a.md > a.utf8.md to convert it.",
    ),
    "zip": (b"PK\x03\x04\xff", "got a zip file"),
}


@pytest.mark.parametrize("name", CONTENTS)
def test_content_of_a_whole_file(cli, name):
    data, expected = CONTENTS[name]
    cli("--version")  # enters the folder
    Path("a.md").write_bytes(data)
    result = cli("embed", "a.md", "--files", "--quiet")
    if result.status == 0:
        row = json.loads(result.out)
        assert (row["text"], row["path"], list(row)) == (
            expected,
            "a.md",
            ["text", "path", "embedding"],
        )
    else:
        assert result.status == 2
        assert expected in result.err


def test_a_whole_file_is_bounded(cli, monkeypatch):
    from lastword.cli.read import lines

    monkeypatch.setattr(lines, "MAX_RECORD", 10)
    cli("--version")
    Path("a.md").write_text("12345\n67890\n")
    result = cli("embed", "a.md", "--files", "--quiet")
    assert result.err.startswith("lastword: a.md: is too long for one record; expected at most 10")


def test_stdin_is_one_text(cli):
    result = cli("embed", "-", "--files", "--quiet", stdin=b"a\nb\n")
    row = json.loads(result.out)
    assert (row["text"], row["path"]) == ("a\nb\n", "stdin")


def test_the_package_is_asked_for_only_where_it_is_needed(mess):
    code = (
        "import sys; sys.modules['pathspec'] = sys.modules['semantic_text_splitter'] = None;"
        "from lastword.cli.main import main; sys.exit(main())"
    )
    for option in (["--ignore", "x"], ["--chunk", "9"]):
        command = [sys.executable, "-c", code, "embed", "docs/b.md", "--quiet", *option]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert done.stderr.startswith(f"lastword: {option[0]}: needs ")
        assert done.stderr.endswith("Install it with: pip install 'lastword[documents]'.\n")


@pytest.fixture
def closed(mess, monkeypatch):
    """Let nobody read the folder docs/drafts and the file docs/b.md: root could read them whatever their mode."""
    scandir, access = os.scandir, os.access

    def scan(path):
        if os.path.normpath(path) == "docs/drafts":
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", scan)
    monkeypatch.setattr(os, "access", lambda path, mode: path != "docs/b.md" and access(path, mode))


@pytest.mark.parametrize("given", ["docs", "docs/**/*.*", "docs/*/*.md"])
@pytest.mark.usefixtures("closed")
def test_what_is_closed_is_skipped_and_counted(cli, given):
    stopped = cli("embed", given)
    assert stopped.status == 2
    lost = "docs/drafts" if given == "docs/*/*.md" else "docs/b.md"
    line = f"lastword: {lost}: cannot be read (Permission denied). Pass --on-error skip to leave it out."
    assert line in stopped.err.splitlines()
    went_on = cli("embed", given, "--files", "--on-error", "skip", "--errors", "errors.jsonl")
    assert went_on.status == 0, went_on.err
    listed = [json.loads(row) for row in Path("errors.jsonl").read_text().splitlines()]
    skipped = ["docs/drafts"] if given == "docs/*/*.md" else ["docs/b.md", "docs/drafts"]
    assert [row["path"] for row in listed] == skipped
    what = "1 folder" if len(skipped) == 1 else "1 folder and 1 file"
    assert f"lastword: {what} left out because of an error; the first: " in went_on.err


@pytest.mark.usefixtures("closed")
def test_a_closed_folder_that_no_pattern_leads_to_is_no_error(cli):
    assert cli("embed", "docs/x*/*.md", "docs/a.txt").status == 2
    assert cli("embed", "docs/[ac]*.txt").status == 0
    named = cli("embed", "docs/drafts", "docs/a.txt", "--on-error", "skip")
    assert named == (2, "", "lastword: docs/drafts: cannot be read (Permission denied).\n")
