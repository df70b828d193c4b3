"""Turns raw files into a published dataset, without passing any record through Beam."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import apache_beam as beam

from pipeline.beam.parse_ahead import parse_options
from pipeline.beam.read_lines import split_files
from pipeline.beam.workers import WorkerPool
from pipeline.beam.write_dataset import WriteDataset
from pipeline.raw.find_files import RawFile, RawFiles, find_files
from pipeline.raw.records import LIMITS, Limits
from pipeline.raw.refuse_output import refuse_output
from pipeline.writing.base import choose_mode
from pipeline.writing.open_base import take_inputs
from pipeline.writing.parse_rejects import split_rejects
from pipeline.writing.paths import is_of_dataset


@dataclasses.dataclass
class PrepareFiles(beam.PTransform):
    """Prepares raw files: Begin -> one Manifest. Gives the same dataset as ReadLines, ParseRecords and WriteDataset.

    One step reads a chunk of a file and writes its sorted runs, so Beam handles names of files only, and worker
    processes can take the step. The three single transforms exist beside it for pipelines that get records from
    elsewhere or change them on the way. Both use the same parser, encoder and writer of runs.

    Attributes:
        files: A path, a glob or a folder, or a list of them. Also takes the files that `find_files` found. With a dict
            of these for train, validation and test, the input of a file names its split, and the schema of `write` has
            no `splits`, or only shares of train to move: `splits: {validation: 0.1}`.
        write: Schema, output folder and options of the dataset.
        keep_raw: Stores the raw line in each reject.
        limits: Largest record. A larger record is rejected as `too_large`.
        pool: Worker processes that parse and write. None parses and writes in the workers of Beam.
        rejects: Files of rejects whose raw lines are parsed again. The `job` of `write` takes them back.

    Raises:
        UserError: A path matches no file or a file of the dataset, a file is in two inputs, the schema has other
            splits, or there is a dataset already. Raised when the transform is applied.
    """

    files: RawFiles
    write: WriteDataset
    keep_raw: bool = False
    limits: Limits = LIMITS
    pool: WorkerPool | None = None
    rejects: Sequence[RawFile] = ()

    def expand(self, pipeline: Any) -> Any:
        write = self.write
        raw = find_files(self.files)
        if write.job is None:  # else `prepare` has done this
            mode = choose_mode(append=write.append, overwrite=write.overwrite)
            write = dataclasses.replace(write, schema=take_inputs(write.output, mode, write.schema, self.files))
        job, files = write.begin(pipeline)
        refuse_output(self.files, raw, write.output, is_written=is_of_dataset)
        chunks_to_read = split_files(pipeline, raw)
        if self.rejects:
            again = pipeline | "Rejects" >> beam.Create(self.rejects) | "SplitRejects" >> beam.FlatMap(split_rejects)
            chunks_to_read = (chunks_to_read, again | "SpreadRejects" >> beam.Reshuffle()) | "Join" >> beam.Flatten()
        options = parse_options(
            raw, write.schema, keep_raw=self.keep_raw, limits=self.limits, max_rejected=write.max_rejected
        )
        shuffle = write.make_shuffle(pipeline.pipeline, job, files, self.pool)
        return write.publish(job, shuffle.write(shuffle.parse(chunks_to_read, options), write.num_shards))
