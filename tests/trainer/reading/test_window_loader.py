"""When windows and their pieces are loaded: in time, evenly, and little more than one window ahead."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from trainer.reading.window_loader import ScheduledWindow, schedule_pieces, schedule_windows


@given(st.lists(st.integers(0, 6), max_size=60), st.integers(0, 60), st.integers(0, 9))
def test_every_piece_is_loaded_after_the_window_before_is_needed_and_before_its_own_batch(window, first, num_pieces):
    first = min(first, len(window))
    scheduled = schedule_windows(np.array(window, np.int64), first)
    assert [turn.window for turn in scheduled] == list(dict.fromkeys(window[first:]))
    previous = first
    for turn in scheduled:
        assert turn.needed_by == window.index(turn.window, first)
        assert previous <= turn.begin <= turn.needed_by
        # At most an eighth of the batches in between, rounded up.
        assert 8 * (turn.needed_by - turn.begin) < turn.needed_by - previous + 8
        pieces = schedule_pieces(range(num_pieces), begin=turn.begin, needed_by=turn.needed_by)
        assert [piece for _, piece in pieces] == list(range(num_pieces))
        times = [turn.begin, *(time for time, _ in pieces)]
        assert times == sorted(times)
        assert not pieces or times[-1] == turn.needed_by
        previous = turn.needed_by


def test_pieces_are_spread_evenly():
    assert schedule_windows(np.repeat([0, 1], 800), 0)[1] == ScheduledWindow(window=1, begin=700, needed_by=800)
    assert schedule_pieces("abcd", begin=700, needed_by=800) == [(725, "a"), (750, "b"), (775, "c"), (800, "d")]
