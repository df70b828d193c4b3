"""Sorts values through files as the steps of a job do."""


def spill(make_buffer, values, folder, *, size=None):
    """Returns the runs of values that a buffer writes to a folder, one run for each `size` of them (default: one)."""
    values, runs = list(values), []
    for start in range(0, len(values), size or len(values) or 1):
        buffer = make_buffer(str(folder))
        runs += [run for value in values[start : start + (size or len(values))] for run in buffer.add(value)]
        runs += buffer.flush()
    return runs
