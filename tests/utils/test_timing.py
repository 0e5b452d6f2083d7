"""Times by a clock that only the timed functions move."""
import pytest

from gluon_lprnet.utils.timing import interleaved_milliseconds


def test_functions_take_turns_and_warm_up_does_not_count():
    now, calls = [0.0], []

    def taking(name, first, later):
        def function():
            now[0] += later if name in calls else first
            calls.append(name)
        return function

    times = interleaved_milliseconds([taking('a', 9.0, 0.002), taking('b', 5.0, 0.003)], rounds=3, passes=2, warm_up=1,
                                     clock=lambda: now[0])
    assert calls == list('aabb' * 4)
    assert times == [pytest.approx([2.0] * 3), pytest.approx([3.0] * 3)]
