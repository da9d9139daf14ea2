import signal

import pytest

from gnomon.run.interrupt import interruptible


def test_an_interrupt_that_a_library_swallows_is_raised_on_leaving():
    before = signal.getsignal(signal.SIGINT)
    went_on = []

    def library():
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            went_on.append(True)

    with pytest.raises(KeyboardInterrupt), interruptible():
        library()
    assert went_on
    assert signal.getsignal(signal.SIGINT) is before


def test_an_interrupt_that_is_not_swallowed_and_other_errors_get_through_at_once():
    with pytest.raises(KeyboardInterrupt), interruptible():
        signal.raise_signal(signal.SIGINT)
    with pytest.raises(ZeroDivisionError), interruptible():
        raise ZeroDivisionError
    with interruptible():
        pass
