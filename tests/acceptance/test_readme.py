"""Every command of the README works as it stands there."""

from pathlib import Path

from .command import PACKAGE
from .console import commands_of, failures

PAGE = """Some words.

```console
$ banana-batch plan jobs/demo.csv | head -1
12 jobs for …
$ make demo
$ banana-batch run missing.csv \\
    --sandbox   # exits 66
banana-batch: missing.csv: …
```

```python
$ not a command
```

```console
$ banana-batch run jobs/list.txt --budget '$5' -q
$ banana-batch plan missing.csv
$ make tea
$ banana-batch run jobs/demo.csv --base-url https://api.example.com
```
"""


def test_every_command_of_the_readme_works(tmp_path: Path) -> None:
    """Run in order in a copy of jobs/, each ends as the page says."""
    assert failures((PACKAGE.parent / "README.md").read_text(), tmp_path) == []


def test_a_page_with_mistakes_is_found_out(tmp_path: Path) -> None:
    """Lines that go on, exit codes that are told, the real endpoint replaced; and three mistakes, all found."""
    assert commands_of(PAGE)[2] == "banana-batch run missing.csv --sandbox   # exits 66"
    found = failures(PAGE, tmp_path)
    assert [told.split(": ")[0] for told in found] == [
        "banana-batch plan missing.csv",
        "make tea",
        "banana-batch run jobs/demo.csv --base-url https://api.example.com",
    ]
    assert (tmp_path / "jobs" / "outputs" / "list" / "results.jsonl").exists()
