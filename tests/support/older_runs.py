"""Makes the folder of a run look like that of a version without `statistics.json`."""

import hashlib

import yaml

from trainer.runs.run import Run


def remove_statistics(path, result):
    """Removes what that version did not write: the statistics with their scale and bound.

    Args:
        path: Folder of a finished run.
        result: What `train` returned.
    """
    run = Run(str(path))
    config = yaml.safe_load(run.read("config.yaml"))
    del config["statistics"]
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    (path / "statistics.json").unlink()
    inputs = run.read("manifest.json") + run.read("config.yaml")
    run.write_json("result.json", result | {"inputs_sha256": hashlib.sha256(inputs).hexdigest()})
