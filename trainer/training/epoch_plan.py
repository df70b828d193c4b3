"""The plan of the epoch that a run trains next."""

from pipeline.errors import UserError
from pipeline.format.manifest import TRAIN
from trainer.batching.plan import Plan
from trainer.batching.plan_epoch import plan_epoch
from trainer.config import TrainConfig
from trainer.data.dataset import Dataset
from trainer.runs.state import State


def plan_limited(dataset: Dataset, config: TrainConfig, state: State) -> Plan:
    """The plan of the epoch that a run is in or comes to, for one reader.

    Raises:
        UserError: the configuration allows none.
    """
    keys = {"batching", "batch_steps", "batch_size", "pad_to_multiple", "pad_length", "truncate", "seed"}
    limits = config.model_dump(include=keys)
    if state.batch:  # it was begun with these
        limits |= {"batch_steps": state.batch_steps, "batch_size": state.batch_size}
    try:
        return plan_epoch(dataset, TRAIN, epoch=state.epoch + 1, **limits)
    except ValueError as error:
        raise UserError(str(error)) from None
