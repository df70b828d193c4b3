"""The fixture that runs `predict` in this process."""

import pytest
from predict_runs import lines_of

from trainer.serving.predict import PredictOptions, predict


@pytest.fixture
def run_predict(tmp_path, write_raw):
    """Predicts records with a run; gives the lines by id, or the list of all of them."""

    def run(run, records, *, output="predictions", beam_options=None, **options):
        raw = records if isinstance(records, str) else write_raw(records, "new.jsonl")
        options = PredictOptions(run, (raw,), str(tmp_path / output), **options)
        summary = predict(options, beam_options)
        return summary, lines_of(tmp_path / output)

    return run
