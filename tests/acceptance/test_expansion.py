"""A matrix that comes to more images than anybody meant is counted before one is built."""

from pathlib import Path

from .command import here


def _job_file(folder: Path, first: int, second: int) -> Path:
    path = folder / "matrix.toml"
    values = [
        ", ".join(f'"{letter}{number}"' for number in range(count)) for letter, count in (("a", first), ("b", second))
    ]
    path.write_text(f'[matrix]\nprompt = "{{a}} and {{b}}"\na = [{values[0]}]\nb = [{values[1]}]\n')
    return path


def test_above_ten_thousand_a_word_is_wanted(tmp_path: Path) -> None:
    """Without a terminal to ask at it is refused with the number; with `--yes` it is planned."""
    path = _job_file(tmp_path, 101, 100)
    refused = here("plan", path)
    assert refused.code == 64
    assert "10,100 images" in refused.err
    assert "--yes" in refused.err
    planned = here("plan", path, "--yes", "--json")
    assert planned.code == 0
    assert planned.object["plan"]["rows"] == 10_100


def test_up_to_ten_thousand_nothing_is_asked(tmp_path: Path) -> None:
    """The limit itself is no slip."""
    assert here("plan", _job_file(tmp_path, 100, 100)).code == 0
