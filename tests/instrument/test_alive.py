"""Living instances are found, and another thread that builds a tuple meanwhile is not disturbed."""

import gc
import sys
import weakref

import pytest

from instrument.alive import instances_of, with_subclasses


class Wanted:
    pass


class Derived(Wanted):
    pass


def test_instances_of_the_named_classes_are_found():
    one, two = Wanted(), Derived()
    assert {id(o) for o in instances_of([Wanted])} == {id(one)}
    assert {id(o) for o in instances_of(with_subclasses(Wanted))} == {id(one), id(two)}
    assert with_subclasses(Wanted) == {Wanted, Derived}


def test_nothing_is_kept_alive():
    one = Wanted()
    reference = weakref.ref(one)
    instances_of([Wanted])
    del one
    assert reference() is None


def naive(classes):
    wanted = set(classes)
    return [o for o in gc.get_objects() if type(o) in wanted]


def most_references_to(marker, find):
    """The most references to `marker` that any other thread could meet: another one runs between two opcodes, never inside of one."""
    counts = []

    def trace(frame, event, argument):
        frame.f_trace_opcodes = True
        counts.append(sys.getrefcount(marker))
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        find([Wanted])
    finally:
        sys.settrace(before)
    return max(counts) - min(counts)


@pytest.mark.skipif(sys.implementation.name != "cpython", reason="counts references")
def test_a_tuple_under_construction_in_another_thread_is_left_alone():
    one, marker = Wanted(), ([], [])
    assert most_references_to(marker, naive) > 0, "negative control: a list of all objects refers to it, and its resize would raise SystemError"
    assert most_references_to(marker, instances_of) == 0
    assert one in instances_of([Wanted])
