"""The fixture that runs `predict` in this process."""

import pytest
from predict_runs import lines_of

from trainer.serving.predict import predict


@pytest.fixture
def run_predict(tmp_path, write_raw):
    """Returns a function that predicts records with a run and returns (summary, parsed lines)."""

    def run(run, records, *, output="predictions", beam_options=None, **options):
        raw = records if isinstance(records, str) else write_raw(records, "new.jsonl")
        summary = predict(run, [raw], tmp_path / output, beam_options=beam_options, **options)
        return summary, lines_of(tmp_path / output)

    return run
