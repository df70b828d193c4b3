"""What README shows runs as printed."""

import pathlib
import re
import subprocess
import sys

README = (pathlib.Path(__file__).parents[1] / "README.md").read_text()


def test_the_python_of_the_readme_runs_as_printed(tmp_path):
    code = "\n".join(re.findall(r"```python\n(.*?)```", README, re.DOTALL))
    code += "\nassert sum(len(features['length']) for features, _, _ in theirs) == dataset.split('train').records\n"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "accuracy" in done.stdout


def test_the_readme_shows_every_command():
    from lengthwise import COMMANDS

    assert [name for name in COMMANDS if f"$ lengthwise {name}" not in README and f"`{name}`" not in README] == []


def test_the_schema_of_the_readme_is_the_one_that_sample_writes():
    from pipeline.raw.samples import TEMPORAL_ORDER_SCHEMA
    from pipeline.schema.schema import Schema

    shown = re.search(r"```yaml\n(.*?)```", README, re.DOTALL).group(1)
    assert Schema.parse(shown) == Schema.parse(TEMPORAL_ORDER_SCHEMA)
