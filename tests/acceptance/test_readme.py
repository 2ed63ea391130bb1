"""Every command of the README works as it stands there."""

import re
import subprocess
import sys
from pathlib import Path

from banana_batch.capabilities import MODELS

from .command import BOUND_S, PACKAGE, environment
from .console import commands_of, failures

README = PACKAGE.parent / "README.md"

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


def test_the_program_of_the_readme_works(tmp_path: Path) -> None:
    """Saved and run, it makes its image."""
    (program,) = re.findall(r"^```python\n(.*?)^```", README.read_text(), re.MULTILINE | re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=environment(tmp_path),
        capture_output=True,
        timeout=BOUND_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    image, code = done.stdout.decode().splitlines()
    assert (tmp_path / "outputs" / "cat" / image.split()[-1]).is_file()
    assert code == "0"


def test_the_models_of_the_readme_are_those_that_are_known() -> None:
    """Each with its name, the ratios and the sizes that are known to work."""
    table = {
        line.split("|")[1].strip(): line for line in README.read_text().splitlines() if line.startswith("| `gemini")
    }
    told = {model_id: line for ids, line in table.items() for model_id in re.findall(r"`(\S+)`", ids)}
    assert told.keys() == MODELS.keys()
    assert all(model.alias in told[model.id] for model in MODELS.values())
    pro, two = told["gemini-3-pro-image-preview"], told["gemini-3.1-flash-image-preview"]
    ratios = set(re.findall(r"\d+:\d+", pro))
    assert ratios == MODELS["gemini-3-pro-image-preview"].ratios
    assert ratios | set(re.findall(r"\d+:\d+", two)) == MODELS["gemini-3.1-flash-image-preview"].ratios


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
