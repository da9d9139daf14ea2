"""How annotations are checked while the tests run: by beartype, without a trace in the global random state."""

import functools
import random

import beartype

# As type checkers have it (PEP 484), an int will do where a float is asked for.
_beartype = beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))


def checked(function):
    """A function (jaxtyping's, which does nothing but be called) whose arguments and result are checked.

    Of a list or a tuple of any length, beartype looks at one element, which it draws with `random`: what is tested must not see that (should that change its name, test_shapes.py tells).
    """
    inner = _beartype(function)
    if inner is function or not any("getrandbits" in name for name in inner.__code__.co_varnames):
        return inner

    @functools.wraps(function)
    def call(*args, **kwargs):
        state = random.getstate()
        try:
            return inner(*args, **kwargs)
        finally:
            random.setstate(state)

    return call
