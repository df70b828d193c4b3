"""The examples of README run as printed, and use the public API only."""

import os
import re

import children
import datasets
import pytest
from paths import ROOT

import lengthwise as lw

README = (ROOT / "README.md").read_text()
CODE = "\n".join(re.findall(r"```python\n(.*?)```", README, re.DOTALL))


def test_the_readme_uses_the_public_api_only():
    assert "import lengthwise as lw\n" in CODE
    assert not re.search(r"^\s*(from|import) (pipeline|trainer)\b", CODE, re.MULTILINE)
    assert [name for name in lw.__all__ if f"lw.{name}" not in README] == []


def run_code(folder, code, is_quick):
    os.chdir(folder)
    if is_quick:
        from trainer.serving import export, saved_model

        # `make demo` and `make proof` make and check an export in two new processes. Each imports TensorFlow.
        export.call_in_subprocess = lambda function, *rest: (
            saved_model.make(*rest) if function.endswith(":make") else {"all": 0.0}
        )
    exec(compile(code, "README.md", "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize("is_quick", datasets.some([True, False], [True]))
def test_the_python_of_the_readme_runs_as_printed(tmp_path, is_quick):
    check = "assert sum(len(features['length']) for features, _, _ in theirs) == dataset.split('train').records\n"
    (tmp_path / "folder").mkdir()
    child = children.Child(tmp_path / "output", run_code, tmp_path / "folder", f"{CODE}\n{check}", is_quick)
    assert child.wait() == 0, child.lines
    assert any("accuracy" in line for line in child.lines)
    assert sorted(os.listdir(tmp_path / "folder" / "export")) == [
        "export.json",
        "manifest.json",
        "model.keras",
        "saved_model",
        "statistics.json",
        "vocabulary",
    ]


def test_the_readme_shows_every_command():
    for name in lw.COMMANDS:
        assert f"$ lengthwise {name}" in README or f"`{name}`" in README


def test_the_schema_of_the_readme_is_the_one_that_sample_writes():
    from pipeline.raw.samples import TEMPORAL_ORDER_SCHEMA

    shown = re.search(r"```yaml\n(.*?)```", README, re.DOTALL).group(1)
    assert lw.Schema.parse(shown) == lw.Schema.parse(TEMPORAL_ORDER_SCHEMA)
